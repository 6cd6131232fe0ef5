//! Connections that are open: looked at from time to time, and closed when they must not go on.
//!
//! A thread of its own walks the pods' namespaces; the control loop only tells it what to do.

mod diag;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::{Addr, Pair, Side, sk_flags};

use crate::workload::Pod;

use self::diag::{Live, SocketDiag};
use super::authz::InboundRules;
use super::{Datapath, DatapathError};

/// How often open connections are looked at. Istio reports long connections every 5 s, too.
const PERIOD: Duration = Duration::from_secs(5);

/// An open connection that the kernel balanced, or that a pod's application accepted.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// The socket's cookie.
    pub cookie: u64,
    /// Who connected, or was connected to: the pod's network namespace.
    pub netns_cookie: u64,
    /// The pod's own end, if it was connected to.
    pub inbound: Option<SocketAddr>,
    /// The cluster's number in the kernel.
    pub cluster: u64,
    /// The other end's address.
    pub addr: Addr,
    /// Bytes the pod sent.
    pub sent_bytes: u64,
    /// Bytes the pod received.
    pub received_bytes: u64,
    /// Smoothed round-trip time.
    pub srtt_us: u32,
    /// Segments the pod sent again.
    pub retransmits: u32,
}

/// Who is told of open connections.
pub trait Observer: Send {
    /// A look at all of them begins.
    fn begin(&mut self);
    /// One of them.
    fn sample(&mut self, sample: &Sample);
    /// All were told.
    fn end(&mut self);
}

/// Connections of a cluster to one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) cluster: u64,
    pub(super) backend_id: u32,
}

enum Order {
    Pods(Vec<Arc<Pod>>),
    Close(HashSet<Route>),
    Revoke(Box<Revocation>),
}

/// Rules that hold for what is connected to a pod.
struct Revocation {
    pod: Arc<Pod>,
    ips: Vec<IpAddr>,
    rules: InboundRules,
}

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub struct Sockets {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Sockets {
    /// These pods are there.
    pub fn know(&self, pods: Vec<Arc<Pod>>) {
        self.tell(Order::Pods(pods));
    }

    /// Resets these connections.
    pub(super) fn close(&self, routes: HashSet<Route>) {
        self.tell(Order::Close(routes));
    }

    /// Resets connections to a pod at these addresses that its rules deny.
    pub(super) fn revoke(&self, pod: Arc<Pod>, ips: Vec<IpAddr>, rules: InboundRules) {
        self.tell(Order::Revoke(Box::new(Revocation { pod, ips, rules })));
    }

    fn tell(&self, order: Order) {
        // A thread that is gone had panicked, which dropping it tells.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks at open connections had panicked");
        }
    }
}

impl Datapath {
    /// Starts looking at open connections.
    ///
    /// # Errors
    /// The object has no socket storage, or the thread cannot be made.
    pub fn watch_sockets(&mut self, observer: impl Observer + 'static) -> anyhow::Result<()> {
        let Some(Map::SkStorage(storage)) = self.ebpf.map("SK") else {
            return Err(DatapathError::Missing("map SK").into());
        };
        let storage = storage.fd().as_fd().try_clone_to_owned()?;
        let pairs = self
            .ebpf
            .take_map("PAIRS")
            .ok_or(DatapathError::Missing("map PAIRS"))?
            .try_into()?;
        let (orders, todo) = channel();
        let walker = Walker {
            storage,
            pairs,
            pods: Vec::new(),
            observer: Box::new(observer),
        };
        let thread = std::thread::Builder::new()
            .name("sockets".into())
            .spawn(move || walker.run(&todo))?;
        self.sockets = Some(Sockets {
            orders: Some(orders),
            thread: Some(thread),
        });
        Ok(())
    }

    /// Open connections, and the thread that looks at them.
    pub fn sockets(&self) -> Option<&Sockets> {
        self.sockets.as_ref()
    }
}

struct Walker {
    storage: OwnedFd,
    /// What went past TCP.
    pairs: HashMap<MapData, u64, Pair>,
    pods: Vec<Arc<Pod>>,
    observer: Box<dyn Observer>,
}

impl Walker {
    fn run(mut self, todo: &Receiver<Order>) {
        let mut next = Instant::now() + PERIOD;
        loop {
            // Orders do not put a look off, however many come.
            match todo.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Order::Pods(pods)) => self.pods = pods,
                Ok(Order::Close(routes)) => self.close(&routes),
                Ok(Order::Revoke(revocation)) => {
                    let result = self.revoke(&revocation);
                    tell(&revocation.pod, "look at", result);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look();
                    next = Instant::now() + PERIOD;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&mut self) {
        self.observer.begin();
        for pod in &self.pods {
            let told = sk_flags::DIRECT | sk_flags::INBOUND;
            let result = connections(&self.storage, pod, told, |_, live| {
                let (own, _) = live.socket.ends();
                let inbound = live.state.flags & sk_flags::INBOUND != 0;
                let fast = self.pairs.get(&live.cookie, 0).unwrap_or_default();
                self.observer.sample(&Sample {
                    cookie: live.cookie,
                    netns_cookie: live.state.netns_cookie,
                    inbound: inbound.then_some(own),
                    cluster: live.state.cluster,
                    addr: live.socket.ends().1.ip().into(),
                    sent_bytes: live.sent_bytes + fast.bytes[Side::CLIENT as usize],
                    received_bytes: live.received_bytes + fast.bytes[Side::SERVER as usize],
                    srtt_us: live.srtt_us,
                    retransmits: live.retransmits,
                });
            });
            tell(pod, "look at", result);
        }
        self.observer.end();
    }

    /// A connection to the pod is one whose own end is an address of the pod and a port that
    /// somebody listens on there.
    fn revoke(&self, revocation: &Revocation) -> io::Result<()> {
        let Revocation { pod, ips, rules } = revocation;
        let diag = SocketDiag::open(&pod.netns, self.storage.as_raw_fd())?;
        let ports = diag.listening()?;
        let mut closed = 0;
        for live in diag.all()? {
            let (local, peer) = live.ends();
            let inbound = ips.contains(&local.ip())
                && !ips.contains(&peer.ip())
                && ports.contains(&local.port());
            if inbound && rules.denies(peer.ip(), local.port()) {
                match diag.destroy(&live) {
                    Ok(()) => closed += 1,
                    // It ended by itself.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if closed > 0 {
            let pod = pod.workload.key();
            tracing::info!(%pod, closed, "connections that access rules deny are reset");
        }
        Ok(())
    }

    fn close(&self, routes: &HashSet<Route>) {
        for pod in &self.pods {
            let mut closed = 0;
            let result = connections(&self.storage, pod, sk_flags::DIRECT, |diag, live| {
                let route = Route {
                    cluster: live.state.cluster,
                    backend_id: live.state.backend_id,
                };
                if routes.contains(&route) {
                    match diag.destroy(&live.socket) {
                        Ok(()) => closed += 1,
                        // It ended by itself.
                        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                        Err(error) => tell(pod, "close", Err(error)),
                    }
                }
            });
            tell(pod, "look at", result);
            if closed > 0 {
                let pod = pod.workload.key();
                tracing::info!(%pod, closed, "connections to endpoints that are gone are reset");
            }
        }
    }
}

/// The connections of a pod that have one of these [`sk_flags`].
fn connections(
    storage: &OwnedFd,
    pod: &Pod,
    flags: u16,
    mut each: impl FnMut(&SocketDiag, &Live),
) -> io::Result<()> {
    let diag = SocketDiag::open(&pod.netns, storage.as_raw_fd())?;
    for live in diag.connections()? {
        if live.state.flags & flags != 0 {
            each(&diag, &live);
        }
    }
    Ok(())
}

fn tell(pod: &Pod, what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        let pod = pod.workload.key();
        tracing::warn!(%pod, %error, "cannot {what} connections; kernels with CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY can");
    }
}
