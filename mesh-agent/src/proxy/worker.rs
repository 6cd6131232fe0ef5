//! A worker: a thread that accepts and serves connections of all pods.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::identity::SharedCredentials;
use crate::snapshot::{SharedSnapshot, View};
use crate::telemetry::access_log::AccessLogger;
use crate::telemetry::requests::{Recorder, RequestMetrics};
use crate::workload::{Pod, PodId};

use super::hbone::{self, Hbone};
use super::http::pool::Pool;
use super::local::LocalPods;
use super::standing::Standing;
use super::stats::count;
use super::tcp::TcpPool;
use super::tls::{Contexts, Store};
use super::{ListenerKind, OriginalDst, PodListener, ProxyStats, accept};

/// How often idle connections are looked at: whether the upstream closed them, or they were idle
/// for too long.
const SWEEP: Duration = Duration::from_secs(1);

/// How often those who stand by rules and certificates are told of new ones, if there are any.
const LOOK: Duration = Duration::from_millis(200);

/// What the proxy tells its workers.
#[derive(Debug)]
pub(super) enum Command {
    AddPod(Arc<Pod>, Vec<PodListener>),
    RemovePod(PodId),
    Recheck,
    Drain,
}

/// What all workers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) snapshots: SharedSnapshot,
    pub(super) original_dst: Arc<dyn OriginalDst>,
    pub(super) stats: Arc<ProxyStats>,
    pub(super) credentials: SharedCredentials,
    pub(super) trust_domain: Arc<str>,
    pub(super) access_log: AccessLogger,
    pub(super) requests: Arc<RequestMetrics>,
    pub(super) tls: Arc<Store>,
}

impl Shared {
    /// What a pod sees now; `None`: there is no configuration for it.
    ///
    /// A pod is told its new view after the snapshot that has it is published, and keeps the old
    /// one until then. Looked at in between, the two may not fit; looked at again, they do.
    pub(super) fn view(&self, pod: &Pod) -> Option<Arc<View>> {
        for _ in 0..3 {
            let id = pod.view();
            if let Some(view) = self.snapshots.load().view(id) {
                return Some(view.clone());
            }
        }
        None
    }
}

/// What the connections of a worker share.
pub(super) struct Context {
    pub(super) shared: Shared,
    pub(super) pool: RefCell<Pool>,
    pub(super) bytes: TcpPool,
    pub(super) tls: Contexts,
    pub(super) hbone: Hbone,
    pub(super) locals: LocalPods,
    pub(super) requests: Recorder,
    pub(super) standing: Rc<Standing>,
    /// Turns true once, when the agent stops.
    pub(super) draining: watch::Receiver<bool>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// Runs until the proxy is dropped.
pub(super) fn run(shared: Shared, commands: mpsc::UnboundedReceiver<Command>) {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a proxy worker cannot start; its share of connections is refused");
            return;
        }
    };
    super::http::alarm::keep_timers();
    LocalSet::new().block_on(&runtime, serve(shared, commands));
}

async fn serve(shared: Shared, mut commands: mpsc::UnboundedReceiver<Command>) {
    let (drain, draining) = watch::channel(false);
    let tls = Contexts::new(
        shared.credentials.clone(),
        shared.snapshots.clone(),
        shared.trust_domain.clone(),
        shared.tls.clone(),
    );
    let (watch, changes) = hbone::Watch::new();
    let hbone = Hbone::new(&shared.trust_domain, changes);
    let requests = Recorder::new(shared.requests.clone());
    let context = Rc::new(Context {
        requests,
        shared,
        tls,
        hbone,
        pool: RefCell::default(),
        locals: LocalPods::default(),
        bytes: TcpPool::default(),
        standing: Rc::default(),
        draining,
    });
    let mut pods: HashMap<PodId, (u64, CancellationToken)> = HashMap::new();
    let mut swept = 0;
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            command = commands.recv() => match command {
                Some(command) => command,
                None => break,
            },
            _ = sweep.tick() => {
                let closed = context.tls.review() as u64;
                context.shared.stats.ssl_trust_withdrawn.fetch_add(closed, Ordering::Relaxed);
                let generation = context.tls.generation();
                context.hbone.tunnels.sweep(generation);
                let snapshot = context.shared.snapshots.load();
                let mut pool = context.pool.borrow_mut();
                if swept == snapshot.generation {
                    pool.forget_closed(generation);
                } else {
                    swept = snapshot.generation;
                    pool.forget_gone(generation, &snapshot);
                }
                continue;
            }
            _ = look.tick(), if watch.has_listeners() => {
                watch.look(&context.shared);
                continue;
            }
        };
        match command {
            Command::AddPod(pod, listeners) => {
                let end = CancellationToken::new();
                context.locals.add(&pod);
                pods.insert(pod.id, (pod.netns.cookie(), end.clone()));
                for listener in listeners {
                    match TcpListener::from_std(listener.socket) {
                        Ok(socket) => {
                            let listening = listen(
                                context.clone(),
                                pod.clone(),
                                listener.kind,
                                socket,
                                end.clone(),
                            );
                            tokio::task::spawn_local(listening);
                        }
                        Err(error) => {
                            tracing::error!(pod = %pod.workload.key(), %error, "cannot serve a listener");
                        }
                    }
                }
            }
            Command::RemovePod(id) => {
                if let Some((netns, end)) = pods.remove(&id) {
                    end.cancel();
                    context.locals.remove(id);
                    context.pool.borrow_mut().forget_pod(netns);
                    context.hbone.tunnels.forget_pod(netns);
                }
            }
            Command::Recheck => context.standing.recheck(&context.shared),
            Command::Drain => {
                let _ = drain.send(true);
            }
        }
    }
    for (_, end) in pods.values() {
        end.cancel();
    }
}

async fn listen(
    context: Rc<Context>,
    pod: Arc<Pod>,
    kind: ListenerKind,
    socket: TcpListener,
    end: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = end.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection =
                    connection(context.clone(), pod.clone(), kind, stream, end.clone());
                tokio::task::spawn_local(connection);
            }
            Err(error) => {
                // Out of descriptors or memory: what is open goes on, and some of it will end.
                tracing::warn!(pod = %pod.workload.key(), %error, "cannot accept; trying again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection; a panic in it ends it alone.
async fn connection(
    context: Rc<Context>,
    pod: Arc<Pod>,
    kind: ListenerKind,
    stream: TcpStream,
    end: CancellationToken,
) {
    let stats = context.shared.stats.clone();
    count(&stats.downstream_cx_total);
    stats.downstream_cx_active.fetch_add(1, Ordering::Relaxed);
    let serving = end.run_until_cancelled(accept::serve(context, pod, kind, stream));
    let result = CatchUnwind(Box::pin(serving)).await;
    stats.downstream_cx_active.fetch_sub(1, Ordering::Relaxed);
    if result.is_err() {
        count(&stats.panics);
        tracing::error!("a connection was dropped because of a bug in the agent; please report it");
    }
}

/// A future whose panic is its result.
struct CatchUnwind<F>(std::pin::Pin<Box<F>>);

impl<F: Future> Future for CatchUnwind<F> {
    type Output = Result<F::Output, ()>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let inner = &mut self.0;
        let poll = std::panic::AssertUnwindSafe(|| inner.as_mut().poll(context));
        match std::panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(_) => std::task::Poll::Ready(Err(())),
        }
    }
}

/// Resets a connection instead of closing it in order, so that the peer sees an error.
pub(super) fn reset(stream: &TcpStream) {
    let result: io::Result<()> = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
    if let Err(error) = result {
        tracing::debug!(%error, "cannot reset a connection; it is closed in order");
    }
}
