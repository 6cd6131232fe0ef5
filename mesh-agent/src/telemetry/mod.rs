//! What became of connections: Istio's TCP metrics, and who was refused what.
//!
//! Records come from the kernel's ring buffer, which a thread of its own reads several times a
//! second; nothing here is on the way of a connection.

pub mod access_log;
mod denied;
mod endpoints;
pub mod histogram;
pub(crate) mod labels;
pub mod peer;
mod pods;
mod reader;
pub mod requests;
mod tcp;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::model::workload::Workload;
use crate::datapath::{Denied, Events, Observer, Sample};
use crate::snapshot::SharedSnapshot;
use crate::workload::Pod;

use self::denied::DeniedConnects;
use self::pods::Pods;
use self::tcp::TcpConnections;

/// A pod of this node, as far as metrics speak of it.
#[derive(Debug, Clone)]
pub struct KnownPod {
    /// Itself.
    pub pod: Arc<Pod>,
    /// What is configured of it.
    pub workload: Arc<Workload>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// The counters. Dropping it ends the reader.
#[derive(Debug)]
pub struct Telemetry {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    snapshots: SharedSnapshot,
    state: Mutex<State>,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    pods: Pods,
    tcp: TcpConnections,
    denied: DeniedConnects,
}

impl Telemetry {
    /// Starts reading.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(snapshots: SharedSnapshot, events: Events) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            snapshots,
            state: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let reader = std::thread::Builder::new()
            .name("telemetry".into())
            .spawn({
                let shared = shared.clone();
                move || reader::run(&shared, events)
            })?;
        Ok(Self {
            shared,
            reader: Some(reader),
        })
    }

    /// The pods of this node. Those that are gone stay known by their namespace: what is read of
    /// them comes late.
    pub fn know(&self, pods: Vec<KnownPod>) {
        let mut state = self.shared.state.lock();
        state.pods.know(pods);
        state.tcp.names_changed();
    }

    /// What is to be told of open connections.
    pub fn sampler(&self) -> impl Observer + 'static {
        Sampler(self.shared.clone())
    }

    /// Counts connects that the kernel refused, and logs some of them.
    pub fn denied(&self, denied: &[Denied]) {
        if !denied.is_empty() {
            let mut state = self.shared.state.lock();
            let State {
                pods,
                denied: counts,
                ..
            } = &mut *state;
            counts.count(denied, pods, Instant::now());
        }
    }

    /// The metrics, in Prometheus' text format.
    pub fn prometheus(&self, out: &mut String) {
        let state = self.shared.state.lock();
        state.tcp.prometheus(out);
        state.denied.prometheus(out);
    }
}

/// Counts the bytes of connections that go on for long.
struct Sampler(Arc<Shared>);

impl Observer for Sampler {
    fn begin(&mut self) {
        self.0.state.lock().tcp.begin_samples();
    }

    fn sample(&mut self, sample: &Sample) {
        let snapshot = self.0.snapshots.load();
        let mut state = self.0.state.lock();
        let State { pods, tcp, .. } = &mut *state;
        tcp.sample(sample, pods, &snapshot);
    }

    fn end(&mut self) {
        self.0.state.lock().tcp.end_samples();
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            tracing::error!("the reader of connection records had panicked");
        }
    }
}
