//! What a route makes of a request's path and host.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Uri, header, request};

use crate::config::model::route::{
    Forward, HostRewrite, PathMatcher, RegexRewrite, WeightedCluster,
};
use crate::proxy::lb::Target;

use super::headers;

/// The path a route sends the request to, when it rewrites it.
pub(super) fn path(path: &str, matcher: &PathMatcher, forward: &Forward) -> Option<String> {
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
        PathMatcher::Exact(_) | PathMatcher::Regex(_) => bare.len(),
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
    headers: &HeaderMap,
) -> Option<HeaderValue> {
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
    }
}

/// Puts authority and path into the request. `original` names the authority if it was rewritten.
pub(super) fn apply(
    parts: &mut request::Parts,
    authority: &HeaderValue,
    new_path: Option<&str>,
    original: Option<&HeaderValue>,
    forward: &Forward,
) {
    if let Some(original) = original {
        if forward.append_x_forwarded_host && !original.is_empty() {
            headers::append_joined(&mut parts.headers, headers::FORWARDED_HOST, original);
        }
        parts
            .headers
            .insert(headers::ORIGINAL_HOST, original.clone());
    }
    if let Some(new) = new_path {
        let old = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if let Ok(old) = HeaderValue::from_str(old) {
            parts.headers.insert(headers::ORIGINAL_PATH, old);
        }
        if let Ok(new) = PathAndQuery::try_from(new) {
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.path_and_query = Some(new);
            if let Ok(uri) = Uri::from_parts(uri) {
                parts.uri = uri;
            }
        }
    }
    parts.headers.insert(header::HOST, authority.clone());
}

/// The form in which HTTP/1 names its target: a path. CONNECT has none.
pub(super) fn origin_form(parts: &mut request::Parts) {
    if parts.method == Method::CONNECT || parts.uri.scheme().is_none() {
        return;
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(Uri::default, Uri::from);
}

/// The form in which HTTP/2 names its target: scheme, authority and path. The host header goes.
pub(super) fn absolute_form(parts: &mut request::Parts) {
    let Some(host) = parts.headers.remove(header::HOST) else {
        return;
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.authority = Authority::try_from(host.as_bytes()).ok();
    if parts.method != Method::CONNECT && uri.authority.is_some() {
        uri.scheme = Some(Scheme::HTTP);
        if uri.path_and_query.is_none() {
            uri.path_and_query = Some(PathAndQuery::from_static("/"));
        }
    }
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
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
