//! `envoy.filters.http.jwt_authn`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_requirement::RequiresType;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::per_route_config::RequirementSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::requirement_rule::RequirementType;
use http::{HeaderName, header};

use crate::config::convert::{Problems, duration, matcher, route};
use crate::config::model::filter::FilterOverride;
use crate::config::model::filter::jwt::jwks::Jwks;
use crate::config::model::filter::jwt::remote::RemoteJwks;
use crate::config::model::filter::jwt::{
    JwtAuthn, Keys, Locations, PerRoute, Place, Provider, ProviderCheck, Requirement, Rule,
    bare_audience,
};

use super::service;

/// Envoy's defaults.
const CLOCK_SKEW_SECONDS: u64 = 60;
const KEEP: Duration = Duration::from_secs(600);
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// In the background keys are fetched so much before they are old.
const AHEAD: Duration = Duration::from_secs(5);

/// A provider and where its tokens are.
struct Known {
    provider: Arc<Provider>,
    places: Vec<Place>,
}

type Providers = BTreeMap<String, Known>;

pub(super) fn convert(
    message: &pb::JwtAuthentication,
    path: &str,
    problems: &mut Problems,
) -> Option<JwtAuthn> {
    let mut providers = Providers::new();
    for (name, provider) in &message.providers {
        let path = format!("{path}.providers[{name}]");
        let known = self::provider(name, provider, &path, problems)?;
        providers.insert(name.clone(), known);
    }
    let mut requirements = BTreeMap::new();
    for (name, one) in &message.requirement_map {
        let path = format!("{path}.requirement_map[{name}]");
        let one = requirement(one, &providers, &path, problems)?;
        requirements.insert(name.as_str().into(), one);
    }
    let rules = message
        .rules
        .iter()
        .enumerate()
        .map(|(i, rule)| {
            let path = format!("{path}.rules[{i}]");
            let Some(matched) = &rule.r#match else {
                problems.push(format!("{path}.match"), "is missing");
                return None;
            };
            let requirement = match &rule.requirement_type {
                None => None,
                Some(RequirementType::Requires(one)) => {
                    requirement(one, &providers, &format!("{path}.requires"), problems)?
                }
                Some(RequirementType::RequirementName(name)) => {
                    let Some(one) = message.requirement_map.get(name) else {
                        problems.push(
                            format!("{path}.requirement_name"),
                            format!("requirement_map does not have {name}"),
                        );
                        return None;
                    };
                    requirement(one, &providers, &path, problems)?
                }
            };
            let matcher = route::route_match(matched, &format!("{path}.match"), problems)?;
            Some(Rule {
                matcher,
                requirement,
            })
        })
        .collect::<Option<_>>()?;
    let sanitize = providers.values().flat_map(|known| {
        let claims = known.provider.claim_to_headers.iter();
        let payload = known.provider.forward_payload_header.iter();
        payload.chain(claims.map(|(header, _)| header)).cloned()
    });
    Some(JwtAuthn {
        sanitize: sanitize.collect(),
        providers: providers
            .into_values()
            .map(|known| known.provider)
            .collect(),
        rules,
        requirements,
        bypass_cors_preflight: message.bypass_cors_preflight,
        strip_failure_response: message.strip_failure_response,
    })
}

pub(super) fn per_route(
    message: &pb::PerRouteConfig,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterOverride> {
    match &message.requirement_specifier {
        Some(RequirementSpecifier::Disabled(true)) => Some(FilterOverride::Disabled),
        Some(RequirementSpecifier::RequirementName(name)) if !name.is_empty() => {
            Some(FilterOverride::Jwt(PerRoute::Named(name.as_str().into())))
        }
        _ => {
            problems.push(path, "says nothing: disabled: true, or a requirement_name");
            None
        }
    }
}

fn header_name(name: &str, path: &str, problems: &mut Problems) -> Option<HeaderName> {
    let parsed = HeaderName::try_from(name);
    if parsed.is_err() {
        problems.push(path, format!("{name:?} is not a header name"));
    }
    parsed.ok()
}

fn provider(
    name: &str,
    message: &pb::JwtProvider,
    path: &str,
    problems: &mut Problems,
) -> Option<Known> {
    let mut places = Vec::new();
    for (i, from) in message.from_headers.iter().enumerate() {
        let path = format!("{path}.from_headers[{i}].name");
        let name = header_name(&from.name, &path, problems)?;
        places.push(Place::Header(name, from.value_prefix.clone()));
    }
    places.extend(message.from_params.iter().cloned().map(Place::Parameter));
    places.extend(message.from_cookies.iter().cloned().map(Place::Cookie));
    if places.is_empty() {
        places.push(Place::Header(header::AUTHORIZATION, "Bearer ".into()));
        places.push(Place::Parameter("access_token".into()));
    }
    let forward_payload_header = match message.forward_payload_header.as_str() {
        "" => None,
        name => Some(header_name(
            name,
            &format!("{path}.forward_payload_header"),
            problems,
        )?),
    };
    let mut claim_to_headers = Vec::new();
    for (i, one) in message.claim_to_headers.iter().enumerate() {
        let path = format!("{path}.claim_to_headers[{i}]");
        let name = header_name(&one.header_name, &format!("{path}.header_name"), problems)?;
        let keys: Vec<String> = if one.claim_path.is_empty() {
            one.claim_name.split('.').map(str::to_owned).collect()
        } else {
            one.claim_path.iter().map(|one| one.key.clone()).collect()
        };
        if keys.iter().any(String::is_empty) {
            problems.push(format!("{path}.claim_name"), "a name is missing");
            return None;
        }
        claim_to_headers.push((name, keys));
    }
    let subjects = match &message.subjects {
        Some(one) => Some(matcher::string(one, &format!("{path}.subjects"), problems)?),
        None => None,
    };
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let provider = Provider {
        name: name.into(),
        issuer: message.issuer.clone(),
        audiences: bare(&message.audiences),
        subjects,
        require_expiration: message.require_expiration,
        max_lifetime: message
            .max_lifetime
            .as_ref()
            .map(|time| duration(time, &format!("{path}.max_lifetime"), problems)),
        keys: keys(message, path, problems)?,
        forward: message.forward,
        forward_payload_header,
        pad_forward_payload_header: message.pad_forward_payload_header,
        payload_in_metadata: text(&message.payload_in_metadata),
        space_delimited_claims: message
            .normalize_payload_in_metadata
            .as_ref()
            .map(|one| one.space_delimited_claims.clone())
            .unwrap_or_default(),
        header_in_metadata: text(&message.header_in_metadata),
        failed_status_in_metadata: text(&message.failed_status_in_metadata),
        clock_skew_seconds: match message.clock_skew_seconds {
            0 => CLOCK_SKEW_SECONDS,
            seconds => seconds.into(),
        },
        claim_to_headers,
        clear_route_cache: message.clear_route_cache,
    };
    Some(Known {
        provider: Arc::new(provider),
        places,
    })
}

fn bare(audiences: &[String]) -> Vec<String> {
    let bare = audiences.iter().map(|one| bare_audience(one).to_owned());
    bare.collect()
}

fn keys(message: &pb::JwtProvider, path: &str, problems: &mut Problems) -> Option<Keys> {
    match &message.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => {
            let path = format!("{path}.local_jwks");
            let bytes = match &source.specifier {
                Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
                Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
                Some(Specifier::Filename(file)) => match std::fs::read(file) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        problems.push(path, format!("cannot read {file}: {error}"));
                        return None;
                    }
                },
                _ => {
                    problems.push(path, "needs inline_string, inline_bytes or filename");
                    return None;
                }
            };
            match Jwks::parse(&bytes) {
                Ok(keys) => Some(Keys::Local(Arc::new(keys))),
                Err(status) => {
                    problems.push(path, status.text());
                    None
                }
            }
        }
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => {
            let path = format!("{path}.remote_jwks");
            let written = remote.http_uri.as_ref().map_or("", |uri| &uri.uri);
            if !written.contains("://") {
                problems.push(format!("{path}.http_uri.uri"), "has no scheme");
                return None;
            }
            let uri = service::http_uri(
                remote.http_uri.as_ref(),
                &format!("{path}.http_uri"),
                problems,
            )?;
            let background = remote.async_fetch.as_ref();
            let keep = remote.cache_duration.as_ref().map_or(KEEP, |time| {
                duration(time, &format!("{path}.cache_duration"), problems)
            });
            let ahead = if background.is_some() && keep > AHEAD {
                AHEAD
            } else {
                Duration::ZERO
            };
            let again_after = background
                .and_then(|background| background.failed_refetch_duration.as_ref())
                .map_or(AGAIN_AFTER, |time| {
                    let path = format!("{path}.async_fetch.failed_refetch_duration");
                    duration(time, &path, problems)
                });
            let remote = RemoteJwks::new(uri, keep - ahead, background.is_some(), again_after);
            Some(Keys::Remote(Arc::new(remote)))
        }
        None => {
            problems.push(path, "keys are missing: local_jwks or remote_jwks");
            None
        }
    }
}

/// `Some(None)`: nothing is required.
fn requirement(
    message: &pb::JwtRequirement,
    providers: &Providers,
    path: &str,
    problems: &mut Problems,
) -> Option<Option<Requirement>> {
    let Some(requires) = &message.requires_type else {
        return Some(None);
    };
    let everybody = || {
        let all = providers.values();
        Locations::of(all.map(|known| (&*known.provider, known.places.clone())))
    };
    Some(Some(match requires {
        RequiresType::ProviderName(name) => {
            let field = format!("{path}.provider_name");
            Requirement::Provider(check(name, None, providers, &field, problems)?)
        }
        RequiresType::ProviderAndAudiences(both) => {
            let field = format!("{path}.provider_and_audiences.provider_name");
            let audiences = (!both.audiences.is_empty()).then(|| bare(&both.audiences));
            Requirement::Provider(check(
                &both.provider_name,
                audiences,
                providers,
                &field,
                problems,
            )?)
        }
        RequiresType::RequiresAny(list) => {
            let path = format!("{path}.requires_any");
            any(&list.requirements, providers, &path, problems)?
        }
        RequiresType::RequiresAll(list) => {
            let mut all = Vec::new();
            for (i, one) in list.requirements.iter().enumerate() {
                let path = format!("{path}.requires_all.requirements[{i}]");
                all.extend(requirement(one, providers, &path, problems)?);
            }
            Requirement::All(all)
        }
        RequiresType::AllowMissing(_) => Requirement::AllowMissing(everybody()),
        RequiresType::AllowMissingOrFailed(_) => Requirement::AllowFailed(everybody()),
        RequiresType::ExtractOnlyWithoutValidation(_) => {
            problems.hint(
                format!("{path}.extract_only_without_validation"),
                "is not supported",
                "tokens are never believed unverified",
            );
            return None;
        }
    }))
}

fn any(
    list: &[pb::JwtRequirement],
    providers: &Providers,
    path: &str,
    problems: &mut Problems,
) -> Option<Requirement> {
    let has = |wanted: fn(&RequiresType) -> bool| {
        list.iter()
            .any(|one| one.requires_type.as_ref().is_some_and(wanted))
    };
    let allow_missing = has(|one| matches!(one, RequiresType::AllowMissing(_)));
    let allow_failed = has(|one| matches!(one, RequiresType::AllowMissingOrFailed(_)));
    let mut requirements = Vec::new();
    for (i, one) in list.iter().enumerate() {
        if matches!(
            one.requires_type,
            Some(RequiresType::AllowMissing(_) | RequiresType::AllowMissingOrFailed(_))
        ) {
            continue;
        }
        let path = format!("{path}.requirements[{i}]");
        match requirement(one, providers, &path, problems)? {
            Some(one) => requirements.push(one),
            // Nothing at all will do.
            None => return Some(Requirement::All(Vec::new())),
        }
    }
    if requirements.is_empty() {
        let all = providers.values();
        let all = Locations::of(all.map(|known| (&*known.provider, known.places.clone())));
        return Some(if allow_failed {
            Requirement::AllowFailed(all)
        } else {
            Requirement::AllowMissing(all)
        });
    }
    Some(Requirement::Any {
        requirements,
        allow_missing,
        allow_failed,
    })
}

fn check(
    name: &str,
    audiences: Option<Vec<String>>,
    providers: &Providers,
    path: &str,
    problems: &mut Problems,
) -> Option<ProviderCheck> {
    let Some(known) = providers.get(name) else {
        problems.push(path, format!("provider {name} is not configured"));
        return None;
    };
    Some(ProviderCheck {
        provider: known.provider.clone(),
        locations: Locations::of([(&*known.provider, known.places.clone())]),
        audiences,
    })
}
