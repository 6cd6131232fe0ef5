//! `envoy.filters.http.rbac`: who may do what.

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;

use crate::config::model::filter::rbac::{Facts, Rbac};
use crate::config::model::matcher::{HeaderMatcher, MetadataMatcher};
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;
use crate::proxy::http::router::header_matches;

use super::Call;

/// What the rules may look at.
struct Seen<'a> {
    call: &'a Call<'a>,
    request: &'a Request,
}

impl Facts for Seen<'_> {
    fn header(&self, matcher: &HeaderMatcher) -> bool {
        header_matches(matcher, self.request)
    }

    fn path(&self) -> &str {
        self.request.path.path()
    }

    fn destination(&self) -> (IpAddr, u16) {
        let destination = self.call.connection.caught.destination;
        (destination.ip(), destination.port())
    }

    fn direct_remote(&self) -> IpAddr {
        self.call.connection.caught.peer.ip()
    }

    fn remote(&self) -> IpAddr {
        self.call.remote
    }

    fn peer_names(&self) -> Option<&[Arc<str>]> {
        self.call.connection.peer_names()
    }

    fn server_name(&self) -> &str {
        self.call.connection.server_name()
    }

    fn metadata(&self, matcher: &MetadataMatcher) -> bool {
        let found = self.request.metadata.get(&matcher.filter);
        matcher.matches(found)
    }
}

/// Refuses what the rules do not allow.
pub(super) fn check(call: &Call<'_>, rbac: &Rbac, request: &Request) -> Result<(), Box<Reply>> {
    let seen = Seen { call, request };
    if let Some(shadow) = &rbac.shadow {
        let (allowed, policy) = shadow.allow(&seen);
        if !allowed {
            tracing::debug!(
                policy = policy.map(|name| &**name),
                "shadow rules would deny"
            );
        }
    }
    let Some(rules) = &rbac.rules else {
        return Ok(());
    };
    let (allowed, policy) = rules.allow(&seen);
    if allowed {
        return Ok(());
    }
    tracing::debug!(policy = policy.map(|name| &**name), "access denied");
    let policy = policy.map_or("none", |policy| policy);
    let details = format!("rbac_access_denied_matched_policy[{policy}]").replace(' ', "_");
    let reply = local(StatusCode::FORBIDDEN, "RBAC: access denied").because(details);
    Err(Box::new(reply))
}
