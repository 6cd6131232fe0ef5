//! Where tokens are in a request, and how they are taken out of it.

use bytes::Bytes;
use http::HeaderMap;
use http::header::COOKIE;

use crate::config::model::filter::jwt::{Location, Locations, Place};
use crate::proxy::http::message::{Path, Request, text};

/// A token and the place it stood in.
pub(super) struct Found<'l> {
    pub(super) token: String,
    pub(super) location: &'l Location,
}

/// All tokens, in the order of their places.
pub(super) fn find<'l>(locations: &'l Locations, request: &Request) -> Vec<Found<'l>> {
    let mut found = Vec::new();
    for location in &locations.places {
        let mut add = |token: String| found.push(Found { token, location });
        match &location.place {
            Place::Header(name, prefix) => {
                for value in request.headers.get_all(name) {
                    if let Some(token) = behind(text(value), prefix) {
                        add(token.to_owned());
                    }
                }
            }
            Place::Parameter(name) => {
                if let Some(token) = parameter(request.path.query(), name) {
                    add(token);
                }
            }
            Place::Cookie(name) => {
                if let Some(token) = cookie(&request.headers, name) {
                    add(token);
                }
            }
        }
    }
    found
}

/// What stands behind the prefix, from the first character that may belong to a token
/// (Envoy: `ExtractorImpl::extractJWT`).
fn behind<'v>(value: &'v str, prefix: &str) -> Option<&'v str> {
    if prefix.is_empty() {
        return Some(value);
    }
    let rest = &value[value.find(prefix)? + prefix.len()..];
    let of_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match rest.find(of_token) {
        Some(start) => Some(&rest[start..]),
        None => Some(value),
    }
}

fn parameter(query: Option<&str>, wanted: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name) == wanted).then(|| decoded(value))
    })
}

/// Percent-decoded; what is no escape stays.
fn decoded(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = text
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escape {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn cookie(headers: &HeaderMap, wanted: &str) -> Option<String> {
    let pairs = headers.get_all(COOKIE).iter();
    pairs
        .flat_map(|value| text(value).split(';'))
        .find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            (name == wanted).then(|| quoted.unwrap_or(value).to_owned())
        })
}

/// Takes what was verified out of the request. Cookies stay, as with Envoy.
pub(super) fn remove(place: &Place, request: &mut Request) {
    match place {
        Place::Header(name, _) => {
            request.headers.remove(name);
        }
        Place::Parameter(wanted) => {
            let Some(query) = request.path.query() else {
                return;
            };
            let kept: Vec<&str> = query
                .split('&')
                .filter(|pair| decoded(pair.split('=').next().unwrap_or_default()) != *wanted)
                .collect();
            let path = request.path.path();
            let path = match kept.join("&") {
                query if query.is_empty() => path.to_owned(),
                query => format!("{path}?{query}"),
            };
            if let Some(path) = Path::new(Bytes::from(path)) {
                request.path = path;
            }
        }
        Place::Cookie(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_begins_behind_its_prefix() {
        assert_eq!(behind("Bearer a.b.c", "Bearer "), Some("a.b.c"));
        assert_eq!(behind("x Bearer  ,a.b.c", "Bearer "), Some("a.b.c"));
        assert_eq!(behind("a.b.c", ""), Some("a.b.c"));
        assert_eq!(behind("Basic a", "Bearer "), None);
        assert_eq!(behind("Bearer ", "Bearer "), Some("Bearer "));
    }

    #[test]
    fn parameters_are_decoded() {
        assert_eq!(parameter(Some("a=1&t=x%2ey&t=z"), "t").unwrap(), "x.y");
        assert_eq!(parameter(Some("t"), "t").unwrap(), "");
        assert_eq!(parameter(Some("a=1"), "t"), None);
        assert_eq!(decoded("100%&%4"), "100%&%4");
    }
}
