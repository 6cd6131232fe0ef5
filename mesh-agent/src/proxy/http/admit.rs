//! What is done to every request before it is routed, and what is refused whatever the routes
//! say.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request,
};

use crate::config::model::listener::{HttpConnectionManager, StripPort};
use crate::config::model::route::without_port;

use super::Connection;
use super::body::ProxyBody;
use super::headers;
use super::reply::local;

/// Makes a request fit for routing and returns its authority, or refuses it.
pub(super) fn admit(
    parts: &mut request::Parts,
    hcm: &HttpConnectionManager,
    connection: &Connection,
) -> Result<HeaderValue, Refusal> {
    refuse(parts, hcm)?;
    join_single_valued(&mut parts.headers);
    let mut authority = headers::authority(parts);
    if authority.is_empty()
        && parts.version == Version::HTTP_10
        && let Some(default) = &hcm.default_host_for_http_10
        && let Ok(default) = HeaderValue::from_str(default)
    {
        authority = default;
    }
    if hcm.strip_port != StripPort::No
        && let Some(stripped) = strip_port(&authority, hcm.strip_port, connection)
    {
        authority = stripped;
    }
    common(parts, hcm, connection);
    Ok(authority)
}

/// Why a request is not taken; the connection ends with the answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal(StatusCode, &'static str);

impl Refusal {
    /// A request that breaks the protocol.
    const MALFORMED: Self = Self(StatusCode::BAD_REQUEST, "Bad Request");

    /// The answer.
    pub(super) fn reply(self) -> Response<ProxyBody> {
        let mut response = local(self.0, self.1);
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

fn refuse(parts: &request::Parts, hcm: &HttpConnectionManager) -> Result<(), Refusal> {
    if parts.version == Version::HTTP_10 && !hcm.accept_http_10 {
        return Err(Refusal(StatusCode::UPGRADE_REQUIRED, ""));
    }
    // Both lengths at once is how requests are smuggled (RFC 9112, 6.1).
    if parts.headers.contains_key(header::TRANSFER_ENCODING)
        && parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        return Err(Refusal::MALFORMED);
    }
    if parts.uri.path() == "*" && parts.method != Method::OPTIONS {
        return Err(Refusal::MALFORMED);
    }
    if parts.version == Version::HTTP_11 {
        match parts.headers.get_all(header::HOST).iter().count() {
            0 => return Err(Refusal(StatusCode::BAD_REQUEST, "")),
            1 => {}
            _ => return Err(Refusal::MALFORMED),
        }
    }
    Ok(())
}

/// Headers of which Envoy keeps one, several values joined (its inline headers).
const SINGLE: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::USER_AGENT,
    header::TE,
    header::VIA,
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
    let text = authority.to_str().ok()?;
    let bare = without_port(text);
    let port = text.get(bare.len() + 1..)?;
    let strip = match which {
        StripPort::No => false,
        StripPort::Any => true,
        StripPort::Matching => port == connection.caught.destination.port().to_string(),
    };
    strip.then(|| HeaderValue::from_str(bare).ok()).flatten()
}

/// Headers every request gets.
fn common(parts: &mut request::Parts, hcm: &HttpConnectionManager, connection: &Connection) {
    if hcm.generate_request_id && !parts.headers.contains_key(headers::REQUEST_ID) {
        parts
            .headers
            .insert(headers::REQUEST_ID, headers::request_id());
    }
    if !parts.headers.contains_key(headers::FORWARDED_PROTO) {
        parts
            .headers
            .insert(headers::FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if hcm.use_remote_address
        && !hcm.skip_xff_append
        && let Ok(peer) = HeaderValue::try_from(connection.caught.peer.ip().to_string())
    {
        headers::append_joined(&mut parts.headers, headers::FORWARDED_FOR, &peer);
    }
}
