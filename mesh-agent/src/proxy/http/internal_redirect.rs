//! Redirects that are followed here (Envoy: `Filter::setupRedirect`): the request goes through
//! filters and routes again, as if the client had followed.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::config::model::Name;
use crate::config::model::internal_redirect::{InternalRedirect, Predicate};

use super::body::RequestBody;
use super::exchange::Exchange;
use super::message::{Metadata, Path, Request, text};
use super::{headers, router};

/// A request that is served anew.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) request: Request,
    pub(super) body: RequestBody,
}

/// How a request came to be one that no client sent.
#[derive(Debug, Clone)]
pub(super) struct Redirects {
    /// Whose request it is, as was found out at first.
    pub(super) remote: IpAddr,
    /// How often it was sent elsewhere.
    count: u32,
    /// From which route to which.
    followed: Vec<(Name, Name)>,
}

/// Where a redirect leads.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    scheme: &'static str,
    authority: &'a str,
    path: &'a str,
}

impl<'a> Target<'a> {
    /// Only a whole URL is followed.
    fn of(location: &'a str) -> Option<Self> {
        let (scheme, rest) = location.split_once("://")?;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.bytes().all(known) || scheme.is_empty() {
            return None;
        }
        // Whatever is not plain HTTP counts as encrypted, as in Envoy.
        let scheme = match scheme.eq_ignore_ascii_case("http") {
            true => "http",
            false => "https",
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // A fragment is the client's own affair.
        let path = path.split('#').next().unwrap_or_default();
        (!authority.is_empty() && !authority.contains('@')).then_some(Self {
            scheme,
            authority,
            path: if path.is_empty() { "/" } else { path },
        })
    }
}

impl Exchange<'_> {
    /// The request that follows a response, if the policy lets it be followed. `sent` is what the
    /// upstream was asked.
    pub(super) fn follow(
        &self,
        policy: &InternalRedirect,
        status: StatusCode,
        response: &HeaderMap,
        sent: &Request,
    ) -> Option<Request> {
        let target = Target::of(text(response.get(header::LOCATION)?))?;
        let plain = sent.scheme == "http" || self.connection.scheme() == "http";
        let to_plain = target.scheme == "http";
        if plain != to_plain && !policy.cross_scheme {
            return None;
        }
        let mut redirects = match &sent.redirects {
            Some(redirects) => redirects.clone(),
            None => Box::new(Redirects {
                remote: self.remote,
                count: 0,
                followed: Vec::new(),
            }),
        };
        if redirects.count >= policy.max {
            return None;
        }
        let mut next = sent.clone();
        for name in &policy.copied {
            next.headers.remove(name);
            for value in response.get_all(name) {
                next.headers.append(name, value.clone());
            }
        }
        next.scheme = target.scheme;
        next.authority = HeaderValue::from_str(target.authority).ok()?;
        next.path = Path::new(Bytes::copy_from_slice(target.path.as_bytes()))?;
        next.metadata = Metadata::default();
        next.pinned = None;
        let view = router::View {
            request: &next,
            random: self.random,
            peer: self.connection.peer(),
        };
        let (_, route) = router::route(self.routes, &view)?;
        let step = (self.route.name.clone(), route.name.clone());
        let agreed = policy.predicates.iter().all(|predicate| match predicate {
            Predicate::PreviousRoutes => !redirects.followed.contains(&step),
            Predicate::AllowListed(names) => names.contains(&route.name),
            Predicate::SafeCrossScheme => !plain || to_plain,
        });
        if !agreed {
            return None;
        }
        redirects.count += 1;
        redirects.followed.push(step);
        let from = format!(
            "{}://{}{}",
            if plain { "http" } else { "https" },
            text(&sent.authority),
            sent.path.as_str()
        );
        if let Ok(from) = HeaderValue::try_from(from) {
            next.headers.insert(headers::ORIGINAL_URL, from);
        }
        // RFC 9110, 15.4.4.
        if status == StatusCode::SEE_OTHER && !matches!(next.method, Method::GET | Method::HEAD) {
            next.method = Method::GET;
            next.headers.remove(header::CONTENT_LENGTH);
        }
        next.redirects = Some(redirects);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_urls_are_followed() {
        let target = |scheme, authority, path| {
            Some(Target {
                scheme,
                authority,
                path,
            })
        };
        assert_eq!(Target::of("http://h/a?b#c"), target("http", "h", "/a?b"));
        assert_eq!(Target::of("HTTPS://h:81"), target("https", "h:81", "/"));
        for bad in ["/a", "//h/a", "h/a", "http://", "http://u@h/", ""] {
            assert_eq!(Target::of(bad), None, "{bad}");
        }
    }
}
