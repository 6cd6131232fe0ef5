//! Active health checks, on a thread of their own: a session for each endpoint of each cluster
//! that is to be checked. Sockets are made in the namespace of a pod that sees the cluster.

mod probe;
mod session;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::identity::SharedCredentials;
use crate::snapshot::{SharedSnapshot, ViewId};
use crate::workload::{Pod, PodId};

use super::tls::{Contexts, Store};

/// How often a new snapshot is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// The thread; dropped, it ends.
#[derive(Debug)]
pub(super) struct Checker {
    pods: Option<mpsc::UnboundedSender<PodChange>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What checks are made with.
pub(super) struct Means {
    pub(super) snapshots: SharedSnapshot,
    pub(super) credentials: SharedCredentials,
    pub(super) trust_domain: Arc<str>,
    /// TLS configurations, shared with the workers.
    pub(super) tls: Arc<Store>,
}

#[derive(Debug)]
enum PodChange {
    Add(Arc<Pod>),
    Remove(PodId),
}

/// What sessions share.
struct Shared {
    snapshots: SharedSnapshot,
    tls: Contexts,
    pods: RefCell<HashMap<PodId, Arc<Pod>>>,
    /// Endpoints with a session, by what is remembered of them.
    sessions: RefCell<HashSet<usize>>,
}

impl Checker {
    pub(super) fn start(means: Means) -> io::Result<Self> {
        let (pods, changes) = mpsc::unbounded_channel();
        let thread = thread::Builder::new()
            .name("health".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => LocalSet::new().block_on(
                        &runtime,
                        run(
                            Rc::new(Shared {
                                tls: Contexts::new(
                                    means.credentials,
                                    means.snapshots.clone(),
                                    means.trust_domain,
                                    means.tls,
                                ),
                                snapshots: means.snapshots,
                                pods: RefCell::default(),
                                sessions: RefCell::default(),
                            }),
                            changes,
                        ),
                    ),
                    Err(error) => {
                        tracing::error!(%error, "health checks cannot start; checked endpoints stay unused");
                    }
                }
            })?;
        Ok(Self {
            pods: Some(pods),
            thread: Some(thread),
        })
    }

    /// A pod whose namespace may be used.
    pub(super) fn add_pod(&self, pod: &Arc<Pod>) {
        self.send(PodChange::Add(pod.clone()));
    }

    /// Its namespace is used no longer.
    pub(super) fn remove_pod(&self, pod: PodId) {
        self.send(PodChange::Remove(pod));
    }

    fn send(&self, change: PodChange) {
        if let Some(pods) = &self.pods {
            // Without the thread nobody is checked, which it has said.
            let _ = pods.send(change);
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.pods = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(shared: Rc<Shared>, mut changes: mpsc::UnboundedReceiver<PodChange>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut generation = None;
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Some(PodChange::Add(pod)) => {
                    shared.pods.borrow_mut().insert(pod.id, pod);
                }
                Some(PodChange::Remove(id)) => {
                    shared.pods.borrow_mut().remove(&id);
                }
                None => return,
            },
            _ = look.tick() => {
                let snapshot = shared.snapshots.load_full();
                if generation != Some(snapshot.generation) {
                    generation = Some(snapshot.generation);
                    start_sessions(&shared, &snapshot);
                }
            }
        }
    }
}

fn start_sessions(shared: &Rc<Shared>, snapshot: &crate::snapshot::Snapshot) {
    for view in snapshot.views.values() {
        let checked = view.clusters.iter();
        let checked = checked.filter(|(_, cluster)| cluster.config.health_check.is_some());
        for (name, cluster) in checked {
            for host in cluster.hosts() {
                let Some(checked) = &host.checked else {
                    continue;
                };
                if shared
                    .sessions
                    .borrow_mut()
                    .insert(Arc::as_ptr(checked).addr())
                {
                    let subject = session::Subject {
                        view: view.id,
                        cluster: name.clone(),
                        address: host.address,
                        checked: checked.clone(),
                    };
                    tokio::task::spawn_local(session::run(shared.clone(), subject));
                }
            }
        }
    }
}

impl Shared {
    /// A pod that sees a view.
    fn pod_of(&self, view: ViewId) -> Option<Arc<Pod>> {
        let pods = self.pods.borrow();
        // The same one as long as it is there.
        let mut seeing = pods.values().filter(|pod| pod.view() == view);
        let first = seeing.next()?;
        Some(
            seeing
                .fold(
                    first,
                    |first, pod| if pod.id < first.id { pod } else { first },
                )
                .clone(),
        )
    }
}
