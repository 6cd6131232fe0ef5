//! HTTP filters at work: each may change the request, answer it, or look at the response.
//!
//! The chain is what the connection manager configures; for each filter the most specific of
//! route, virtual host and route configuration may say something else. Nothing is built per
//! request but what a filter has to remember for the response.

mod accept_encoding;
mod buffer;
mod compressor;
mod cors;
mod descriptors;
mod ext_authz;
mod fault;
mod jwt;
mod local_rate_limit;
mod mutation;
mod query;
mod rate_limit;
mod rbac;
mod stateful_session;
mod structure;

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use smallvec::SmallVec;

use crate::config::model::filter::cors::CorsPolicy;
use crate::config::model::filter::local_rate_limit::TokenBucket;
use crate::config::model::filter::{FilterOverride, HttpFilter, HttpFilterKind};
use crate::config::model::listener::HttpConnectionManager;
use crate::config::model::route::{Route, RouteAction, RouteConfiguration, VirtualHost};

use mutation::Mutation;

use super::Connection;
use super::body::RequestBody;
use super::message::{Reply, Request};
use super::record::Record;
use super::router;
use crate::snapshot::View;

/// What a request meets filters with.
pub(super) struct Call<'a> {
    pub(super) connection: &'a Rc<Connection>,
    pub(super) view: &'a Arc<View>,
    pub(super) hcm: &'a Arc<HttpConnectionManager>,
    pub(super) routes: Option<&'a RouteConfiguration>,
    /// The route, which a filter may have looked for anew.
    pub(super) matched: Cell<Option<(&'a VirtualHost, &'a Route)>>,
    pub(super) random: u64,
    /// Whose request it is, as trusted proxies say.
    pub(super) remote: IpAddr,
    pub(super) record: &'a Record,
}

/// A filter's answer.
#[derive(Debug)]
pub(super) enum Answered {
    /// A local reply, which gets what the route adds to responses.
    Local(Box<Reply>),
    /// A response in its own right.
    Whole(Box<Reply>),
}

impl From<Box<Reply>> for Answered {
    fn from(reply: Box<Reply>) -> Self {
        Self::Local(reply)
    }
}

/// What is left to do when the response comes, in the order of the filters.
#[derive(Debug, Default)]
pub(super) struct Steps(SmallVec<[Step; 2]>);

#[derive(Debug)]
enum Step {
    /// Tell the browser that its script may see the response.
    Cors {
        policies: SmallVec<[Arc<CorsPolicy>; 2]>,
        origin: HeaderValue,
    },
    /// Make it smaller.
    Compress(Box<compressor::Pending>),
    /// Tell the client its endpoint.
    Session(Box<stateful_session::Pending>),
    /// Headers that a service wants in it.
    Headers(Vec<Mutation>),
    /// Tell how much is left.
    RateLimit(Arc<TokenBucket>),
}

impl Steps {
    /// Completes a response, the last filter first.
    pub(super) fn finish(self, mut reply: Reply) -> Reply {
        for step in self.0.into_iter().rev() {
            match step {
                Step::Cors { policies, origin } => cors::finish(&mut reply, &policies, origin),
                Step::Compress(pending) => compressor::finish(&mut reply, &pending),
                Step::Session(pending) => stateful_session::tell(&mut reply, &pending),
                Step::Headers(headers) => {
                    for header in headers {
                        header.apply(&mut reply.headers);
                    }
                }
                Step::RateLimit(bucket) => local_rate_limit::tell(&mut reply, &bucket),
            }
        }
        reply
    }
}

impl<'a> Call<'a> {
    /// The overrides of a filter, the most specific one first.
    fn overrides<'s>(
        &self,
        filter: &'s HttpFilter,
    ) -> impl Iterator<Item = &'a FilterOverride> + use<'a, 's> {
        let (host, route) = match self.matched.get() {
            Some((host, route)) => (Some(host), Some(route)),
            None => (None, None),
        };
        let levels = [
            route.map(|route| &route.overrides),
            host.map(|host| &host.overrides),
            self.routes.map(|routes| &routes.overrides),
        ];
        levels
            .into_iter()
            .flatten()
            .filter_map(|level| level.get(&filter.name))
    }

    /// The cluster of the route, if it is always the same one.
    fn cluster(&self) -> Option<&'a str> {
        use crate::config::model::route::ClusterSpecifier;
        match &self.matched.get()?.1.action {
            RouteAction::Forward(forward) => match &forward.cluster {
                ClusterSpecifier::Cluster(name) => Some(name),
                _ => None,
            },
            _ => None,
        }
    }

    /// Looks for the route of a request that was changed.
    fn reroute(&self, request: &Request) {
        let random = self.random;
        let view = router::View {
            request,
            random,
            peer: self.connection.peer(),
        };
        let matched = self.routes.and_then(|routes| router::route(routes, &view));
        let matched = matched.map(|(host, route)| (&**host, &**route));
        self.matched.set(matched);
    }

    /// Sends a request through the filters. `Err`: one of them has answered it.
    pub(super) async fn run(
        &self,
        request: &mut Request,
        body: &mut RequestBody,
        steps: &mut Steps,
    ) -> Result<(), Answered> {
        for filter in &self.hcm.http_filters {
            let said = self.overrides(filter).next();
            let off = match said {
                Some(FilterOverride::Disabled) => true,
                Some(_) => false,
                None => filter.disabled,
            };
            if off {
                continue;
            }
            match (&filter.kind, said) {
                (HttpFilterKind::Fault(_), Some(FilterOverride::Fault(fault)))
                | (HttpFilterKind::Fault(fault), _) => {
                    if !fault::is_idle(fault) {
                        fault::inject(self, fault, request).await?;
                    }
                }
                (HttpFilterKind::Cors, _) => {
                    let policies = self.overrides(filter).filter_map(|said| match said {
                        FilterOverride::Cors(policy) => Some(policy.clone()),
                        _ => None,
                    });
                    cors::check(policies.collect(), request, &mut steps.0)?;
                }
                (HttpFilterKind::Rbac(_), Some(FilterOverride::Rbac(rbac)))
                | (HttpFilterKind::Rbac(rbac), _) => rbac::check(self, rbac, request)?,
                (
                    HttpFilterKind::LocalRateLimit(_),
                    Some(FilterOverride::LocalRateLimit(limit)),
                )
                | (HttpFilterKind::LocalRateLimit(limit), _) => {
                    local_rate_limit::check(self, limit, request, &mut steps.0)?;
                }
                (HttpFilterKind::Jwt(config), said) => {
                    let said = match said {
                        Some(FilterOverride::Jwt(said)) => Some(said),
                        _ => None,
                    };
                    // What awaits services is large and rare: it does not make every request's
                    // future larger.
                    Box::pin(jwt::check(self, config, said, request)).await?;
                }
                (HttpFilterKind::ExtAuthz(config), _) => {
                    let said = self.overrides(filter).filter_map(|said| match said {
                        FilterOverride::ExtAuthz(said) => Some(said.clone()),
                        _ => None,
                    });
                    let said = said.collect();
                    let checking =
                        ext_authz::check(self, config, said, request, body, &mut steps.0);
                    Box::pin(checking).await?;
                }
                (HttpFilterKind::RateLimit(config), said) => {
                    let said = match said {
                        Some(FilterOverride::RateLimit(said)) => Some(said),
                        _ => None,
                    };
                    let checking = rate_limit::check(self, config, said, request, &mut steps.0);
                    Box::pin(checking).await?;
                }
                (HttpFilterKind::Compressor(config), said) => {
                    let said = match said {
                        Some(FilterOverride::Compressor(said)) => Some(&**said),
                        _ => None,
                    };
                    compressor::note(self, config, said, request, &mut steps.0);
                }
                (
                    HttpFilterKind::StatefulSession(_),
                    Some(FilterOverride::StatefulSession(config)),
                )
                | (HttpFilterKind::StatefulSession(config), _) => {
                    stateful_session::pin(config, request, &mut steps.0);
                }
                (HttpFilterKind::Buffer(_), Some(FilterOverride::Buffer(limit)))
                | (HttpFilterKind::Buffer(limit), _) => {
                    buffer::check(*limit, request, body).await?;
                }
            }
        }
        Ok(())
    }
}
