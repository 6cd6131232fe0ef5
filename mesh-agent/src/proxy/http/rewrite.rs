//! What a route makes of a request's path and host.

use bytes::Bytes;
use http::HeaderValue;

use crate::config::model::access_log::Piece;
use crate::config::model::route::{
    Forward, HostRewrite, PathMatcher, RegexRewrite, WeightedCluster,
};
use crate::proxy::lb::Target;

use super::headers;
use super::message::{Path, Request};

/// The path a route sends the request to, when it rewrites it.
pub(super) fn path(
    path: &str,
    matcher: &PathMatcher,
    forward: &Forward,
    text_of: impl Fn(&[Piece]) -> Vec<u8>,
) -> Option<String> {
    if let Some(pieces) = &forward.path_format {
        let new = String::from_utf8(text_of(pieces)).ok()?;
        let query = &path[path.find('?').unwrap_or(path.len())..];
        return (!new.is_empty()).then(|| new + query);
    }
    if let (Some(rewrite), PathMatcher::Template(matched)) = (&forward.template_rewrite, matcher) {
        let (bare, query) = path.split_at(path.find('?').unwrap_or(path.len()));
        return Some(rewrite.apply(matched, bare)? + query);
    }
    match (&forward.prefix_rewrite, &forward.regex_rewrite) {
        (Some(new), _) => prefix(path, matcher, new),
        (None, Some(rewrite)) => Some(regex(path, rewrite)),
        (None, None) => None,
    }
}

/// Replaces what the route matched on: a prefix, or the whole path. The query stays.
pub(super) fn prefix(path: &str, matcher: &PathMatcher, new: &str) -> Option<String> {
    let bare = path.split('?').next().unwrap_or(path);
    let matched = match matcher {
        PathMatcher::Prefix(matched) | PathMatcher::PathSeparatedPrefix(matched) => matched.len(),
        PathMatcher::Exact(_) | PathMatcher::Regex(_) | PathMatcher::Template(_) => bare.len(),
        PathMatcher::Connect => return None,
    };
    Some(format!("{new}{}", path.get(matched..)?))
}

/// Replaces every match in the path; the query stays. `\1` stands for a group, `\\` for itself.
pub(super) fn regex(path: &str, rewrite: &RegexRewrite) -> String {
    let (bare, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut out = String::with_capacity(path.len());
    let mut end = 0;
    for captures in rewrite.pattern.captures_iter(bare) {
        let Some(whole) = captures.get_match() else {
            continue;
        };
        out.push_str(&bare[end..whole.start()]);
        let mut characters = rewrite.substitution.chars();
        while let Some(character) = characters.next() {
            if character != '\\' {
                out.push(character);
                continue;
            }
            match characters.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    let group = captures.get_group(digit as usize - '0' as usize);
                    out.push_str(group.map_or("", |span| &bare[span.range()]));
                }
                Some(other) => out.push(other),
                None => {}
            }
        }
        end = whole.end();
    }
    out.push_str(&bare[end..]);
    out.push_str(query);
    out
}

/// The host a route asks the upstream for, when it rewrites it.
pub(super) fn host(
    forward: &Forward,
    weighted: Option<&WeightedCluster>,
    target: &Target,
    request: &Request,
    text_of: impl Fn(&[Piece]) -> Vec<u8>,
) -> Option<HeaderValue> {
    let headers = &request.headers;
    let text = |host: &str| {
        (!host.is_empty())
            .then(|| HeaderValue::from_str(host).ok())
            .flatten()
    };
    if let Some(host) = weighted.and_then(|weighted| weighted.host_rewrite.as_deref()) {
        return text(host);
    }
    match &forward.host_rewrite {
        HostRewrite::Keep => None,
        HostRewrite::Literal(host) => text(host),
        HostRewrite::Auto => match target {
            Target::Host(host) => text(&host.hostname),
            Target::Original(_) => None,
        },
        HostRewrite::Header(name) => headers.get(name).filter(|host| !host.is_empty()).cloned(),
        HostRewrite::PathRegex(rewrite) => text(&regex(request.path.path(), rewrite)),
        HostRewrite::Format(pieces) => {
            let host = text_of(pieces);
            (!host.is_empty())
                .then(|| HeaderValue::try_from(host).ok())
                .flatten()
        }
    }
}

/// The host of another attempt, where it is the chosen endpoint's.
pub(super) fn authority_of(
    forward: &Forward,
    weighted: Option<&WeightedCluster>,
    target: &Target,
) -> Option<HeaderValue> {
    let literal = weighted.is_some_and(|weighted| weighted.host_rewrite.is_some());
    match (&forward.host_rewrite, target) {
        (HostRewrite::Auto, Target::Host(host)) if !literal && !host.hostname.is_empty() => {
            HeaderValue::from_str(&host.hostname).ok()
        }
        _ => None,
    }
}

/// The route's rewrite makes a path that no request can have.
#[derive(Debug)]
pub(super) struct Unwritable;

/// Puts the new authority and path into the request and tells the upstream of the old ones.
pub(super) fn apply(
    request: &mut Request,
    authority: Option<HeaderValue>,
    path: Option<String>,
    forward: &Forward,
) -> Result<(), Unwritable> {
    if let Some(authority) = authority {
        let original = std::mem::replace(&mut request.authority, authority);
        let headers = &mut request.headers;
        if forward.append_x_forwarded_host && !original.is_empty() {
            headers::append_joined(headers, headers::FORWARDED_HOST, &original);
        }
        headers.insert(headers::ORIGINAL_HOST, original);
    }
    if let Some(path) = path {
        let new = Path::new(Bytes::from(path)).ok_or(Unwritable)?;
        let original = std::mem::replace(&mut request.path, new);
        if let Some(original) = original.to_value() {
            request.headers.insert(headers::ORIGINAL_PATH, original);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use regex_automata::meta::Regex;

    use super::*;

    fn rewrite(pattern: &str, substitution: &str) -> RegexRewrite {
        RegexRewrite {
            pattern: Regex::new(pattern).unwrap(),
            substitution: substitution.into(),
        }
    }

    #[test]
    fn a_prefix_is_replaced_and_the_rest_stays() {
        let matcher = PathMatcher::Prefix("/a".into());
        assert_eq!(prefix("/ab?c", &matcher, "/x").as_deref(), Some("/xb?c"));
        let matcher = PathMatcher::Exact("/a".into());
        assert_eq!(prefix("/a?c", &matcher, "/x").as_deref(), Some("/x?c"));
    }

    #[test]
    fn every_match_is_replaced_and_the_query_stays() {
        assert_eq!(regex("/a/ba?a", &rewrite("a", "o")), "/o/bo?a");
        assert_eq!(
            regex("/one/two", &rewrite("^/([^/]+)/(.*)$", "/\\2/\\1/\\\\")),
            "/two/one/\\"
        );
        assert_eq!(regex("/b", &rewrite("(x)?b", "[\\1]")), "/[]");
    }
}
