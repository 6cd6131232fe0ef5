//! Istio's TCP metrics, of connections that the kernel balances.
//!
//! As in Istio, *sent* is what the server sent and *received* what it received, whoever reports.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_common::{End, Event, EventKind};

use crate::config::model::Name;
use crate::datapath::Sample;
use crate::snapshot::outlier::{self, Outcome};
use crate::snapshot::slots::Limits;
use crate::snapshot::{Snapshot, ViewId};

use super::labels::{Ends, Service, render};
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

/// What of a record decides its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LabelKey {
    netns_cookie: u64,
    cluster: u64,
    server: IpAddr,
}

/// The counters by labels.
#[derive(Debug, Default)]
pub(super) struct TcpConnections {
    by_labels: BTreeMap<Arc<str>, Counters>,
    /// Labels by what decides them; forgotten when names change.
    labels: HashMap<LabelKey, Arc<str>>,
    clusters: Clusters,
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
            server: event.addr.into(),
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
                counters.sent_bytes += event.received_bytes.saturating_sub(known.received);
                counters.received_bytes += event.sent_bytes.saturating_sub(known.sent);
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
            server: sample.addr.into(),
        };
        let labels = self.labels(ends, pods, snapshot);
        let known = self.reported.entry(sample.cookie).or_default();
        let counters = self.by_labels.entry(labels).or_default();
        counters.sent_bytes += sample.received_bytes.saturating_sub(known.received);
        counters.received_bytes += sample.sent_bytes.saturating_sub(known.sent);
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
        let cluster = self.clusters.name(ends.cluster, snapshot);
        let labels: Arc<str> = render(&Ends {
            source: pods.by_netns(ends.netns_cookie).map(|workload| &**workload),
            destination: pods.by_ip(ends.server).map(|workload| &**workload),
            service: cluster
                .as_ref()
                .map(|(_, name)| Service::of_cluster(name))
                .unwrap_or_default(),
        })
        .into();
        // A name that is not there yet may come with the next snapshot.
        if cluster.is_some() {
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
