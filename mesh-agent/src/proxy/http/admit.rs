//! What is done to every request before it is routed.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::model::listener::{HttpConnectionManager, StripPort};
use crate::config::model::route::without_port;

use super::Connection;
use super::headers;
use super::message::{Request, text};

/// Makes a request fit for routing.
pub(super) fn admit(request: &mut Request, hcm: &HttpConnectionManager, connection: &Connection) {
    join_single_valued(&mut request.headers);
    if hcm.strip_port != StripPort::No
        && let Some(stripped) = strip_port(&request.authority, hcm.strip_port, connection)
    {
        request.authority = stripped;
    }
    common(request, hcm, connection);
}

/// Headers of which Envoy keeps one, several values joined (its inline headers).
const SINGLE: [HeaderName; 12] = [
    http::header::ACCEPT,
    http::header::ACCEPT_ENCODING,
    http::header::AUTHORIZATION,
    http::header::CACHE_CONTROL,
    http::header::CONTENT_TYPE,
    http::header::USER_AGENT,
    http::header::TE,
    http::header::VIA,
    headers::FORWARDED_FOR,
    headers::FORWARDED_PROTO,
    headers::FORWARDED_HOST,
    headers::REQUEST_ID,
];

fn join_single_valued(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        return;
    }
    for name in SINGLE {
        headers::join(headers, name, b",");
    }
}

fn strip_port(
    authority: &HeaderValue,
    which: StripPort,
    connection: &Connection,
) -> Option<HeaderValue> {
    let whole = text(authority);
    let bare = without_port(whole);
    let port = whole.get(bare.len() + 1..)?;
    let strip = match which {
        StripPort::No => false,
        StripPort::Any => true,
        StripPort::Matching => port.parse() == Ok(connection.caught.destination.port()),
    };
    strip.then(|| HeaderValue::from_str(bare).ok()).flatten()
}

/// Headers every request gets.
fn common(request: &mut Request, hcm: &HttpConnectionManager, connection: &Connection) {
    let headers = &mut request.headers;
    headers::strip_internal(headers);
    if hcm.generate_request_id && !headers.contains_key(headers::REQUEST_ID) {
        headers.insert(headers::REQUEST_ID, headers::request_id());
    }
    if !headers.contains_key(headers::FORWARDED_PROTO) {
        let scheme = HeaderValue::from_static("http");
        headers.insert(headers::FORWARDED_PROTO, scheme);
    }
    if hcm.use_remote_address
        && !hcm.skip_xff_append
        && let Ok(peer) = HeaderValue::try_from(connection.caught.peer.ip().to_string())
    {
        headers::append_joined(headers, headers::FORWARDED_FOR, &peer);
    }
}
