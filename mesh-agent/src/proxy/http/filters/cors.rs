//! `envoy.filters.http.cors`: which scripts may see responses.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use smallvec::SmallVec;

use crate::config::model::filter::cors::CorsPolicy;
use crate::proxy::http::message::{Reply, Request, text};
use crate::proxy::http::reply::local;

use super::{Answered, Step};

const ASKS_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");
const YES: HeaderValue = HeaderValue::from_static("true");

/// The policies of route and virtual host, the route's first: what one does not say the next may.
type Policies = SmallVec<[Arc<CorsPolicy>; 2]>;

fn said<T>(policies: &Policies, what: impl Fn(&CorsPolicy) -> Option<T>) -> Option<T> {
    policies.iter().find_map(|policy| what(policy))
}

fn allows(policies: &Policies, origin: &str) -> bool {
    let with_origins = policies
        .iter()
        .find(|policy| !policy.allow_origins.is_empty());
    with_origins.is_some_and(|policy| {
        policy
            .allow_origins
            .iter()
            .any(|matcher| matcher.matches("*") || matcher.matches(origin))
    })
}

/// Answers a preflight, or notes that the response is for a script of another origin.
pub(super) fn check(
    policies: Policies,
    request: &Request,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Answered> {
    let Some(first) = policies.first() else {
        return Ok(());
    };
    let Some(origin) = request.headers.get(header::ORIGIN) else {
        return Ok(());
    };
    if origin.is_empty() || !first.enabled.holds(fastrand::u64(..)) {
        return Ok(());
    }
    let preflight = request.method == Method::OPTIONS
        && request
            .headers
            .get(header::ACCESS_CONTROL_REQUEST_METHOD)
            .is_some_and(|method| !method.is_empty());
    let allowed = allows(&policies, text(origin));
    if !preflight {
        if allowed {
            let origin = origin.clone();
            steps.push(Step::Cors { policies, origin });
        }
        return Ok(());
    }
    let forward = said(&policies, |policy| policy.forward_not_matching_preflights);
    if !allowed && forward != Some(false) {
        return Ok(());
    }
    let mut reply = local(StatusCode::OK, "").because("cors_response");
    let headers = &mut reply.headers;
    if allowed {
        grant(headers, &policies, origin.clone());
    }
    let mut copy = |name, value: Option<HeaderValue>| {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    };
    copy(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        said(&policies, |policy| policy.allow_methods.clone()),
    );
    copy(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        said(&policies, |policy| policy.allow_headers.clone()),
    );
    copy(
        header::ACCESS_CONTROL_MAX_AGE,
        said(&policies, |policy| policy.max_age.clone()),
    );
    let private = said(&policies, |policy| policy.allow_private_network) == Some(true);
    if allowed && private && request.headers.get(ASKS_PRIVATE_NETWORK) == Some(&YES) {
        copy(ALLOW_PRIVATE_NETWORK, Some(YES));
    }
    Err(Answered::Whole(Box::new(reply)))
}

fn grant(headers: &mut HeaderMap, policies: &Policies, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if said(policies, |policy| policy.allow_credentials) == Some(true) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, YES);
    }
    if let Some(exposed) = said(policies, |policy| policy.expose_headers.clone()) {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

/// Completes a response.
pub(super) fn finish(reply: &mut Reply, policies: &Policies, origin: HeaderValue) {
    grant(&mut reply.headers, policies, origin);
}
