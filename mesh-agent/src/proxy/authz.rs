//! Who may connect: the network RBAC filters of a chain, asked before a byte is forwarded.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::model::Name;
use crate::config::model::filter::rbac::Facts;
use crate::config::model::listener::FilterChain;
use crate::config::model::matcher::{HeaderMatcher, MetadataMatcher};

use super::accept::Caught;

/// A connection, as rules see it.
struct Connection<'a> {
    caught: &'a Caught,
    server_name: &'a str,
    peer_names: Option<&'a [Arc<str>]>,
}

impl Facts for Connection<'_> {
    fn header(&self, _: &HeaderMatcher) -> bool {
        false
    }

    fn path(&self) -> &str {
        ""
    }

    fn destination(&self) -> (IpAddr, u16) {
        (self.caught.destination.ip(), self.caught.destination.port())
    }

    fn direct_remote(&self) -> IpAddr {
        self.caught.peer.ip()
    }

    fn remote(&self) -> IpAddr {
        self.caught.peer.ip()
    }

    fn peer_names(&self) -> Option<&[Arc<str>]> {
        self.peer_names
    }

    fn server_name(&self) -> &str {
        self.server_name
    }

    fn metadata(&self, matcher: &MetadataMatcher) -> bool {
        matcher.matches(None)
    }
}

/// Whether every filter of the chain lets the connection in; `Err`: the policy that denies it.
/// `peer_names` are those of a
/// certificate that was verified; `None`: there is none.
pub(super) fn allows(
    chain: &FilterChain,
    caught: &Caught,
    server_name: &str,
    peer_names: Option<&[Arc<str>]>,
) -> Result<(), Name> {
    let connection = Connection {
        caught,
        server_name,
        peer_names,
    };
    for rbac in &chain.rbac {
        if let Some(shadow) = &rbac.shadow {
            let (allowed, policy) = shadow.allow(&connection);
            tracing::debug!(peer = %caught.peer, destination = %caught.destination, allowed, ?policy, "shadow rules");
        }
        let Some(rules) = &rbac.rules else {
            continue;
        };
        let (allowed, policy) = rules.allow(&connection);
        if !allowed {
            tracing::debug!(peer = %caught.peer, destination = %caught.destination, ?policy, "access denied");
            return Err(policy.cloned().unwrap_or_else(|| "none".into()));
        }
    }
    Ok(())
}
