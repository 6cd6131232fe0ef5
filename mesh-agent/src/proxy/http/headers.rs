//! Headers on their way through: hop-by-hop ones, Envoy's own, and configured mutations.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::h1::has_token;
use crate::config::model::access_log::Piece;
use crate::config::model::headers::{AppendAction, HeaderMutations, HeaderTemplate};

/// `x-request-id`
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-envoy-external-address`
pub(super) const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
/// `x-envoy-internal`
pub(super) const INTERNAL_REQUEST: HeaderName = HeaderName::from_static("x-envoy-internal");
/// `x-forwarded-proto`
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `x-forwarded-for`
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `x-forwarded-port`
pub(super) const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// `x-forwarded-host`
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `x-envoy-expected-rq-timeout-ms`
pub(super) const EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
/// `x-envoy-original-host`
pub(super) const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
/// `x-envoy-original-path`
pub(super) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// `x-envoy-original-url`
pub(super) const ORIGINAL_URL: HeaderName = HeaderName::from_static("x-envoy-original-url");
/// `x-envoy-upstream-service-time`
pub(super) const SERVICE_TIME: HeaderName =
    HeaderName::from_static("x-envoy-upstream-service-time");
/// `x-envoy-attempt-count`
pub(super) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// `x-envoy-is-timeout-retry`
pub(super) const IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");
/// `x-envoy-overloaded`
pub(super) const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what is about one connection only, what `connection` lists included (RFC 9110, 7.6.1).
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        join(headers, header::CONNECTION, b",");
        let listed = headers.remove(header::CONNECTION);
        let listed = listed.as_ref().and_then(|listed| listed.to_str().ok());
        for name in listed.unwrap_or_default().split(',').map(str::trim) {
            // `te: trailers` is asked for end to end by gRPC.
            if !name.eq_ignore_ascii_case("te") {
                headers.remove(name);
            }
        }
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    if headers.contains_key(header::TE) {
        if has_token(headers, &header::TE, "trailers") {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
}

/// Headers by which Envoys speak to each other: what comes from outside must not steer the mesh
/// (Envoy: `ConnectionManagerUtility::cleanInternalHeaders`).
const INTERNAL: [&str; 13] = [
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
];

/// Removes what nobody outside may say at the edge of the mesh.
pub(super) fn strip_at_the_edge(headers: &mut HeaderMap) {
    for name in [
        "x-envoy-decorator-operation",
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-original-path",
        "x-envoy-original-host",
    ] {
        headers.remove(name);
    }
}

/// Removes what a client must not say.
pub(super) fn strip_internal(headers: &mut HeaderMap) {
    if headers
        .keys()
        .any(|name| name.as_str().starts_with("x-envoy-"))
    {
        for name in INTERNAL {
            headers.remove(name);
        }
    }
}

/// Applies one level of mutations: removals first, then all values are computed from what is
/// left, then they are put in, overwriting ones first (Envoy: `HeaderParser::evaluateHeaders`).
/// `value` evaluates a template while the headers are as it sees them.
pub(super) fn mutate(
    headers: &mut HeaderMap,
    mutations: &HeaderMutations,
    value: impl Fn(&HeaderMap, &[Piece]) -> Vec<u8>,
) {
    for name in &mutations.remove {
        headers.remove(name);
    }
    let mut values: SmallVec<[(&HeaderName, HeaderValue, bool); 4]> = SmallVec::new();
    for addition in &mutations.add {
        let value = match &addition.value {
            HeaderTemplate::Literal(value) => value.clone(),
            HeaderTemplate::Format(pieces) => match HeaderValue::try_from(value(headers, pieces)) {
                Ok(value) => value,
                Err(_) => continue,
            },
        };
        if value.is_empty() && !addition.keep_empty_value {
            continue;
        }
        let there = || headers.contains_key(&addition.name);
        let overwrite = match addition.append {
            AppendAction::AppendIfExistsOrAdd => false,
            AppendAction::AddIfAbsent if there() => continue,
            AppendAction::AddIfAbsent => false,
            AppendAction::OverwriteIfExists if !there() => continue,
            AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd => true,
        };
        values.push((&addition.name, value, overwrite));
    }
    for (name, value, _) in values.iter().filter(|(_, _, overwrite)| *overwrite) {
        headers.insert(*name, value.clone());
    }
    for (name, value, overwrite) in values {
        if !overwrite {
            headers.append(name, value);
        }
    }
}

/// A random UUID (version 4).
pub(super) fn request_id() -> HeaderValue {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let text = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    HeaderValue::try_from(text).expect("hexadecimal digits are a header value")
}

/// Makes one value of several.
pub(super) fn join(headers: &mut HeaderMap, name: HeaderName, separator: &[u8]) {
    let mut values = headers.get_all(&name).iter();
    let (Some(first), Some(second)) = (values.next(), values.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for value in std::iter::once(second).chain(values) {
        joined.extend_from_slice(separator);
        joined.extend_from_slice(value.as_bytes());
    }
    if let Ok(joined) = HeaderValue::try_from(joined) {
        headers.insert(name, joined);
    }
}

/// Adds to a header that has one value, separated by a comma.
pub(super) fn append_joined(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    headers.append(name.clone(), value.clone());
    join(headers, name, b",");
}

/// Adds to a header whose values are a list, written in one line.
pub(super) fn append_list(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append(name.clone(), value);
        join(headers, name, b", ");
    }
}
