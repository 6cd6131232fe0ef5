//! What is known of a connection: gathered on its way and told once, at its end.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use smallvec::SmallVec;

use crate::config::model::Name;
use crate::config::model::access_log::AccessLogs;
use crate::config::model::response_flag::{ResponseFlag, ResponseFlags};
use crate::identity::SpiffeId;
use crate::telemetry::access_log::{Addresses, Entry, Fields, Kind, Spans};
use crate::telemetry::peer::Peer;

use super::accept::Caught;
use super::tls;
use super::worker::Context;

/// Why no connection was made, as Envoy says it: without spaces.
pub(super) fn transport_failure(error: &io::Error) -> String {
    let text = error.to_string();
    let text = match error.raw_os_error() {
        // Without the number that Rust adds.
        Some(_) => format!(
            "delayed connect error: {}",
            text.split(" (os error").next().unwrap_or(&text)
        ),
        None => text,
    };
    text.replace(|c: char| c.is_ascii_whitespace(), "_")
}

/// A connection's record; dropped, it is told to the access logs of its listener and its TCP
/// proxy.
pub(super) struct ConnectionRecord {
    context: Rc<Context>,
    caught: Caught,
    started: Instant,
    begun: SystemTime,
    logs: SmallVec<[Arc<AccessLogs>; 2]>,
    chain: Option<Name>,
    peer: tls::Peer,
    cluster: Option<Name>,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    attempts: u32,
    sent: u64,
    received: u64,
    flags: ResponseFlags,
    details: &'static str,
    termination: Cow<'static, str>,
    transport_failure: Option<String>,
}

impl ConnectionRecord {
    /// Begins.
    pub(super) fn begin(context: &Rc<Context>, caught: &Caught) -> Self {
        Self {
            context: context.clone(),
            caught: caught.clone(),
            started: Instant::now(),
            begun: SystemTime::now(),
            logs: SmallVec::new(),
            chain: None,
            peer: tls::Peer::default(),
            cluster: None,
            upstream: None,
            upstream_local: None,
            attempts: 0,
            sent: 0,
            received: 0,
            flags: ResponseFlags::NONE,
            details: "",
            termination: Cow::Borrowed(""),
            transport_failure: None,
        }
    }

    /// These will be told.
    pub(super) fn tell(&mut self, logs: &Arc<AccessLogs>) {
        if !logs.is_empty() {
            self.logs.push(logs.clone());
        }
    }

    /// The filter chain that took it.
    pub(super) fn chain(&mut self, chain: &Name) {
        self.chain = Some(chain.clone());
    }

    /// Who is at the other end.
    pub(super) fn peer(&mut self, peer: &tls::Peer) {
        self.peer = peer.clone();
    }

    /// No filter chain took it (Envoy: `filter_chain_not_found`).
    pub(super) fn unmatched(&mut self) {
        self.flags.set(ResponseFlag::NoRouteFound);
        self.details = "filter_chain_not_found";
    }

    /// Access rules denied it.
    pub(super) fn denied(&mut self, policy: &str) {
        self.termination = format!("rbac_access_denied_matched_policy[{policy}]")
            .replace(' ', "_")
            .into();
    }

    /// Where it goes.
    pub(super) fn cluster(&mut self, cluster: &Name) {
        self.cluster = Some(cluster.clone());
    }

    /// It is asked of the cluster for an endpoint.
    pub(super) fn asks(&mut self) {
        self.attempts += 1;
    }

    /// The endpoint that is tried.
    pub(super) fn attempt(&mut self, upstream: SocketAddr) {
        self.upstream = Some(upstream);
    }

    /// The endpoint took it.
    pub(super) fn connected(&mut self, local: Option<SocketAddr>) {
        self.upstream_local = local;
        self.transport_failure = None;
    }

    /// The endpoint did not take it.
    pub(super) fn transport_failed(&mut self, error: &io::Error) {
        self.transport_failure = Some(transport_failure(error));
    }

    /// Something was special.
    pub(super) fn flag(&mut self, flag: ResponseFlag) {
        self.flags.set(flag);
    }

    /// What went through: from the client, and to it.
    pub(super) fn carried(&mut self, received: u64, sent: u64) {
        self.received += received;
        self.sent += sent;
    }

    fn entry<'a>(&'a self, peers: [Option<&'a Peer>; 2]) -> Entry<'a> {
        static NOTHING: BTreeMap<Arc<str>, serde_json::Value> = BTreeMap::new();
        let took = self.started.elapsed();
        Entry {
            kind: Kind::Connection,
            started: self.begun,
            spans: Spans {
                whole: took,
                request: None,
                response: None,
                complete: true,
            },
            bytes_received: self.received,
            bytes_sent: self.sent,
            protocol: None,
            status: None,
            details: self.details,
            termination: &self.termination,
            flags: self.flags,
            attempts: self.attempts,
            route: "",
            chain: self.chain.as_deref().unwrap_or_default(),
            cluster: self.cluster.as_deref(),
            transport_failure: self.transport_failure.as_deref(),
            addresses: Addresses {
                remote: self.caught.peer,
                direct_remote: self.caught.peer,
                local: self.caught.destination,
                upstream: self.upstream,
                upstream_local: self.upstream_local,
            },
            request: None,
            response: Fields::NONE,
            trailers: Fields::NONE,
            local_reply: &[],
            grpc_status: None,
            metadata: &NOTHING,
            server_name: self.peer.server_name.as_deref(),
            certificate: self.peer.certificate.as_deref(),
            local_identity: self.peer.local.as_ref().map(SpiffeId::as_str),
            connection_id: self.caught.id,
            peers,
        }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let ends = [Some(self.caught.peer), self.upstream];
        for logs in &self.logs {
            let known = ends.map(|end| {
                let end = end.filter(|_| logs.wanted.peers)?;
                self.context.requests.peer(end.ip())
            });
            let entry = self.entry([known[0].as_ref(), known[1].as_ref()]);
            self.context.shared.access_log.log(logs, &entry);
        }
    }
}
