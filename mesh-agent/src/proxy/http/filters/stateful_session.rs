//! `envoy.filters.http.stateful_session`: the client brings along which endpoint it belongs to.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, header};
use prost::Message;
use smallvec::SmallVec;

use crate::config::model::filter::stateful_session::{SessionState, StatefulSession};
use crate::config::model::hash::CookieHash;
use crate::proxy::http::message::{Pinned, Reply, Request, text};

use super::Step;

/// What a cookie holds (Envoy: `envoy.Cookie`).
#[derive(Clone, PartialEq, Message)]
struct Cookie {
    #[prost(string, tag = "1")]
    address: String,
    /// Seconds since 1970; zero: never.
    #[prost(int64, tag = "2")]
    expires: i64,
}

/// What is left to do when the response comes.
#[derive(Debug)]
pub(super) struct Pending {
    config: Arc<StatefulSession>,
    wanted: Option<SocketAddr>,
    used: Rc<Cell<Option<SocketAddr>>>,
}

/// Sends a request to the endpoint of its session.
pub(super) fn pin(
    config: &Arc<StatefulSession>,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) {
    let wanted = match &config.state {
        None => return,
        Some(SessionState::Cookie(cookie)) => {
            if !is_below(request.path.path(), &cookie.path) {
                return;
            }
            of_cookie(request, &cookie.name)
        }
        Some(SessionState::Header(name)) => {
            let value = request.headers.get(name).map(text);
            value
                .and_then(|value| STANDARD.decode(value).ok())
                .and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok())
        }
    };
    let used = Rc::new(Cell::new(None));
    request.pinned = Some(Pinned {
        address: wanted,
        strict: config.strict.then_some(config.status),
        used: used.clone(),
    });
    steps.push(Step::Session(Box::new(Pending {
        config: config.clone(),
        wanted,
        used,
    })));
}

/// Whether a cookie of a path is for a request (RFC 6265, 5.1.4).
fn is_below(path: &str, of: &str) -> bool {
    match path.strip_prefix(of) {
        _ if of.is_empty() || of == "/" => true,
        Some(rest) => of.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

fn of_cookie(request: &Request, wanted: &str) -> Option<SocketAddr> {
    let values = request.headers.get_all(header::COOKIE).iter();
    let value = values
        .flat_map(|value| text(value).split(';'))
        .find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == wanted).then(|| value.trim().trim_matches('"'))
        })?;
    let cookie = Cookie::decode(STANDARD.decode(value).ok()?.as_slice()).ok()?;
    if cookie.expires != 0 && cookie.expires < now() {
        return None;
    }
    cookie.address.parse().ok()
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// Tells the client its endpoint, unless it is the one it came with.
pub(super) fn tell(reply: &mut Reply, pending: &Pending) {
    let Some(used) = pending.used.get() else {
        return;
    };
    if pending.wanted == Some(used) {
        return;
    }
    match &pending.config.state {
        None => {}
        Some(SessionState::Cookie(cookie)) => {
            if let Ok(value) = HeaderValue::try_from(set_cookie(cookie, used)) {
                reply.headers.append(header::SET_COOKIE, value);
            }
        }
        Some(SessionState::Header(name)) => {
            if let Ok(value) = HeaderValue::try_from(STANDARD.encode(used.to_string())) {
                reply.headers.insert(name, value);
            }
        }
    }
}

fn set_cookie(cookie: &CookieHash, address: SocketAddr) -> String {
    let ttl = cookie.ttl.filter(|ttl| !ttl.is_zero());
    let held = Cookie {
        address: address.to_string(),
        expires: ttl.map_or(0, |ttl| {
            now().saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX))
        }),
    };
    let value = STANDARD.encode(held.encode_to_vec());
    let mut set = format!("{}=\"{value}\"", cookie.name);
    if let Some(ttl) = ttl {
        set.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !cookie.path.is_empty() {
        set.push_str(&format!("; Path={}", cookie.path));
    }
    for (name, value) in &cookie.attributes {
        if value.is_empty() {
            set.push_str(&format!("; {name}"));
        } else {
            set.push_str(&format!("; {name}={value}"));
        }
    }
    set.push_str("; HttpOnly");
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_for_what_is_below_their_path() {
        for (path, of, below) in [
            ("/a", "", true),
            ("/a", "/", true),
            ("/a", "/a", true),
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/ab", "/a", false),
            ("/b", "/a", false),
        ] {
            assert_eq!(is_below(path, of), below, "{path} {of}");
        }
    }
}
