//! Requests that ask for another protocol on their connection (RFC 9110, 7.8).

use http::{HeaderValue, Method, header};

use crate::config::model::listener::HttpConnectionManager;
use crate::config::model::route::Forward;

use super::h1::has_token;
use super::message::{Request, text};

/// The protocol a request asks for; CONNECT asks for none of them. HTTP/2 is only spoken by prior knowledge or ALPN here, so
/// that wish is no more than a header.
pub(super) fn wanted(request: &Request) -> Option<&HeaderValue> {
    static CONNECT: HeaderValue = HeaderValue::from_static("connect");
    if request.method == Method::CONNECT {
        return Some(&CONNECT);
    }
    let wanted = request.headers.get(header::UPGRADE)?;
    let asked = has_token(&request.headers, &header::CONNECTION, "upgrade");
    (asked && !text(wanted).eq_ignore_ascii_case("h2c")).then_some(wanted)
}

/// Whether the route, or else the connection manager, allows it.
pub(super) fn allowed(
    wanted: &HeaderValue,
    hcm: &HttpConnectionManager,
    forward: Option<&Forward>,
) -> bool {
    let is = |known: &str| known.eq_ignore_ascii_case(text(wanted));
    forward
        .and_then(|forward| forward.upgrades.iter().find(|(known, _)| is(known)))
        .map_or_else(
            || hcm.upgrades.iter().any(|known| is(known)),
            |(_, enabled)| *enabled,
        )
}
