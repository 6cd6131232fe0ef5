//! What became of connections: Istio's TCP metrics, and who was refused what.
//!
//! Records come from the kernel's ring buffer, which a thread of its own reads several times a
//! second; nothing here is on the way of a connection.

mod denied;
mod labels;
mod pods;
mod reader;
mod tcp;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;

use crate::config::model::workload::Workload;
use crate::datapath::{Denied, Events};
use crate::snapshot::SharedSnapshot;

use self::denied::DeniedConnects;
use self::pods::Pods;
use self::tcp::TcpConnections;

/// A pod of this node, as far as metrics speak of it.
#[derive(Debug, Clone)]
pub struct KnownPod {
    /// Its network namespace.
    pub netns_cookie: u64,
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
