//! `envoy.filters.http.jwt_authn`: verifies the tokens a request carries.

mod claims;
mod keys;
mod locate;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::config::model::filter::jwt::status::Status;
use crate::config::model::filter::jwt::token::Token;
use crate::config::model::filter::jwt::{
    JwtAuthn, Locations, PerRoute, Provider, ProviderCheck, Requirement,
};
use crate::proxy::http::headers;
use crate::proxy::http::message::{Reply, Request, text};
use crate::proxy::http::reply::{local, with_body};
use crate::proxy::http::router;

use super::Call;

/// Where filters behind find what was verified.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// How much of a path the realm tells, in bytes.
const LONGEST_PATH: usize = 256;

/// Lets a request pass, changed, or refuses it.
pub(super) async fn check(
    call: &Call<'_>,
    config: &JwtAuthn,
    said: Option<&PerRoute>,
    request: &mut Request,
) -> Result<(), Box<Reply>> {
    for name in &config.sanitize {
        request.headers.remove(name);
    }
    if config.bypass_cors_preflight && is_preflight(request) {
        return Ok(());
    }
    let requirement = match said {
        Some(PerRoute::Named(name)) => match config.requirements.get(name) {
            Some(Some(requirement)) => requirement,
            Some(None) => return Ok(()),
            None => return Err(Box::new(unknown_requirement(config, name))),
        },
        None => {
            let random = fastrand::u64(..);
            let seen = router::View {
                request: &*request,
                random,
                peer: call.connection.peer(),
            };
            let rule = config
                .rules
                .iter()
                .find(|rule| router::matches(&rule.matcher, &seen));
            match rule.and_then(|rule| rule.requirement.as_ref()) {
                Some(requirement) => requirement,
                None => return Ok(()),
            }
        }
    };
    // The token may be taken out of the path.
    let realm = realm(request);
    let mut verifying = Verifying {
        call,
        config,
        request,
        found: Map::new(),
        failed: Map::new(),
        reroute: false,
    };
    let verified = match requirement {
        Requirement::Provider(check) => verifying.provider(check).await,
        other => verifying.require(other).await,
    };
    let Verifying {
        mut found,
        failed,
        reroute,
        ..
    } = verifying;
    found.extend(failed);
    if !found.is_empty() {
        let metadata = &mut request.metadata;
        metadata.insert(Arc::from(NAMESPACE), Value::Object(found));
    }
    if let Err(status) = verified {
        return Err(Box::new(refusal(config, status, &realm)));
    }
    if reroute {
        call.reroute(request);
    }
    Ok(())
}

fn is_preflight(request: &Request) -> bool {
    let has = |name| {
        let value = request.headers.get(name);
        value.is_some_and(|value: &HeaderValue| !value.is_empty())
    };
    request.method == Method::OPTIONS
        && has(header::ORIGIN)
        && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn unknown_requirement(config: &JwtAuthn, name: &str) -> Reply {
    const DENIED: &str = "jwt_authn_access_denied{Wrong_requirement_name}";
    if config.strip_failure_response {
        return local(StatusCode::FORBIDDEN, "").because(DENIED);
    }
    with_body(
        StatusCode::FORBIDDEN,
        format!(
            "Failed JWT authentication: Wrong requirement_name: {name}. It should be one of [{}]",
            config
                .requirements
                .keys()
                .map(|name| &**name)
                .collect::<Vec<_>>()
                .join(","),
        )
        .into(),
    )
    .because(DENIED)
}

/// Scheme, host and the beginning of the path (Envoy: `Utility::buildOriginalUri`).
fn realm(request: &Request) -> String {
    let path = request.headers.get(headers::ORIGINAL_PATH);
    let path = path.map_or(request.path.as_str(), text);
    let scheme = request.headers.get(headers::FORWARDED_PROTO);
    format!(
        "{}://{}{}",
        scheme.map_or("", text),
        text(&request.authority),
        path.get(..LONGEST_PATH).unwrap_or(path)
    )
}

fn refusal(config: &JwtAuthn, status: Status, realm: &str) -> Reply {
    let code = match status {
        Status::AudienceNotAllowed => StatusCode::FORBIDDEN,
        _ => StatusCode::UNAUTHORIZED,
    };
    let details = status.text().replace(' ', "_");
    let details = format!("jwt_authn_access_denied{{{details}}}");
    if config.strip_failure_response {
        return local(code, "").because(details);
    }
    let mut reply = local(code, status.text()).because(details);
    let error = match status {
        Status::Missed => "",
        _ => ", error=\"invalid_token\"",
    };
    if let Ok(value) = HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{error}")) {
        reply.headers.insert(header::WWW_AUTHENTICATE, value);
    }
    reply
}

/// One request's verification.
struct Verifying<'a, 'c> {
    call: &'a Call<'c>,
    config: &'a JwtAuthn,
    request: &'a mut Request,
    /// What filters behind may read.
    found: Map<String, Value>,
    /// What is wrong with tokens.
    failed: Map<String, Value>,
    reroute: bool,
}

type Verified<'s> = Pin<Box<dyn Future<Output = Result<(), Status>> + 's>>;

impl<'a> Verifying<'a, '_> {
    fn require<'s>(&'s mut self, requirement: &'a Requirement) -> Verified<'s> {
        Box::pin(async move {
            match requirement {
                Requirement::Provider(check) => self.provider(check).await,
                Requirement::All(all) => {
                    for one in all {
                        self.require(one).await?;
                    }
                    Ok(())
                }
                Requirement::Any {
                    requirements,
                    allow_missing,
                    allow_failed,
                } => {
                    let mut outcome = Status::Missed;
                    for one in requirements {
                        match self.require(one).await {
                            Ok(()) => return Ok(()),
                            // A token of somebody else says less than one that is wrong.
                            Err(status) => {
                                let telling =
                                    !matches!(status, Status::Missed | Status::UnknownIssuer);
                                if telling || outcome == Status::Missed {
                                    outcome = status;
                                }
                            }
                        }
                    }
                    if *allow_failed || (*allow_missing && outcome == Status::Missed) {
                        return Ok(());
                    }
                    Err(outcome)
                }
                Requirement::AllowMissing(locations) => {
                    match self.tokens(locations, None, true).await {
                        Err(Status::Missed) => Ok(()),
                        other => other,
                    }
                }
                Requirement::AllowFailed(locations) => {
                    let _ = self.tokens(locations, None, true).await;
                    Ok(())
                }
            }
        })
    }

    async fn provider(&mut self, check: &'a ProviderCheck) -> Result<(), Status> {
        let verified = self.tokens(&check.locations, Some(check), false).await;
        if let Err(status) = verified
            && status != Status::Missed
            && let Some(key) = &check.provider.failed_status_in_metadata
        {
            let told = json!({ "code": status.code().to_string(), "message": status.text() });
            self.failed.insert(key.clone(), told);
        }
        verified
    }

    /// Unless `all` are only looked at, all tokens must be valid: who stands behind may look at any
    /// of them. Otherwise the last one counts (Envoy: `AuthenticatorImpl::doneWithStatus`).
    async fn tokens(
        &mut self,
        locations: &'a Locations,
        check: Option<&'a ProviderCheck>,
        all: bool,
    ) -> Result<(), Status> {
        let found = locate::find(locations, self.request);
        let mut outcome = Err(Status::Missed);
        for found in found.into_iter().rev() {
            outcome = self.token(&found, check).await;
            if outcome.is_err() && !all {
                return outcome;
            }
        }
        outcome
    }

    async fn token(
        &mut self,
        found: &locate::Found<'_>,
        check: Option<&'a ProviderCheck>,
    ) -> Result<(), Status> {
        let token = Token::parse(&found.token)?;
        if !found.location.allows(&token.issuer) {
            return Err(Status::UnknownIssuer);
        }
        let provider: &'a Provider = match check {
            Some(check) => &check.provider,
            None => {
                let all = &self.config.providers;
                let named = all.iter().find(|one| one.issuer == token.issuer);
                let named = named.or_else(|| all.iter().find(|one| one.issuer.is_empty()));
                named.ok_or(Status::UnknownIssuer)?
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        token.valid_at(now, provider.clock_skew_seconds)?;
        let audiences = check.and_then(|check| check.audiences.as_deref());
        if !provider.audience_allowed(&token, audiences) {
            return Err(Status::AudienceNotAllowed);
        }
        if let Some(subjects) = &provider.subjects
            && !subjects.matches(&token.subject)
        {
            return Err(Status::VerificationFail);
        }
        let expires = token.expires.filter(|expires| *expires > 0);
        let left = expires.map(|until| until.saturating_sub(now));
        let lifetime = match (left, provider.max_lifetime) {
            (None, most) => !provider.require_expiration && most.is_none(),
            (Some(left), Some(most)) => left <= most.as_secs(),
            (Some(_), None) => true,
        };
        if !lifetime {
            return Err(Status::VerificationFail);
        }
        let keys = keys::of(self.call, &provider.keys).await?;
        keys.verify(&token)?;
        claims::tell(provider, &token, self.request, &mut self.found);
        if !provider.forward {
            locate::remove(&found.location.place, self.request);
        }
        self.reroute |= provider.clear_route_cache;
        Ok(())
    }
}
