//! A snapshot into what the kernel should know of services: a pure function of it and of the
//! snapshot that was planned before.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::{Addr, LbKind, Service, ServiceFlags, ServiceKey, TCP, Verdict};

use crate::config::model::Name;
use crate::config::model::listener::Listener;
use crate::config::model::workload::OutboundTrafficPolicy;
use crate::snapshot::{ANYTHING, Difference, Snapshot, View, ViewId};

use super::decide::{Decision, Placement, decide};
use super::failure;
use super::sources::{self, Source, Sources};
use crate::balance::rotation::rotation;
use crate::snapshot::slots::{Limits, Weighted};

/// What the service maps should hold.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// By key.
    pub services: BTreeMap<ServiceKey, ServicePlan>,
    /// Of what there shall be nothing else.
    pub scope: Scope,
}

/// What a plan says all about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// All services.
    #[default]
    Everything,
    /// Those of some views; of others it says only what changes.
    Views(BTreeSet<ViewId>),
}

impl Scope {
    /// Whether services of this key are all planned.
    pub(super) fn contains(&self, key: &ServiceKey) -> bool {
        match self {
            Self::Everything => true,
            Self::Views(views) => views.contains(&ViewId(key.view_id)),
        }
    }
}

/// What the kernel should do with one key's connections.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePlan {
    /// The listener's name, or what stands for it.
    pub name: Name,
    /// What happens.
    pub verdict: Verdict,
    /// How a backend is picked.
    pub lb: LbKind,
    /// Backends in slot order.
    pub slots: Vec<PlannedSlot>,
    /// Of [`LbKind::LeastConnections`]: among how many; otherwise 0.
    pub choices: u8,
    /// Slots of single pods, by [`SlotKey::of_pod`], where the client's address decides.
    pub by_pod: BTreeMap<u32, PlannedSlot>,
    /// Without the agent, connections go on without it instead of being refused.
    pub fail_open: bool,
    /// Why it runs where it runs.
    pub why: Cow<'static, str>,
}

/// One share of a service's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedSlot {
    /// Where they go.
    pub address: SocketAddr,
    /// How many may.
    pub limits: Limits,
    /// Not 0: the pod's own slot in the set of this number goes before it.
    pub by_pod: u32,
}

impl ServicePlan {
    /// All slots with their numbers in the kernel.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u32, PlannedSlot)> {
        let by_pod = self.by_pod.iter().map(|(number, slot)| (*number, *slot));
        (0..).zip(self.slots.iter().copied()).chain(by_pod)
    }

    /// What another agent must have planned to have written this. Nobody knows its reason any
    /// more, so it equals no plan of ours and is written again.
    pub(super) fn inherited(service: &Service, slots: Vec<PlannedSlot>) -> Self {
        Self {
            name: "(from before)".into(),
            verdict: match service.verdict {
                verdict if verdict == Verdict::Pass as u8 => Verdict::Pass,
                verdict if verdict == Verdict::Direct as u8 => Verdict::Direct,
                verdict if verdict == Verdict::Agent as u8 => Verdict::Agent,
                _ => Verdict::Deny,
            },
            lb: LbKind::RoundRobin,
            choices: 0,
            slots,
            by_pod: BTreeMap::new(),
            fail_open: service.flags & ServiceFlags::FAIL_OPEN != 0,
            why: "left by an agent that is gone".into(),
        }
    }
}

impl Plan {
    /// The whole plan for a snapshot.
    pub fn new(snapshot: &Snapshot, sources: &Sources) -> Self {
        let mut plan = Self::default();
        for view in snapshot.views.values() {
            plan.add_view(view, sources);
        }
        plan
    }

    /// What changes when pods that look at a view come or have other addresses: services that look
    /// at their clients' addresses.
    pub fn of_sources(snapshot: &Snapshot, view: ViewId, sources: &Sources) -> Self {
        let mut plan = Self {
            scope: Scope::Views(BTreeSet::new()),
            ..Self::default()
        };
        if let Some(view) = snapshot.views.get(&view) {
            for (address, listener) in view.outbound.all() {
                if sources::matter(listener) {
                    plan.add(view, address, listener, sources);
                }
            }
        }
        plan
    }

    /// What changes from one snapshot to the next, which may be several later.
    pub fn update(before: &Snapshot, snapshot: &Snapshot, sources: &Sources) -> Self {
        let mut plan = Self::default();
        let gone = before.views.keys().copied();
        let mut whole: BTreeSet<ViewId> =
            gone.filter(|id| !snapshot.views.contains_key(id)).collect();
        for (id, view) in &snapshot.views {
            match before.views.get(id) {
                Some(known) if Arc::ptr_eq(known, view) => {}
                Some(known) => match &view.difference {
                    Difference::Endpoints { since, clusters } if *since == known.generation => {
                        plan.add_users(view, clusters, sources);
                    }
                    _ => {
                        whole.insert(*id);
                        plan.add_view(view, sources);
                    }
                },
                None => {
                    whole.insert(*id);
                    plan.add_view(view, sources);
                }
            }
        }
        plan.scope = Scope::Views(whole);
        plan
    }

    /// What changes when endpoints of these clusters are ejected or come back.
    pub fn of_clusters(
        snapshot: &Snapshot,
        clusters: &[(ViewId, Name)],
        sources: &Sources,
    ) -> Self {
        let mut plan = Self {
            scope: Scope::Views(BTreeSet::new()),
            ..Self::default()
        };
        for (view, name) in clusters {
            if let Some(view) = snapshot.views.get(view) {
                plan.add_users(view, std::slice::from_ref(name), sources);
            }
        }
        plan
    }

    /// Plans the services whose connections go to one of these clusters.
    fn add_users(&mut self, view: &View, clusters: &[Name], sources: &Sources) {
        for name in clusters {
            for (address, listener) in view.outbound.users(name) {
                self.add(view, *address, listener, sources);
            }
        }
    }

    fn add_view(&mut self, view: &View, sources: &Sources) {
        for (address, listener) in view.outbound.all() {
            self.add(view, address, listener, sources);
        }
        if view.outbound.catch_all().is_some()
            || view.outbound_traffic_policy != OutboundTrafficPolicy::RegistryOnly
        {
            return;
        }
        for anything in ANYTHING {
            let decision = Decision {
                placement: Placement::Deny,
                why: "outbound_traffic_policy is REGISTRY_ONLY".into(),
            };
            self.insert(view, anything, "REGISTRY_ONLY".into(), decision, &[]);
        }
    }

    fn add(
        &mut self,
        view: &View,
        address: SocketAddr,
        listener: &Arc<Listener>,
        sources: &Sources,
    ) {
        let port = (address.port() != 0).then_some(address.port());
        let ip = (!address.ip().is_unspecified()).then_some(address.ip());
        let key = self.insert(
            view,
            address,
            listener.name.clone(),
            decide(listener, ip, port, view),
            sources.of(view.id),
        );
        if let Some(service) = self.services.get_mut(&key) {
            service.fail_open =
                service.verdict == Verdict::Agent && failure::allows(listener, view);
        }
    }

    fn insert(
        &mut self,
        view: &View,
        address: SocketAddr,
        name: Name,
        decision: Decision,
        sources: &[Source],
    ) -> ServiceKey {
        let key = ServiceKey {
            view_id: view.id.0,
            addr: Addr::from(address.ip()),
            port: address.port(),
            proto: TCP as u16,
        };
        let (mut by_pod, mut choices) = (BTreeMap::new(), 0);
        let (verdict, lb, backends) = match decision.placement {
            Placement::Pass => (Verdict::Pass, LbKind::RoundRobin, Vec::new()),
            Placement::Direct {
                lb,
                choices: among,
                backends,
                by_source,
            } => {
                choices = among;
                for (set, cluster) in by_source {
                    by_pod.extend(sources::slots(view.id, (&cluster, set), address, sources));
                }
                (Verdict::Direct, lb, backends)
            }
            Placement::Agent => (Verdict::Agent, LbKind::RoundRobin, Vec::new()),
            Placement::Deny => (Verdict::Deny, LbKind::RoundRobin, Vec::new()),
        };
        let (reachable, foreign): (Vec<Weighted>, Vec<Weighted>) = backends
            .iter()
            .partition(|backend| reaches(address, backend.address));
        let weights: Vec<f64> = reachable.iter().map(|backend| backend.weight).collect();
        let slots = rotation(&weights)
            .into_iter()
            .map(|index| PlannedSlot {
                address: reachable[index].address,
                limits: reachable[index].limits,
                by_pod: reachable[index].by_pod,
            })
            .collect();
        let (verdict, why) = if foreign.is_empty() {
            (verdict, decision.why)
        } else {
            let why = "endpoints of the other address family: a socket cannot change its own";
            (Verdict::Agent, why.into())
        };
        self.services.insert(
            key,
            ServicePlan {
                name,
                verdict,
                lb,
                choices,
                slots,
                by_pod: if verdict == Verdict::Direct {
                    by_pod
                } else {
                    BTreeMap::new()
                },
                fail_open: false,
                why,
            },
        );
        key
    }
}

/// Whether a socket connecting to `dialled` can be rewritten to `backend`. An AF_INET socket only
/// reaches IPv4. An AF_INET6 one reaches both in principle, but may be IPV6_V6ONLY.
fn reaches(dialled: SocketAddr, backend: SocketAddr) -> bool {
    dialled.is_ipv4() == backend.is_ipv4()
}

#[cfg(test)]
mod tests;
