//! Istio's TCP metrics, of connections that the kernel balances (`reporter="source"`) and of those
//! that pods' applications accept without the agent (`reporter="destination"`).
//!
//! As in Istio, *sent* is what the server sent and *received* what it received, whoever reports.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use mesh_common::{End, Event, EventKind};

use crate::config::model::Name;
use crate::datapath::Sample;
use crate::snapshot::outlier::{self, Outcome};
use crate::snapshot::slots::Limits;
use crate::snapshot::{Snapshot, ViewId};

use super::endpoints::Endpoints;
use super::labels::{Ends, Reporter, Service, render};
use super::peer::Peer;
use super::pods::Pods;

/// How many connections that ended are kept in mind.
const JUST_ENDED: usize = 1024;

/// Counters of one set of labels.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counters {
    opened: u64,
    closed: u64,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Counters {
    /// Adds bytes that the pod sent and received: as its service, or as a client.
    fn carried(&mut self, inbound: bool, sent: u64, received: u64) {
        let (by_server, by_client) = if inbound {
            (sent, received)
        } else {
            (received, sent)
        };
        self.sent_bytes += by_server;
        self.received_bytes += by_client;
    }
}

/// What of a record decides its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LabelKey {
    netns_cookie: u64,
    cluster: u64,
    /// The other end.
    peer: IpAddr,
    /// The pod's own end, if it was connected to.
    inbound: Option<SocketAddr>,
}

/// Labels kept at most: the outside world has any number of addresses.
const KEPT: usize = 1 << 16;

/// The counters by labels.
#[derive(Debug, Default)]
pub(super) struct TcpConnections {
    by_labels: BTreeMap<Arc<str>, Counters>,
    /// Labels by what decides them; forgotten when names change.
    labels: HashMap<LabelKey, Arc<str>>,
    clusters: Clusters,
    endpoints: Endpoints,
    /// Connections that are open and were looked at, by cookie.
    reported: HashMap<u64, Reported>,
    /// Connections that ended since the look that is under way began, and just before it.
    ended: Option<HashSet<u64>>,
    /// Those that ended last: a look may still show what has just said that it ended.
    just_ended: VecDeque<u64>,
    /// Looks so far.
    looks: u64,
}

/// Bytes that are counted already.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Reported {
    sent: u64,
    received: u64,
    /// When it was seen last.
    look: u64,
}

/// Names of clusters by their numbers, as of one snapshot.
#[derive(Debug, Default)]
struct Clusters {
    generation: u64,
    names: HashMap<u64, (ViewId, Name)>,
}

impl Clusters {
    fn name(&mut self, number: u64, snapshot: &Snapshot) -> Option<(ViewId, Name)> {
        if self.generation != snapshot.generation && !self.names.contains_key(&number) {
            self.generation = snapshot.generation;
            let views = snapshot.views.values();
            self.names = views
                .flat_map(|view| view.clusters.values().map(|cluster| (view.id, cluster)))
                .map(|(view, cluster)| {
                    let number = Limits::of(view, cluster).cluster;
                    (number, (view, cluster.config.name.clone()))
                })
                .collect();
        }
        self.names.get(&number).cloned()
    }
}

impl TcpConnections {
    /// Pods came, went or changed.
    pub(super) fn names_changed(&mut self) {
        self.labels.clear();
    }

    /// Counts what a record says.
    pub(super) fn count(&mut self, event: &Event, pods: &Pods, snapshot: &Snapshot) {
        let Some(kind) = EventKind::of(event.kind) else {
            return;
        };
        self.observe(event, kind, snapshot);
        // Istio counts connections; those that failed are the cluster's `cx_connect_fail`.
        if kind == EventKind::Failed {
            return;
        }
        let ends = LabelKey {
            netns_cookie: event.netns_cookie,
            cluster: event.cluster,
            peer: event.addr.into(),
            inbound: (event.inbound != 0)
                .then(|| SocketAddr::new(event.orig_addr.into(), event.orig_port)),
        };
        let labels = self.labels(ends, pods, snapshot);
        let mut known = Reported::default();
        if kind == EventKind::Closed {
            known = self.reported.remove(&event.cookie).unwrap_or_default();
            if let Some(ended) = &mut self.ended {
                ended.insert(event.cookie);
            }
            if self.just_ended.len() == JUST_ENDED {
                self.just_ended.pop_front();
            }
            self.just_ended.push_back(event.cookie);
        }
        let counters = self.by_labels.entry(labels).or_default();
        match kind {
            EventKind::Opened => counters.opened += 1,
            _ => {
                counters.closed += 1;
                let sent = event.sent_bytes.saturating_sub(known.sent);
                let received = event.received_bytes.saturating_sub(known.received);
                counters.carried(ends.inbound.is_some(), sent, received);
            }
        }
    }

    /// Tells outlier detection how a connect went.
    fn observe(&mut self, event: &Event, kind: EventKind, snapshot: &Snapshot) {
        let outcome = match (kind, End::of(event.end)) {
            (EventKind::Opened, _) => Outcome::Connected,
            (EventKind::Failed, End::Refused) => Outcome::Failed,
            (EventKind::Failed, End::TimedOut) => Outcome::TimedOut,
            _ => return,
        };
        let Some((view, name)) = self.clusters.name(event.cluster, snapshot) else {
            return;
        };
        let Some(cluster) = snapshot
            .views
            .get(&view)
            .and_then(|view| view.clusters.get(&name))
        else {
            return;
        };
        if kind == EventKind::Failed {
            let failed = &cluster.state.stats.upstream_cx_connect_fail;
            failed.fetch_add(1, Ordering::Relaxed);
        }
        if cluster.config.outlier.is_none() {
            return;
        }
        let address = SocketAddr::new(event.addr.into(), event.port);
        if let Some(host) = cluster.hosts().find(|host| host.address == address) {
            outlier::observe(cluster, host, outcome);
        }
    }

    /// A look at open connections begins.
    pub(super) fn begin_samples(&mut self) {
        self.looks += 1;
        self.ended = Some(self.just_ended.iter().copied().collect());
    }

    /// Counts what an open connection carried since it was last looked at.
    pub(super) fn sample(&mut self, sample: &Sample, pods: &Pods, snapshot: &Snapshot) {
        let ended = |ended: &HashSet<u64>| ended.contains(&sample.cookie);
        if self.ended.as_ref().is_some_and(ended) {
            return;
        }
        let ends = LabelKey {
            netns_cookie: sample.netns_cookie,
            cluster: sample.cluster,
            peer: sample.addr.into(),
            inbound: sample.inbound,
        };
        let labels = self.labels(ends, pods, snapshot);
        let known = self.reported.entry(sample.cookie).or_default();
        let counters = self.by_labels.entry(labels).or_default();
        let sent = sample.sent_bytes.saturating_sub(known.sent);
        let received = sample.received_bytes.saturating_sub(known.received);
        counters.carried(ends.inbound.is_some(), sent, received);
        *known = Reported {
            sent: sample.sent_bytes.max(known.sent),
            received: sample.received_bytes.max(known.received),
            look: self.looks,
        };
    }

    /// All were looked at. What was not seen twice, and did not say that it ended, is forgotten.
    pub(super) fn end_samples(&mut self) {
        self.ended = None;
        let last = self.looks;
        self.reported.retain(|_, known| known.look + 1 >= last);
    }

    fn labels(&mut self, ends: LabelKey, pods: &Pods, snapshot: &Snapshot) -> Arc<str> {
        if let Some(labels) = self.labels.get(&ends) {
            return labels.clone();
        }
        let (pod, peer) = (pods.by_netns(ends.netns_cookie), pods.by_ip(ends.peer));
        // Pods of this node are known better than endpoints.
        if (peer.is_none() || ends.inbound.is_some())
            && self.endpoints.follow(snapshot, Instant::now())
        {
            self.labels.clear();
        }
        let pod = pod.map(|workload| Peer::of(workload)).unwrap_or_default();
        let peer = match peer {
            Some(workload) => Peer::of(workload),
            None => {
                let told = self.endpoints.workload(ends.peer);
                told.map(Peer::of_endpoint).unwrap_or_default()
            }
        };
        let (known, ends_of) = match ends.inbound {
            Some(own) => {
                let service = self.endpoints.cluster(own);
                let service = service.map(Service::of_cluster).unwrap_or_default();
                let of = Ends {
                    reporter: Reporter::Destination,
                    source: peer,
                    destination: pod,
                    service,
                };
                (true, of)
            }
            None => {
                let cluster = self.clusters.name(ends.cluster, snapshot);
                let service = cluster.as_ref().map(|(_, name)| Service::of_cluster(name));
                let of = Ends {
                    reporter: Reporter::Source,
                    source: pod,
                    destination: peer,
                    service: service.unwrap_or_default(),
                };
                (cluster.is_some(), of)
            }
        };
        let labels: Arc<str> = render(&ends_of).into();
        // A name that is not there yet may come with the next snapshot.
        if known {
            if self.labels.len() >= KEPT {
                self.labels.clear();
            }
            self.labels.insert(ends, labels.clone());
        }
        labels
    }

    /// The four metrics.
    pub(super) fn prometheus(&self, out: &mut String) {
        type Read = fn(&Counters) -> u64;
        let families: [(&str, Read); 4] = [
            ("connections_opened", |counters| counters.opened),
            ("connections_closed", |counters| counters.closed),
            ("sent_bytes", |counters| counters.sent_bytes),
            ("received_bytes", |counters| counters.received_bytes),
        ];
        for (name, read) in families {
            let _ = writeln!(out, "# TYPE istio_tcp_{name}_total counter");
            for (labels, counters) in &self.by_labels {
                let value = read(counters);
                let _ = writeln!(out, "istio_tcp_{name}_total{labels} {value}");
            }
        }
    }
}
