//! The proxy: accept -> (TCP | HTTP) -> upstream.
//!
//! One thread a worker, each with a current-thread runtime, its own listeners (SO_REUSEPORT) and
//! its own upstream pools: a connection never leaves the worker that accepted it.

mod accept;
mod authz;
mod chunk;
mod filter_chain;
mod hbone;
mod health;
mod http;
mod lb;
mod local;
#[doc(hidden)]
pub mod micro;
mod record;
mod sniff;
mod standing;
pub mod stats;
mod stream;
mod sweeper;
mod tcp;
mod tls;
mod upstream;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::mpsc;

use crate::identity::SharedCredentials;
use crate::snapshot::SharedSnapshot;
use crate::telemetry::access_log::AccessLogWriter;
use crate::telemetry::requests::RequestMetrics;
use crate::workload::{Pod, PodId};

pub use stats::ProxyStats;
pub(crate) use tls::Certificate;
use worker::{Command, Shared};

/// Tells where a caught connection was going.
pub trait OriginalDst: Send + Sync + 'static {
    /// The destination the application dialled, for the connection accepted in the namespace
    /// with that cookie from `peer`. Each entry is read once. `None`: the kernel programs did
    /// not redirect this connection (somebody dialled the listener itself).
    fn take(&self, netns_cookie: u64, peer: SocketAddr) -> Option<SocketAddr>;
}

/// What a listener inside a pod serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// 15001: connections the pod makes.
    Outbound,
    /// 15006: connections the pod receives; `getsockname()` is the original destination.
    Inbound,
    /// 15008: HBONE tunnels with connections the pod receives.
    Hbone,
}

/// A listening socket inside a pod's namespace, for one worker.
#[derive(Debug)]
pub struct PodListener {
    /// What it serves.
    pub kind: ListenerKind,
    /// Bound, listening, non-blocking.
    pub socket: TcpListener,
}

/// The running workers.
#[derive(Debug)]
pub struct Proxy {
    workers: Vec<Worker>,
    stats: Arc<ProxyStats>,
    requests: Arc<RequestMetrics>,
    checker: health::Checker,
    /// Ends after the workers.
    access_log: AccessLogWriter,
    _sweeper: Sweeper,
}

/// The thread that turns outlier detection's intervals; dropping the sender ends it.
#[derive(Debug)]
struct Sweeper {
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sweeper {
    fn start(snapshots: SharedSnapshot) -> io::Result<Self> {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name("outliers".into())
            .spawn(move || sweeper::run(&snapshots, &stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Proxy {
    /// Starts `concurrency` workers.
    ///
    /// # Errors
    /// A thread or its runtime cannot be made.
    pub fn start(
        concurrency: usize,
        snapshots: SharedSnapshot,
        original_dst: Arc<dyn OriginalDst>,
        credentials: SharedCredentials,
        trust_domain: Arc<str>,
    ) -> io::Result<Self> {
        let stats = Arc::new(ProxyStats::default());
        let access_log = AccessLogWriter::start()?;
        let requests = Arc::new(RequestMetrics::default());
        let tls = Arc::new(tls::Store::default());
        let workers = (0..concurrency.max(1))
            .map(|index| {
                let shared = Shared {
                    snapshots: snapshots.clone(),
                    original_dst: original_dst.clone(),
                    stats: stats.clone(),
                    credentials: credentials.clone(),
                    trust_domain: trust_domain.clone(),
                    access_log: access_log.logger(),
                    requests: requests.clone(),
                    tls: tls.clone(),
                };
                let (commands, receiver) = mpsc::unbounded_channel();
                let thread = thread::Builder::new()
                    .name(format!("proxy-{index}"))
                    .spawn(move || worker::run(shared, receiver))?;
                Ok(Worker {
                    commands,
                    thread: Some(thread),
                })
            })
            .collect::<io::Result<_>>()?;
        let checker = health::Checker::start(health::Means {
            snapshots: snapshots.clone(),
            credentials,
            trust_domain,
            tls,
        })?;
        let sweeper = Sweeper::start(snapshots)?;
        Ok(Self {
            workers,
            checker,
            stats,
            requests,
            access_log,
            _sweeper: sweeper,
        })
    }

    /// How many workers there are.
    pub fn concurrency(&self) -> usize {
        self.workers.len()
    }

    /// Serves a pod. `sockets` holds the listeners of each worker.
    pub fn add_pod(&self, pod: &Arc<Pod>, sockets: Vec<Vec<PodListener>>) {
        self.checker.add_pod(pod);
        for (worker, sockets) in self.workers.iter().zip(sockets) {
            worker.send(Command::AddPod(pod.clone(), sockets));
        }
    }

    /// Closes a pod's listeners and connections.
    pub fn remove_pod(&self, pod: PodId) {
        self.checker.remove_pod(pod);
        for worker in &self.workers {
            worker.send(Command::RemovePod(pod));
        }
    }

    /// Asks the access rules of a new snapshot about standing connections.
    pub fn recheck(&self) {
        for worker in &self.workers {
            worker.send(Command::Recheck);
        }
    }

    /// Asks every connection to end when it can, and waits until none is left or `limit` is over.
    /// Returns whether all ended.
    pub async fn drain(&self, limit: Duration) -> bool {
        for worker in &self.workers {
            worker.send(Command::Drain);
        }
        let deadline = tokio::time::Instant::now() + limit;
        while self.stats.active_connections() > 0 {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    /// Istio's metrics of requests.
    pub fn requests(&self) -> &RequestMetrics {
        &self.requests
    }

    /// The writer of access logs.
    pub fn access_log(&self) -> &AccessLogWriter {
        &self.access_log
    }

    /// Counters of the whole proxy.
    pub fn stats(&self) -> &Arc<ProxyStats> {
        &self.stats
    }
}

impl Worker {
    fn send(&self, command: Command) {
        // A worker only ends with the proxy, so nobody misses the command.
        let _ = self.commands.send(command);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let (closed, _) = mpsc::unbounded_channel();
            worker.commands = closed;
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}
