//! Which names a configuration needs resolved.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::model::Address;
use crate::config::model::cluster::{Cluster, Discovery, DnsLookupFamily};

/// A name and which of its addresses are wanted.
pub type Query = (Arc<str>, DnsLookupFamily);

/// All names of a configuration, and when each is asked for again.
pub type Queries = BTreeMap<Query, Refresh>;

/// When a name is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refresh {
    /// After this time, or after a failure.
    pub rate: Duration,
    /// When the records' TTL is over, instead.
    pub respect_ttl: bool,
}

/// The names of these clusters. Where clusters share a name, the fastest refresh serves all.
pub fn queries<'a>(clusters: impl IntoIterator<Item = &'a Cluster>) -> Queries {
    let mut queries = Queries::new();
    for cluster in clusters {
        let (Discovery::StrictDns { assignment, dns } | Discovery::LogicalDns { assignment, dns }) =
            &cluster.discovery
        else {
            continue;
        };
        let endpoints = assignment
            .localities
            .iter()
            .flat_map(|locality| &locality.endpoints);
        for endpoint in endpoints {
            let Address::Hostname { host, .. } = &endpoint.address else {
                continue;
            };
            queries
                .entry((host.clone(), dns.lookup_family))
                .and_modify(|refresh| {
                    refresh.rate = refresh.rate.min(dns.refresh_rate);
                    refresh.respect_ttl &= dns.respect_ttl;
                })
                .or_insert(Refresh {
                    rate: dns.refresh_rate,
                    respect_ttl: dns.respect_ttl,
                });
        }
    }
    queries
}
