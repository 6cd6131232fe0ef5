//! `envoy.filters.http.jwt_authn`: who vouches for a request, by tokens it carries.

pub mod jwks;
pub mod remote;
pub mod status;
pub mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::config::model::Name;
use crate::config::model::matcher::StringMatcher;
use crate::config::model::route::RouteMatch;
use jwks::Jwks;
use remote::RemoteJwks;
use token::Token;

/// Envoy's `JwtAuthentication`.
#[derive(Debug)]
pub struct JwtAuthn {
    /// All providers, in order of their names.
    pub providers: Vec<Arc<Provider>>,
    /// The first that matches says what is required; what none matches needs nothing.
    pub rules: Vec<Rule>,
    /// Headers that only this filter sets.
    pub sanitize: Vec<HeaderName>,
    /// What routes may name; `None`: nothing is required.
    pub requirements: BTreeMap<Name, Option<Requirement>>,
    /// Preflights of scripts pass: they carry no credentials.
    pub bypass_cors_preflight: bool,
    /// Failures are answered without saying why.
    pub strip_failure_response: bool,
}

/// Envoy's `RequirementRule`.
#[derive(Debug)]
pub struct Rule {
    /// Which requests.
    pub matcher: RouteMatch,
    /// `None`: nothing is required.
    pub requirement: Option<Requirement>,
}

/// What a route says of the filter.
#[derive(Debug, Clone)]
pub enum PerRoute {
    /// The requirement of this name.
    Named(Name),
}

/// Envoy's `JwtRequirement`.
#[derive(Debug)]
pub enum Requirement {
    /// A token of this provider.
    Provider(ProviderCheck),
    /// One of these holds. The flags say what else will do.
    Any {
        /// One at least.
        requirements: Vec<Requirement>,
        /// Nothing to verify will do, too.
        allow_missing: bool,
        /// Anything will do.
        allow_failed: bool,
    },
    /// All of these hold.
    All(Vec<Requirement>),
    /// Tokens must be valid if there are any.
    AllowMissing(Locations),
    /// Tokens are looked at, and whatever comes of it will do.
    AllowFailed(Locations),
}

/// A token of one provider.
#[derive(Debug)]
pub struct ProviderCheck {
    /// Whose.
    pub provider: Arc<Provider>,
    /// Where tokens are looked for.
    pub locations: Locations,
    /// Instead of the provider's.
    pub audiences: Option<Vec<String>>,
}

/// Envoy's `JwtProvider`.
#[derive(Debug)]
pub struct Provider {
    /// Its name in the configuration.
    pub name: Name,
    /// What `iss` must be; empty: anything.
    pub issuer: String,
    /// One of these is in `aud`, without scheme and trailing slash; none: `aud` does not matter.
    pub audiences: Vec<String>,
    /// What `sub` must be.
    pub subjects: Option<StringMatcher>,
    /// Tokens without `exp` are refused.
    pub require_expiration: bool,
    /// The longest a token may be valid for.
    pub max_lifetime: Option<Duration>,
    /// The keys.
    pub keys: Keys,
    /// The token stays in the request.
    pub forward: bool,
    /// Gets the payload as it stands in the token.
    pub forward_payload_header: Option<HeaderName>,
    /// It is filled up to base64's full length.
    pub pad_forward_payload_header: bool,
    /// The payload becomes dynamic metadata under this key.
    pub payload_in_metadata: Option<String>,
    /// Claims whose words become a list there.
    pub space_delimited_claims: Vec<String>,
    /// The JOSE header becomes dynamic metadata under this key.
    pub header_in_metadata: Option<String>,
    /// What is wrong with a token becomes dynamic metadata under this key.
    pub failed_status_in_metadata: Option<String>,
    /// How far clocks may differ, in seconds (60 unless configured).
    pub clock_skew_seconds: u64,
    /// Headers that get claims: the header, and the claim's keys from the outside in.
    pub claim_to_headers: Vec<(HeaderName, Vec<String>)>,
    /// The request is routed anew once a token is verified.
    pub clear_route_cache: bool,
}

/// Where keys are from.
#[derive(Debug)]
pub enum Keys {
    /// The configuration.
    Local(Arc<Jwks>),
    /// A server.
    Remote(Arc<RemoteJwks>),
}

/// Where tokens are looked for, in the order Envoy verifies them.
#[derive(Debug, Default)]
pub struct Locations {
    /// Each place once.
    pub places: Vec<Location>,
}

/// One place.
#[derive(Debug)]
pub struct Location {
    /// The place.
    pub place: Place,
    /// Whose tokens may be there; empty ones are anybody's.
    pub issuers: Vec<String>,
}

/// Where a token may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A header, behind a prefix.
    Header(HeaderName, String),
    /// A query parameter.
    Parameter(String),
    /// A cookie.
    Cookie(String),
}

impl Location {
    /// Whether tokens of an issuer may be here.
    pub fn allows(&self, issuer: &str) -> bool {
        let allows = |known: &String| known.is_empty() || known == issuer;
        self.issuers.iter().any(allows)
    }
}

impl Locations {
    /// The places of some providers.
    pub fn of<'p>(providers: impl IntoIterator<Item = (&'p Provider, Vec<Place>)>) -> Self {
        let mut locations = Self::default();
        for (provider, places) in providers {
            for place in places {
                let issuer = provider.issuer.clone();
                match locations.places.iter_mut().find(|one| one.place == place) {
                    Some(known) => known.issuers.push(issuer),
                    None => locations.places.push(Location {
                        place,
                        issuers: vec![issuer],
                    }),
                }
            }
        }
        // Headers, parameters, cookies, each sorted; Envoy begins at the end of the list.
        let key = |location: &Location| match &location.place {
            Place::Header(name, prefix) => (0, format!("{name}{prefix}")),
            Place::Parameter(name) => (1, name.clone()),
            Place::Cookie(name) => (2, name.clone()),
        };
        locations.places.sort_by_key(key);
        locations
    }
}

impl Provider {
    /// Whether one of a token's audiences will do; `instead` of the provider's own.
    pub fn audience_allowed(&self, token: &Token<'_>, instead: Option<&[String]>) -> bool {
        let wanted = instead.unwrap_or(&self.audiences);
        wanted.is_empty()
            || token
                .audiences
                .iter()
                .any(|audience| wanted.iter().any(|one| one == bare_audience(audience)))
    }
}

/// An audience without scheme and trailing slash, by which audiences are compared.
pub fn bare_audience(audience: &str) -> &str {
    let bare = audience
        .strip_prefix("https://")
        .or_else(|| audience.strip_prefix("http://"))
        .unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}
