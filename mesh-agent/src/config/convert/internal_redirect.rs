//! Internal redirects of routes.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::internal_redirect::allow_listed_routes::v3::AllowListedRoutesConfig;
use http::{HeaderName, StatusCode};

use crate::config::model::internal_redirect::{InternalRedirect, Predicate};

use super::{Problems, decode, type_name};

const ALLOW_LISTED: &str =
    "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig";
const PREVIOUS: &str = "envoy.extensions.internal_redirect.previous_routes.v3.PreviousRoutesConfig";
const SAFE: &str = "envoy.extensions.internal_redirect.safe_cross_scheme.v3.SafeCrossSchemeConfig";

/// Codes by which a response can send a client elsewhere; others are ignored, as in Envoy.
const CODES: [u32; 5] = [301, 302, 303, 307, 308];

pub(super) fn convert(
    message: &pb::InternalRedirectPolicy,
    path: &str,
    problems: &mut Problems,
) -> InternalRedirect {
    let predicates = message
        .predicates
        .iter()
        .enumerate()
        .filter_map(|(i, predicate)| {
            let path = format!("{path}.predicates[{i}]");
            let any = predicate.typed_config.as_ref();
            match any.map_or("", type_name) {
                PREVIOUS => Some(Predicate::PreviousRoutes),
                SAFE => Some(Predicate::SafeCrossScheme),
                ALLOW_LISTED => {
                    let config: AllowListedRoutesConfig = decode(any?, &path, problems)?;
                    let names = config.allowed_route_names.iter();
                    Some(Predicate::AllowListed(
                        names.map(|name| name.as_str().into()).collect(),
                    ))
                }
                kind => {
                    problems.hint(
                        path,
                        format!("predicate {} ({kind}) is not supported", predicate.name),
                        "known are previous_routes, allow_listed_routes and safe_cross_scheme",
                    );
                    None
                }
            }
        })
        .collect();
    let copied = message
        .response_headers_to_copy
        .iter()
        .enumerate()
        .filter_map(|(i, name)| match HeaderName::try_from(name.as_str()) {
            Ok(name) => Some(name),
            Err(_) => {
                problems.push(
                    format!("{path}.response_headers_to_copy[{i}]"),
                    format!("{name:?} is not a header name"),
                );
                None
            }
        })
        .collect();
    let statuses = match &message.redirect_response_codes[..] {
        [] => vec![StatusCode::FOUND],
        codes => codes
            .iter()
            .filter(|code| CODES.contains(code))
            .filter_map(|code| StatusCode::from_u16(u16::try_from(*code).ok()?).ok())
            .collect(),
    };
    InternalRedirect {
        max: message
            .max_internal_redirects
            .as_ref()
            .map_or(1, |max| max.value),
        statuses,
        predicates,
        cross_scheme: message.allow_cross_scheme_redirect,
        copied,
    }
}
