//! The hash of a request, by which its endpoint is chosen (Envoy: `HashPolicyImpl`).

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, header};
use smallvec::SmallVec;
use xxhash_rust::xxh64::xxh64;

use crate::balance::hash::source_ip;
use crate::config::model::hash::{CookieHash, HashPolicy, HashSource};

use super::message::{Request, text};
use super::rewrite;

/// A request's hash, and the cookies its client is given for the next one.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    pub(super) hash: Option<u64>,
    pub(super) cookies: SmallVec<[HeaderValue; 1]>,
}

/// Both ends of a client's connection, and whose request it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) remote: IpAddr,
}

/// Hashes what the policies name.
pub(super) fn of(policies: &[HashPolicy], request: &Request, ends: Ends) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let new = match &policy.source {
            HashSource::Header { name, rewrite } => {
                let mut values: SmallVec<[&str; 2]> =
                    request.headers.get_all(name).iter().map(text).collect();
                if values.is_empty() {
                    None
                } else if let Some(rewrite) = rewrite {
                    let rewritten: Vec<String> = values
                        .iter()
                        .map(|value| rewrite::regex(value, rewrite))
                        .collect();
                    Some(all(rewritten.iter().map(String::as_str).collect()))
                } else {
                    Some(all(std::mem::take(&mut values)))
                }
            }
            HashSource::Cookie(cookie) => self::cookie(cookie, request, ends, &mut hashed.cookies),
            HashSource::SourceIp => Some(source_ip(ends.remote)),
            HashSource::Query(name) => query(request, name).map(|value| xxh64(value.as_bytes(), 0)),
        };
        if let Some(new) = new {
            // Turned, so that two of the same do not cancel each other out.
            hashed.hash = Some(hashed.hash.map_or(0, |old| old.rotate_left(1)) ^ new);
        }
        if policy.terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

/// Several values in whatever order.
fn all(mut values: SmallVec<[&str; 2]>) -> u64 {
    values.sort_unstable();
    // One's hash is the next one's seed.
    values
        .iter()
        .fold(0, |seed, value| xxh64(value.as_bytes(), seed))
}

fn query<'r>(request: &'r Request, name: &str) -> Option<&'r str> {
    request.path.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// The value of the first cookie of a name.
pub(super) fn cookie_named<'h>(headers: &'h HeaderMap, wanted: &str) -> Option<&'h str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| text(value).split(';'))
        .find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == wanted).then(|| value.trim().trim_matches('"'))
        })
}

fn cookie(
    cookie: &CookieHash,
    request: &Request,
    ends: Ends,
    given: &mut SmallVec<[HeaderValue; 1]>,
) -> Option<u64> {
    let there = cookie_named(&request.headers, &cookie.name);
    if let Some(value) = there.filter(|value| !value.is_empty()) {
        return Some(xxh64(value.as_bytes(), 0));
    }
    let ttl = cookie.ttl?;
    let connection = format!("{}{}", ends.peer, ends.local);
    let value = format!("{:016x}", xxh64(connection.as_bytes(), 0));
    let mut set = format!("{}=\"{value}\"", cookie.name);
    if !ttl.is_zero() {
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
    given.extend(HeaderValue::try_from(set));
    Some(xxh64(value.as_bytes(), 0))
}
