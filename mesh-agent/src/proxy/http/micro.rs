//! Steps of the request path, one at a time, for `cargo xtask bench micro`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};

use crate::config::model::listener::{HttpConnectionManager, RouteSource, Terminal};
use crate::config::model::route::{Route, RouteAction, RouteConfiguration};
use crate::proxy::tls::Peer;
use crate::snapshot::View;

use super::headers;
use super::message::{Metadata, Path, Request};
use super::router;

/// A route table, as requests are matched against it.
#[derive(Debug)]
pub struct Routes(Arc<RouteConfiguration>, Peer);

/// A request as it was parsed.
#[derive(Debug, Clone)]
pub struct Asked(pub(in crate::proxy::http) Request);

impl Asked {
    /// A GET request; `None`: something of it has no place in a request.
    pub fn get(authority: &str, path: &str, headers: &[(&str, &str)]) -> Option<Self> {
        let headers = headers.iter().map(|(name, value)| {
            let name = HeaderName::try_from(*name).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        });
        Some(Self(Request {
            method: Method::GET,
            path: Path::new(Bytes::copy_from_slice(path.as_bytes()))?,
            authority: HeaderValue::from_str(authority).ok()?,
            scheme: "http",
            version: Version::HTTP_11,
            headers: headers.collect::<Option<HeaderMap>>()?,
            metadata: Metadata::default(),
            pinned: None,
            redirects: None,
            early: None,
        }))
    }
}

/// What the first HTTP filter chain of a view's listener does.
pub(in crate::proxy::http) fn hcm(
    view: &View,
    destination: SocketAddr,
) -> Option<&Arc<HttpConnectionManager>> {
    let listener = view.outbound.find(destination)?;
    let mut chains = listener.filter_chains.iter();
    chains.find_map(|chain| match &chain.terminal {
        Terminal::Http(hcm) => Some(hcm),
        Terminal::Tcp(_) => None,
    })
}

impl Routes {
    /// Those of the first HTTP filter chain of a view's listener.
    pub fn of(view: &View, destination: SocketAddr) -> Option<Self> {
        let hcm = hcm(view, destination)?;
        match &hcm.routes {
            RouteSource::Inline(routes) => Some(Self(routes.clone(), Peer::default())),
            RouteSource::Rds(name) => view
                .routes
                .get(name)
                .cloned()
                .map(|routes| Self(routes, Peer::default())),
        }
    }

    /// The name of the route that takes the request.
    pub fn find(&self, asked: &Asked) -> Option<&str> {
        self.route(asked).map(|route| &*route.name)
    }

    /// The first cluster of the route that takes the request.
    pub(in crate::proxy::http) fn cluster(&self, asked: &Asked) -> Option<&str> {
        match &self.route(asked)?.action {
            RouteAction::Forward(forward) => {
                let names = forward.cluster.names("");
                names.first().map(|(_, name)| &***name)
            }
            _ => None,
        }
    }

    /// Does to the request's headers what its route says.
    pub fn mutate(&self, asked: &mut Asked) {
        let Some(route) = self.route(asked) else {
            return;
        };
        let mut headers = std::mem::take(&mut asked.0.headers);
        // What is measured is how literal headers are put in.
        headers::mutate(&mut headers, &route.request_headers, |_, _| Vec::new());
        asked.0.headers = headers;
    }

    fn route(&self, asked: &Asked) -> Option<&Route> {
        let request = router::View {
            request: &asked.0,
            random: 0,
            peer: &self.1,
        };
        router::route(&self.0, &request).map(|(_, route)| &**route)
    }
}
