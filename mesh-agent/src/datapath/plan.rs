//! A snapshot into what the kernel should know of services: a pure function.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mesh_common::{Addr, LbKind, Service, ServiceFlags, ServiceKey, TCP, Verdict};

use crate::config::model::Name;
use crate::config::model::listener::Listener;
use crate::config::model::workload::OutboundTrafficPolicy;
use crate::snapshot::{Snapshot, View};

use super::decide::{Decision, Placement, decide};
use crate::balance::rotation::rotation;
use crate::snapshot::slots::{Limits, Weighted};

/// Everything the service maps should hold.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// By key.
    pub services: BTreeMap<ServiceKey, ServicePlan>,
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
}

impl ServicePlan {
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
            slots,
            fail_open: service.flags & ServiceFlags::FAIL_OPEN != 0,
            why: "left by an agent that is gone".into(),
        }
    }
}

impl Plan {
    /// The plan for a snapshot.
    pub fn new(snapshot: &Snapshot) -> Self {
        let mut plan = Self::default();
        for view in snapshot.views.values() {
            plan.add_view(view);
        }
        plan
    }

    fn add_view(&mut self, view: &View) {
        for (address, listener) in view.outbound.exact() {
            self.add(view, address, listener);
        }
        for (port, listener) in view.outbound.wildcard_v6() {
            self.add(
                view,
                SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
                listener,
            );
            self.add(
                view,
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
                listener,
            );
        }
        // After `::`, which also takes IPv4 unless `0.0.0.0` is there.
        for (port, listener) in view.outbound.wildcard_v4() {
            self.add(
                view,
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
                listener,
            );
        }
        for ip in [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ] {
            let anything = SocketAddr::new(ip, 0);
            match view.outbound.catch_all() {
                Some(listener) => self.add(view, anything, listener),
                None if view.outbound_traffic_policy == OutboundTrafficPolicy::RegistryOnly => {
                    self.insert(
                        view,
                        anything,
                        "REGISTRY_ONLY".into(),
                        Decision {
                            placement: Placement::Deny,
                            why: "outbound_traffic_policy is REGISTRY_ONLY".into(),
                        },
                    );
                }
                None => {}
            }
        }
    }

    fn add(&mut self, view: &View, address: SocketAddr, listener: &Arc<Listener>) {
        let port = (address.port() != 0).then_some(address.port());
        self.insert(
            view,
            address,
            listener.name.clone(),
            decide(listener, port, view),
        );
    }

    fn insert(&mut self, view: &View, address: SocketAddr, name: Name, decision: Decision) {
        let key = ServiceKey {
            view_id: view.id.0,
            addr: Addr::from(address.ip()),
            port: address.port(),
            proto: TCP as u16,
        };
        let (verdict, lb, backends) = match decision.placement {
            Placement::Pass => (Verdict::Pass, LbKind::RoundRobin, Vec::new()),
            Placement::Direct { lb, backends } => (Verdict::Direct, lb, backends),
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
                slots,
                fail_open: false,
                why,
            },
        );
    }
}

/// Whether a socket connecting to `dialled` can be rewritten to `backend`. An AF_INET socket only
/// reaches IPv4. An AF_INET6 one reaches both in principle, but may be IPV6_V6ONLY.
fn reaches(dialled: SocketAddr, backend: SocketAddr) -> bool {
    dialled.is_ipv4() == backend.is_ipv4()
}
