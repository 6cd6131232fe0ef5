//! Istio's metrics of requests.
//!
//! Labels are made once for what decides them; a request adds to counters that its worker knows
//! already. As Istio's stats filter: the client's side is reporter `source`, the server's side
//! `destination`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::config::model::response_flag::ResponseFlags;
use crate::config::model::workload::Workload;
use crate::snapshot::ClusterView;
use crate::workload::Pod;

use super::KnownPod;
use super::histogram::Histogram;
use super::labels::{Rendering, Service};
use super::peer::Peer;

/// Most combinations of labels; Istio's own advice is to have far fewer.
const MAX_SERIES: usize = 50_000;
/// Most combinations a worker remembers the way to.
const MAX_KNOWN: usize = 8192;

/// Which side of a request is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reporter {
    /// The client's pod.
    Source,
    /// The server's pod.
    Destination,
}

/// A request that is over.
#[derive(Debug)]
pub(crate) struct Finished<'a> {
    /// Which side this is.
    pub(crate) reporter: Reporter,
    /// The pod of this side.
    pub(crate) pod: &'a Arc<Pod>,
    /// Where the other side is; `None`: no endpoint was found.
    pub(crate) other: Option<IpAddr>,
    /// Who is there, if the control plane tells.
    pub(crate) endpoint: Option<&'a str>,
    /// The cluster that was chosen.
    pub(crate) cluster: Option<&'a Arc<ClusterView>>,
    /// Who the client proved to be.
    pub(crate) source_principal: Option<Arc<str>>,
    /// Who the server proved to be.
    pub(crate) destination_principal: Option<Arc<str>>,
    /// Whether the client came with mutual TLS; known on the server's side.
    pub(crate) mutual_tls: bool,
    /// The response's status; 0 without one.
    pub(crate) status: u16,
    /// The status of a gRPC call.
    pub(crate) grpc_status: Option<u16>,
    /// What was special.
    pub(crate) flags: ResponseFlags,
    /// From the first byte to the last one.
    pub(crate) duration: Duration,
    /// Of the request's body.
    pub(crate) request_bytes: u64,
    /// Of the response's body.
    pub(crate) response_bytes: u64,
    /// gRPC's messages each way.
    pub(crate) messages: Option<(u64, u64)>,
}

/// The counters of one combination of labels.
#[derive(Debug, Default)]
struct Series {
    requests: AtomicU64,
    milliseconds: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
    /// Whether there are messages to tell of.
    grpc: bool,
}

/// What decides labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reporter: Reporter,
    /// The pod and the cluster's state, by address: what is known holds on to them.
    pod: usize,
    cluster: usize,
    other: Option<IpAddr>,
    source_principal: Option<Arc<str>>,
    destination_principal: Option<Arc<str>>,
    mutual_tls: bool,
    status: u16,
    grpc_status: Option<u16>,
    flags: ResponseFlags,
}

/// All of them, shared by the workers.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    series: Mutex<BTreeMap<Arc<str>, Arc<Series>>>,
    /// The pods of this node by address.
    pods: ArcSwap<HashMap<IpAddr, Arc<Workload>>>,
    /// Grows when pods change: labels are made anew.
    generation: AtomicU64,
    dropped: AtomicU64,
}

impl RequestMetrics {
    /// The pods of this node.
    pub fn know(&self, pods: &[KnownPod]) {
        let by_ip = pods.iter().flat_map(|known| {
            let workload = &known.workload;
            known.ips.iter().map(move |ip| (*ip, workload.clone()))
        });
        self.pods.store(Arc::new(by_ip.collect()));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn series(&self, labels: String, grpc: bool) -> Option<Arc<Series>> {
        let mut all = self.series.lock();
        if let Some(series) = all.get(labels.as_str()) {
            return Some(series.clone());
        }
        if all.len() >= MAX_SERIES {
            return None;
        }
        let series = Arc::new(Series {
            grpc,
            ..Series::default()
        });
        all.insert(labels.into(), series.clone());
        Some(series)
    }

    /// The metrics, in Prometheus' text format.
    pub fn prometheus(&self, out: &mut String) {
        let all = self.series.lock().clone();
        let _ = writeln!(
            out,
            "# HELP istio_requests_total Requests.\n# TYPE istio_requests_total counter"
        );
        for (labels, series) in &all {
            let value = series.requests.load(Ordering::Relaxed);
            let _ = writeln!(out, "istio_requests_total{labels} {value}");
        }
        type Read = fn(&Series) -> &Histogram;
        let histograms: [(&str, &str, Read); 3] = [
            (
                "istio_request_duration_milliseconds",
                "From a request's first byte to its response's last one.",
                |series| &series.milliseconds,
            ),
            (
                "istio_request_bytes",
                "Bytes of requests' bodies.",
                |series| &series.request_bytes,
            ),
            (
                "istio_response_bytes",
                "Bytes of responses' bodies.",
                |series| &series.response_bytes,
            ),
        ];
        for (name, help, read) in histograms {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            for (labels, series) in &all {
                read(series).prometheus(name, labels, out);
            }
        }
        type Count = fn(&Series) -> &AtomicU64;
        let messages: [(&str, &str, Count); 2] = [
            (
                "istio_request_messages_total",
                "gRPC messages from clients.",
                |series| &series.request_messages,
            ),
            (
                "istio_response_messages_total",
                "gRPC messages to clients.",
                |series| &series.response_messages,
            ),
        ];
        for (name, help, read) in messages {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, series) in all.iter().filter(|(_, series)| series.grpc) {
                let value = read(series).load(Ordering::Relaxed);
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        }
        let dropped = self.dropped.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "# HELP mesh_requests_uncounted_total Requests of more combinations of labels than are kept.\n\
             # TYPE mesh_requests_uncounted_total counter\nmesh_requests_uncounted_total {dropped}"
        );
    }
}

/// A worker's way to the counters.
#[derive(Debug)]
pub(crate) struct Recorder {
    shared: Arc<RequestMetrics>,
    generation: Cell<u64>,
    known: RefCell<HashMap<Key, Known>>,
}

/// Counters, and what the key names by address.
#[derive(Debug)]
struct Known {
    series: Option<Arc<Series>>,
    _pod: Arc<Pod>,
    _cluster: Option<Arc<ClusterView>>,
}

impl Recorder {
    pub(crate) fn new(shared: Arc<RequestMetrics>) -> Self {
        Self {
            shared,
            generation: Cell::new(0),
            known: RefCell::default(),
        }
    }

    /// The pod of this node with that address.
    pub(crate) fn peer(&self, ip: IpAddr) -> Option<Peer> {
        self.shared
            .pods
            .load()
            .get(&ip)
            .map(|workload| Peer::of(workload))
    }

    /// Counts a request.
    pub(crate) fn count(&self, finished: &Finished<'_>) {
        let known = &mut *self.known.borrow_mut();
        let generation = self.shared.generation.load(Ordering::Acquire);
        if self.generation.replace(generation) != generation || known.len() >= MAX_KNOWN {
            known.clear();
        }
        let entry = known.entry(finished.key()).or_insert_with(|| Known {
            series: self.shared.series(
                finished.labels(&self.shared),
                finished.grpc_status.is_some(),
            ),
            _pod: finished.pod.clone(),
            _cluster: finished.cluster.cloned(),
        });
        match &entry.series {
            Some(series) => series.count(finished),
            None => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Series {
    fn count(&self, finished: &Finished<'_>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let micros = finished.duration.as_micros() as u64;
        self.milliseconds.observe(micros);
        self.request_bytes
            .observe(finished.request_bytes.saturating_mul(1000));
        self.response_bytes
            .observe(finished.response_bytes.saturating_mul(1000));
        if let Some((requests, responses)) = finished.messages {
            self.request_messages.fetch_add(requests, Ordering::Relaxed);
            self.response_messages
                .fetch_add(responses, Ordering::Relaxed);
        }
    }
}

impl Finished<'_> {
    fn key(&self) -> Key {
        let address = |cluster: &Arc<ClusterView>| Arc::as_ptr(&cluster.state).addr();
        Key {
            reporter: self.reporter,
            pod: Arc::as_ptr(self.pod).addr(),
            cluster: self.cluster.map_or(0, address),
            other: self.other,
            source_principal: self.source_principal.clone(),
            destination_principal: self.destination_principal.clone(),
            mutual_tls: self.mutual_tls,
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
        }
    }

    fn labels(&self, shared: &RequestMetrics) -> String {
        let pods = shared.pods.load();
        let known = self.other.and_then(|ip| pods.get(&ip));
        let other = match (known, self.endpoint) {
            (Some(workload), _) => Peer::of(workload),
            (None, Some(endpoint)) => Peer::of_endpoint(endpoint),
            (None, None) => Peer::default(),
        };
        let own = Peer::of(&self.pod.workload);
        let (reporter, source, destination) = match self.reporter {
            Reporter::Source => ("source", &own, &other),
            Reporter::Destination => ("destination", &other, &own),
        };
        let mut out = Rendering::new();
        out.add("reporter", Some(reporter));
        out.peer("source", source, self.source_principal.as_deref());
        let principal = self.destination_principal.as_deref();
        out.peer("destination", destination, principal);
        let service = self.service();
        out.add("destination_service", service.host.as_deref());
        out.add("destination_service_name", service.name.as_deref());
        out.add(
            "destination_service_namespace",
            service.namespace.as_deref(),
        );
        let protocol = match self.grpc_status {
            Some(_) => "grpc",
            None => "http",
        };
        out.add("request_protocol", Some(protocol));
        out.add("response_code", Some(&self.status.to_string()));
        let grpc_status = self.grpc_status.map(|status| status.to_string());
        out.add(
            "grpc_response_status",
            Some(grpc_status.as_deref().unwrap_or_default()),
        );
        let flags = match self.flags.is_empty() {
            true => "-".to_owned(),
            false => self.flags.to_string(),
        };
        out.add("response_flags", Some(&flags));
        let policy = match (self.reporter, self.mutual_tls) {
            // Istio: the client's side does not know.
            (Reporter::Source, _) => None,
            (Reporter::Destination, true) => Some("mutual_tls"),
            (Reporter::Destination, false) => Some("none"),
        };
        out.add("connection_security_policy", policy);
        out.finish()
    }

    /// The service that was asked.
    fn service(&self) -> Service {
        let Some(cluster) = self.cluster else {
            return Service::default();
        };
        match &cluster.config.service {
            Some(known) => Service {
                host: Some(known.host.to_string()),
                name: Some(known.name.to_string()),
                namespace: Some(known.namespace.to_string()),
            },
            None => Service::of_cluster(&cluster.config.name),
        }
    }
}
