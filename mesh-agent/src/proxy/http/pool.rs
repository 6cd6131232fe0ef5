//! Upstream connections of one worker, kept for the next request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::model::cluster::Discovery;
use crate::config::model::tls::{UpstreamTls, UpstreamTransport};
use crate::snapshot::{ClusterView, Snapshot};

use super::h1::client::Connection;
use super::lines::Lines;
use super::queue::Queue;

/// Connections are shared by requests of one pod to one endpoint of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::proxy) struct Key {
    /// The cluster's state, by address: connections hold on to it, so none is given twice.
    pub(super) cluster: usize,
    pub(super) address: SocketAddr,
    /// The client pod's namespace: connections leave with its address.
    pub(super) netns: u64,
    /// The TLS context; `None`: plain. A connection of another transport serves no request.
    pub(super) transport: Option<Context>,
    /// Which certificates a tunnel below is of; 0: there is none.
    pub(super) tunnel: u64,
}

/// A TLS context, told from others by where it is.
#[derive(Debug, Clone)]
pub(super) struct Context(Arc<UpstreamTls>);

impl Context {
    /// Of a transport.
    pub(super) fn of(transport: &UpstreamTransport) -> Option<Self> {
        match transport {
            UpstreamTransport::Plain => None,
            UpstreamTransport::Tls(tls) | UpstreamTransport::Hbone(tls) => Some(Self(tls.clone())),
        }
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Context {}

impl std::hash::Hash for Context {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// Connections of a worker, and who waits for one.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pool {
    http1: HashMap<Key, Lane>,
    http2: HashMap<Key, Rc<Lines>>,
}

/// The HTTP/1 connections under one key.
#[derive(Debug, Default)]
struct Lane {
    idle: Vec<Connection>,
    queue: Rc<Queue>,
}

impl Pool {
    /// Drops connections that ended or were idle for too long, and those over tunnels of other
    /// certificates than those of this generation.
    pub(in crate::proxy) fn forget_closed(&mut self, generation: u64) {
        self.retain(generation, |_| true);
    }

    /// As [`Self::forget_closed`], and those whose endpoint is gone.
    pub(in crate::proxy) fn forget_gone(&mut self, generation: u64, snapshot: &Snapshot) {
        if self.http1.is_empty() && self.http2.is_empty() {
            return;
        }
        let clusters: HashMap<usize, &Arc<ClusterView>> = snapshot
            .views
            .values()
            .flat_map(|view| view.clusters.values())
            .map(|cluster| (Arc::as_ptr(&cluster.state).addr(), cluster))
            .collect();
        self.retain(generation, |key| {
            clusters.get(&key.cluster).is_some_and(|cluster| {
                matches!(cluster.config.discovery, Discovery::OriginalDst(_))
                    || cluster.hosts().any(|host| host.address == key.address)
            })
        });
    }

    fn retain(&mut self, generation: u64, there: impl Fn(&Key) -> bool) {
        self.http1.retain(|key, lane| {
            if there(key) {
                lane.idle.retain_mut(Connection::is_usable);
            } else {
                lane.idle.clear();
            }
            !lane.idle.is_empty() || Rc::strong_count(&lane.queue) > 1
        });
        self.http2.retain(|key, lines| {
            let current = key.tunnel == 0 || key.tunnel == generation;
            lines.retain(current && there(key))
        });
    }

    /// Drops the connections of a namespace: its pod is gone.
    pub(in crate::proxy) fn forget_pod(&mut self, netns: u64) {
        self.http1.retain(|key, _| key.netns != netns);
        self.http2.retain(|key, _| key.netns != netns);
    }

    /// The connection used last that can serve another request.
    pub(super) fn take_http1(&mut self, key: &Key) -> Option<Connection> {
        let idle = &mut self.http1.get_mut(key)?.idle;
        while let Some(mut connection) = idle.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// For whoever waits for it, or for the next request.
    pub(super) fn put_http1(&mut self, key: Key, connection: Connection) {
        let lane = self.http1.entry(key).or_default();
        if let Some(connection) = lane.queue.hand_over(connection) {
            lane.idle.push(connection);
        }
    }

    /// Who waits for connections under a key.
    pub(super) fn queue(&mut self, key: &Key) -> Rc<Queue> {
        match self.http1.get(key) {
            Some(lane) => lane.queue.clone(),
            None => self.http1.entry(key.clone()).or_default().queue.clone(),
        }
    }

    /// The shared connections under a key.
    pub(super) fn lines(&mut self, key: &Key) -> Rc<Lines> {
        match self.http2.get(key) {
            Some(lines) => lines.clone(),
            None => self.http2.entry(key.clone()).or_default().clone(),
        }
    }
}
