//! Enrols the configured workloads as their namespaces come, and lets them go as they end.
//!
//! Runs on a thread of its own (entering namespaces is per thread) and owns the kernel side.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::model::Name;
use crate::config::model::listener::Listener;
use crate::config::model::workload::{Capture, InboundBeforeConfiguration, Workload};
use crate::datapath::{Datapath, DatapathError, Enrolment, closes_inbound};
use crate::proxy::Proxy;
use crate::snapshot::{Snapshot, ViewId};
use crate::telemetry::KnownPod;

use super::listeners::{ListenError, listen};
use super::status::{WorkloadState, WorkloadStatus};
use super::watch::{AddressWatch, NetnsIdentity};
use super::{Netns, Pod, PodId};

/// The pods of this node.
#[derive(Default)]
#[allow(missing_debug_implementations)]
pub struct Manager {
    entries: HashMap<Name, Entry>,
    last_pod_id: u32,
    /// Grows when a pod comes, goes or has other addresses.
    changes: u64,
}

/// How far the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The management server has not delivered: nobody is caught, and whoever may have to be is
    /// not connected to.
    Unconfigured,
    /// What another agent left in the kernel still holds.
    Inheriting,
    /// The snapshot holds.
    Serving,
}

/// A configured workload and how far its enrolment got.
struct Entry {
    workload: Arc<Workload>,
    state: State,
}

enum State {
    /// No namespace yet, or it could not be enrolled; tried again on every tick.
    Waiting {
        reason: String,
        /// The namespace that nobody may connect to meanwhile.
        barred: Option<u64>,
    },
    Enrolled(Box<Enrolled>),
}

struct Enrolled {
    pod: Arc<Pod>,
    identity: NetnsIdentity,
    addresses: AddressWatch,
    ips: Vec<std::net::IpAddr>,
    /// A duplicate of one inbound listener, for the kernel's map.
    inbound: std::net::TcpListener,
    /// What the kernel was told last.
    told: Told,
    /// Why inbound or outbound capture is not as configured.
    problem: Option<String>,
}

#[derive(PartialEq, Clone)]
struct Told {
    ips: Vec<std::net::IpAddr>,
    capture: Arc<Capture>,
    inbound: bool,
    view: ViewId,
    rules: Rules,
}

/// The listener whose rules hold; another one, even with the same rules, is told anew.
#[derive(Clone, Default)]
struct Rules(Option<Arc<Listener>>);

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

/// Why a pod could not be enrolled.
#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("the management server has not sent its configuration yet")]
    NoConfiguration,
    #[error("what another agent set up is in force until the configuration is complete")]
    Inheriting,
    #[error("cannot open the network namespace {path}: {reason}")]
    Netns {
        path: String,
        reason: std::io::Error,
    },
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

impl Manager {
    /// None yet; numbers of pods go on after this one.
    pub fn starting_after(last: PodId) -> Self {
        Self {
            last_pod_id: last.0,
            ..Self::default()
        }
    }

    /// Brings enrolment up to the snapshot and to what became of the namespaces. To be called
    /// after every snapshot and regularly.
    pub fn reconcile(
        &mut self,
        phase: Phase,
        snapshot: &Snapshot,
        datapath: &mut Datapath,
        proxy: &Proxy,
    ) {
        let wanted: HashMap<Name, &Arc<Workload>> = snapshot
            .node
            .workloads
            .iter()
            .map(|workload| (workload.key(), workload))
            .collect();
        let gone: Vec<Name> = self
            .entries
            .iter()
            .filter(|(key, entry)| {
                wanted
                    .get(*key)
                    .is_none_or(|workload| workload.netns != entry.workload.netns)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.forget(&key, "it is not configured any more", datapath, proxy);
        }
        for (key, workload) in wanted {
            self.entries
                .entry(key)
                .and_modify(|entry| entry.workload = workload.clone())
                .or_insert_with(|| Entry {
                    workload: workload.clone(),
                    state: State::Waiting {
                        reason: "new".into(),
                        barred: None,
                    },
                });
        }
        let ended: Vec<Name> = self
            .entries
            .iter()
            .filter(|(_, entry)| match &entry.state {
                State::Enrolled(enrolled) => {
                    entry.workload.netns.identity().ok() != Some(enrolled.identity)
                }
                State::Waiting { .. } => false,
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in ended {
            self.end(&key, datapath, proxy);
        }
        for (key, entry) in &mut self.entries {
            match &mut entry.state {
                State::Waiting { reason, barred } => {
                    let next = PodId(self.last_pod_id + 1);
                    let enrolled = match phase {
                        Phase::Unconfigured => Err(EnrolError::NoConfiguration),
                        Phase::Inheriting => Err(EnrolError::Inheriting),
                        Phase::Serving => enrol(&entry.workload, next, snapshot, datapath, proxy),
                    };
                    match enrolled {
                        Ok(enrolled) => {
                            self.last_pod_id = next.0;
                            self.changes += 1;
                            tracing::info!(
                                pod = %key,
                                netns_cookie = enrolled.pod.netns.cookie(),
                                ips = ?enrolled.ips,
                                "pod enrolled"
                            );
                            entry.state = State::Enrolled(Box::new(enrolled));
                        }
                        Err(error) => {
                            let meanwhile = bar(&entry.workload, barred, phase, snapshot, datapath);
                            let error = format!("{error}; {meanwhile}");
                            if *reason != error {
                                tracing::warn!(pod = %key, %error, "pod is not enrolled; trying again");
                                *reason = error;
                            }
                        }
                    }
                }
                State::Enrolled(enrolled) => {
                    if enrolled.refresh(&entry.workload, snapshot, datapath) {
                        self.changes += 1;
                    }
                }
            }
        }
    }

    /// The views that pods look at.
    pub fn views_in_use(&self) -> Vec<ViewId> {
        let mut views: Vec<ViewId> = self
            .entries
            .values()
            .filter_map(|entry| match &entry.state {
                State::Enrolled(enrolled) => Some(enrolled.pod.view()),
                State::Waiting { .. } => None,
            })
            .collect();
        views.sort_unstable();
        views.dedup();
        views
    }

    /// Grows whenever [`Self::known_pods`] has something new to say.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Enrolled pods, for metrics.
    pub fn known_pods(&self) -> Vec<KnownPod> {
        self.entries
            .values()
            .filter_map(|entry| match &entry.state {
                State::Enrolled(enrolled) => Some(KnownPod {
                    pod: enrolled.pod.clone(),
                    workload: entry.workload.clone(),
                    ips: enrolled.ips.clone(),
                }),
                State::Waiting { .. } => None,
            })
            .collect()
    }

    /// Lets all pods go.
    pub fn release_all(&mut self, datapath: &mut Datapath, proxy: &Proxy) {
        let keys: Vec<Name> = self.entries.keys().cloned().collect();
        for key in keys {
            self.forget(&key, "the agent stops", datapath, proxy);
        }
    }

    /// Every configured workload.
    pub fn status(&self) -> Vec<WorkloadStatus> {
        let mut all: Vec<WorkloadStatus> = self
            .entries
            .values()
            .map(|entry| {
                let workload = entry.workload.clone();
                match &entry.state {
                    State::Waiting { reason, .. } => WorkloadStatus {
                        workload,
                        pod: None,
                        ips: Vec::new(),
                        state: WorkloadState::Waiting,
                        reason: Some(reason.clone()),
                    },
                    State::Enrolled(enrolled) => WorkloadStatus {
                        workload,
                        pod: Some(enrolled.pod.clone()),
                        ips: enrolled.ips.clone(),
                        state: if enrolled.problem.is_some() {
                            WorkloadState::Degraded
                        } else {
                            WorkloadState::Enrolled
                        },
                        reason: enrolled.problem.clone(),
                    },
                }
            })
            .collect();
        all.sort_by_key(|status| status.workload.key());
        all
    }

    /// The namespace ended: releases everything, and waits for it to come back.
    fn end(&mut self, key: &Name, datapath: &mut Datapath, proxy: &Proxy) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let reason = "its network namespace has ended".to_owned();
        let waiting = State::Waiting {
            reason,
            barred: None,
        };
        let state = std::mem::replace(&mut entry.state, waiting);
        self.changes += 1;
        release(
            key,
            "its network namespace has ended",
            state,
            datapath,
            proxy,
        );
    }

    fn forget(&mut self, key: &Name, why: &str, datapath: &mut Datapath, proxy: &Proxy) {
        if let Some(entry) = self.entries.remove(key) {
            self.changes += 1;
            release(key, why, entry.state, datapath, proxy);
        }
    }
}

fn release(key: &Name, why: &str, state: State, datapath: &mut Datapath, proxy: &Proxy) {
    let enrolled = match state {
        State::Enrolled(enrolled) => enrolled,
        State::Waiting { barred, .. } => {
            if let Some(cookie) = barred {
                datapath.unbar(cookie);
            }
            return;
        }
    };
    // The kernel first: from here on new connections are plain, and no listener is missed.
    if let Err(error) = datapath.remove(enrolled.pod.id) {
        tracing::warn!(pod = %key, %error, "cannot remove the pod from the kernel's maps");
    }
    proxy.remove_pod(enrolled.pod.id);
    tracing::info!(pod = %key, why, "pod released");
}

/// Lets nobody connect to a pod that is not caught and must not be served without, or everybody
/// again; `barred` says what held so far, and what holds now. Returns that in words.
fn bar(
    workload: &Workload,
    barred: &mut Option<u64>,
    phase: Phase,
    snapshot: &Snapshot,
    datapath: &mut Datapath,
) -> &'static str {
    let netns = Netns::open(&workload.netns.path()).ok();
    let inherited = phase != Phase::Serving
        && netns
            .as_ref()
            .is_some_and(|netns| datapath.remembers(netns.cookie()).is_some());
    let netns =
        netns.filter(|netns| is_closed(workload, netns.cookie(), phase, snapshot, datapath));
    let was = barred.take();
    if let Some(netns) = netns
        && datapath.bar(&netns, &workload.key())
    {
        *barred = Some(netns.cookie());
    }
    if let Some(cookie) = was
        && *barred != was
    {
        datapath.unbar(cookie);
    }
    match barred {
        Some(_) => "connections to it are refused until then",
        None if inherited => "it is as an agent before this one left it",
        None => "its traffic is plain",
    }
}

/// Whether a pod that is not caught must not be connected to: by its configuration, by what an
/// agent before this one knew, or because nobody knows.
fn is_closed(
    workload: &Workload,
    cookie: u64,
    phase: Phase,
    snapshot: &Snapshot,
    datapath: &Datapath,
) -> bool {
    if !workload.capture.takes_some_inbound() {
        return false;
    }
    let remembered = datapath.remembers(cookie);
    if phase != Phase::Serving && remembered.is_some() {
        // The kernel still does what the other agent told it.
        return false;
    }
    let configured = match phase {
        Phase::Unconfigured => None,
        _ => snapshot.view_of(&workload.key()),
    };
    match configured.and_then(|view| snapshot.view(view)) {
        Some(view) => view.inbound.as_deref().is_some_and(closes_inbound),
        None => remembered.unwrap_or_else(|| {
            snapshot.node.inbound_before_configuration == InboundBeforeConfiguration::Refuse
        }),
    }
}

fn enrol(
    workload: &Arc<Workload>,
    id: PodId,
    snapshot: &Snapshot,
    datapath: &mut Datapath,
    proxy: &Proxy,
) -> Result<Enrolled, EnrolError> {
    let view = snapshot
        .view_of(&workload.key())
        .ok_or(EnrolError::NoConfiguration)?;
    let path = workload.netns.path();
    let netns_error = |reason| EnrolError::Netns {
        path: path.display().to_string(),
        reason,
    };
    let identity = workload.netns.identity().map_err(netns_error)?;
    let netns = Netns::open(&path).map_err(netns_error)?;
    let addresses = AddressWatch::new(&netns).map_err(netns_error)?;
    let ips = netns.addresses().map_err(netns_error)?;
    let pod = Arc::new(Pod {
        id,
        workload: workload.clone(),
        netns,
        view: view.0.into(),
        ips: ips.clone(),
    });
    let sockets = listen(&pod.netns, proxy.concurrency())?;
    let inbound = sockets
        .iter()
        .flatten()
        .find(|listener| listener.kind == crate::proxy::ListenerKind::Inbound)
        .map(|listener| listener.socket.try_clone())
        .transpose()
        .map_err(netns_error)?
        .ok_or_else(|| netns_error(std::io::Error::other("no inbound listener was made")))?;
    let mut enrolled = Enrolled {
        told: Told {
            ips,
            capture: workload.capture.clone(),
            inbound: false,
            view,
            rules: Rules::default(),
        },
        ips: pod.ips.clone(),
        pod: pod.clone(),
        identity,
        addresses,
        inbound,
        problem: None,
    };
    // The proxy first: whoever is caught is served.
    proxy.add_pod(&pod, sockets);
    if let Err(error) = enrolled.tell(workload, snapshot, datapath) {
        let _ = datapath.remove(id);
        proxy.remove_pod(id);
        return Err(error.into());
    }
    Ok(enrolled)
}

impl Enrolled {
    /// Follows changes of addresses, capture settings and configuration. Says whether there were
    /// any.
    fn refresh(
        &mut self,
        workload: &Workload,
        snapshot: &Snapshot,
        datapath: &mut Datapath,
    ) -> bool {
        if self.addresses.changed()
            && let Ok(ips) = self.pod.netns.addresses()
        {
            self.ips = ips;
        }
        if self.told == self.wanted(workload, snapshot) && self.problem.is_none() {
            return false;
        }
        let result = self.tell(workload, snapshot, datapath);
        let problem = result.err().map(|error| error.to_string());
        if problem != self.problem {
            if let Some(error) = &problem {
                tracing::warn!(pod = %workload.key(), %error, "pod is not captured as configured");
            }
            self.problem = problem;
        }
        true
    }

    fn wanted(&self, workload: &Workload, snapshot: &Snapshot) -> Told {
        let view = snapshot.view(self.view(snapshot));
        let listener = view.and_then(|view| view.inbound.clone());
        Told {
            ips: self.ips.clone(),
            capture: workload.capture.clone(),
            inbound: listener.is_some(),
            view: self.view(snapshot),
            rules: Rules(listener),
        }
    }

    /// What the pod may see by the snapshot; what it sees already if that does not say.
    fn view(&self, snapshot: &Snapshot) -> ViewId {
        snapshot
            .view_of(&self.pod.workload.key())
            .unwrap_or_else(|| self.pod.view())
    }

    fn tell(
        &mut self,
        workload: &Workload,
        snapshot: &Snapshot,
        datapath: &mut Datapath,
    ) -> Result<(), DatapathError> {
        let wanted = self.wanted(workload, snapshot);
        self.pod.see(wanted.view);
        datapath.enrol(&Enrolment {
            pod: &self.pod,
            ips: &wanted.ips,
            capture: &wanted.capture,
            inbound: wanted.inbound.then_some(&self.inbound),
            rules: wanted.rules.0.as_deref(),
        })?;
        self.told = wanted;
        Ok(())
    }
}
