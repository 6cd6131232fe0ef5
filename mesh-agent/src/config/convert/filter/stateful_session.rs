//! `envoy.filters.http.stateful_session`

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route::Override;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use http::{HeaderName, StatusCode};

use crate::config::convert::{Problems, decode, duration, type_name};
use crate::config::model::filter::FilterOverride;
use crate::config::model::filter::stateful_session::{SessionState, StatefulSession};
use crate::config::model::hash::CookieHash;

const COOKIE: &str = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
const HEADER: &str = "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState";

pub(super) fn convert(
    message: &pb::StatefulSession,
    path: &str,
    problems: &mut Problems,
) -> Option<StatefulSession> {
    let any = message
        .session_state
        .as_ref()
        .and_then(|state| state.typed_config.as_ref());
    let path = format!("{path}.session_state.typed_config");
    let state = match any.map(|any| (type_name(any), any)) {
        None => None,
        Some((COOKIE, any)) => {
            let state: CookieBasedSessionState = decode(any, &path, problems)?;
            let cookie = state.cookie.unwrap_or_default();
            if cookie.name.is_empty() {
                problems.push(format!("{path}.cookie.name"), "a name is missing");
                return None;
            }
            let ttl = cookie.ttl.as_ref();
            Some(SessionState::Cookie(CookieHash {
                name: cookie.name.as_str().into(),
                ttl: ttl.map(|ttl| duration(ttl, &format!("{path}.cookie.ttl"), problems)),
                path: cookie.path.as_str().into(),
                attributes: cookie
                    .attributes
                    .iter()
                    .map(|one| (one.name.as_str().into(), one.value.as_str().into()))
                    .collect(),
            }))
        }
        Some((HEADER, any)) => {
            let state: HeaderBasedSessionState = decode(any, &path, problems)?;
            let Ok(name) = HeaderName::try_from(state.name.as_str()) else {
                problems.push(format!("{path}.name"), "is not a header name");
                return None;
            };
            Some(SessionState::Header(name))
        }
        Some((other, _)) => {
            problems.push(path, format!("{other} is not supported"));
            return None;
        }
    };
    let status = u16::try_from(message.status_on_strict_destination_not_found).ok();
    Some(StatefulSession {
        state,
        strict: message.strict,
        status: status
            .filter(|status| *status != 0)
            .and_then(|status| StatusCode::from_u16(status).ok())
            .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
    })
}

pub(super) fn per_route(
    message: &pb::StatefulSessionPerRoute,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterOverride> {
    match &message.r#override {
        Some(Override::Disabled(true)) => Some(FilterOverride::Disabled),
        Some(Override::StatefulSession(session)) => {
            let path = format!("{path}.stateful_session");
            convert(session, &path, problems)
                .map(|session| FilterOverride::StatefulSession(Arc::new(session)))
        }
        Some(Override::Disabled(false)) | None => {
            problems.push(path, "says nothing: disabled: true, or stateful_session");
            None
        }
    }
}
