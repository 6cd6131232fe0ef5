//! HTTP filters at work: each may change the request, answer it, or look at the response.
//!
//! The chain is what the connection manager configures; for each filter the most specific of
//! route, virtual host and route configuration may say something else. Nothing is built per
//! request but what a filter has to remember for the response.

mod buffer;
mod cors;
mod fault;
mod local_rate_limit;
mod rbac;

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use smallvec::SmallVec;

use crate::config::model::filter::cors::CorsPolicy;
use crate::config::model::filter::local_rate_limit::LocalRateLimit;
use crate::config::model::filter::{FilterOverride, HttpFilter, HttpFilterKind};
use crate::config::model::listener::HttpConnectionManager;
use crate::config::model::route::{Route, RouteAction, RouteConfiguration, VirtualHost};

use super::Connection;
use super::body::RequestBody;
use super::message::{Reply, Request};
use super::record::Record;

/// What a request meets filters with.
pub(super) struct Call<'a> {
    pub(super) connection: &'a Rc<Connection>,
    pub(super) hcm: &'a HttpConnectionManager,
    pub(super) routes: Option<&'a RouteConfiguration>,
    pub(super) matched: Option<(&'a VirtualHost, &'a Route)>,
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
    /// Tell how much is left.
    RateLimit(Arc<LocalRateLimit>),
}

impl Steps {
    /// Completes a response, the last filter first.
    pub(super) fn finish(self, mut reply: Reply) -> Reply {
        for step in self.0.into_iter().rev() {
            match step {
                Step::Cors { policies, origin } => cors::finish(&mut reply, &policies, origin),
                Step::RateLimit(limit) => local_rate_limit::tell(&mut reply, &limit),
            }
        }
        reply
    }
}

impl Call<'_> {
    /// The overrides of a filter, the most specific one first.
    fn overrides<'s>(&'s self, filter: &'s HttpFilter) -> impl Iterator<Item = &'s FilterOverride> {
        let (host, route) = match self.matched {
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
    fn cluster(&self) -> Option<&str> {
        use crate::config::model::route::ClusterSpecifier;
        match &self.matched?.1.action {
            RouteAction::Forward(forward) => match &forward.cluster {
                ClusterSpecifier::Cluster(name) => Some(name),
                _ => None,
            },
            _ => None,
        }
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
                    local_rate_limit::check(limit, request, &mut steps.0)?;
                }
                (HttpFilterKind::Buffer(_), Some(FilterOverride::Buffer(limit)))
                | (HttpFilterKind::Buffer(limit), _) => {
                    buffer::gather(*limit, request, body).await?;
                }
            }
        }
        Ok(())
    }
}
