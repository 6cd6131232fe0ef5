//! Brings the service maps from what they hold to what they should hold, by difference.
//!
//! The kernel never sees half a list: backends are written first, then the slots of the next
//! generation, then one update of the service flips to it, and only then does the old go.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;

use mesh_common::{Service, ServiceFlags, ServiceKey, Slot, SlotKey};

use crate::snapshot::slots::Limits;

use super::DatapathError;
use super::backends::Backends;
use super::plan::{Plan, PlannedSlot, ServicePlan};
use super::sink::Sink;
use super::sockets::Route;

/// What one reconciliation did.
#[derive(Debug, Default)]
pub struct Report {
    /// Services written.
    pub changed: usize,
    /// Services removed.
    pub removed: usize,
    /// Services the kernel refused, with the reason. What it held of them stays.
    pub failed: Vec<(ServiceKey, DatapathError)>,
}

/// A service as the maps hold it.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) plan: ServicePlan,
    pub(super) service: Service,
    /// In order of the plan's, with their numbers.
    slots: Vec<(u32, Slot)>,
}

impl Installed {
    /// Addresses and slots in order.
    pub(super) fn backends(&self) -> impl Iterator<Item = (SocketAddr, Slot)> {
        let addresses = self.plan.slots.iter().map(|slot| slot.address);
        addresses.zip(self.slots.iter().map(|(_, slot)| *slot))
    }
}

impl Installed {
    /// All slots of the plan.
    fn planned(&self) -> Vec<PlannedSlot> {
        self.plan.numbered().map(|(_, slot)| slot).collect()
    }
}

/// A service that another agent left in the maps.
#[derive(Debug)]
pub(super) struct Inherited {
    pub(super) service: Service,
    /// What is written under which number, and the addresses that stands for; those of single
    /// pods last.
    pub(super) slots: Vec<(u32, Slot, SocketAddr)>,
}

/// Mirrors the service maps.
#[derive(Debug, Default)]
pub struct Reconciler {
    services: BTreeMap<ServiceKey, Installed>,
    backends: Backends,
    last_svc_id: u32,
    /// Views of which a service found no room: the agent takes whatever no service of the kernel
    /// does.
    crowded: BTreeSet<u32>,
}

impl Reconciler {
    /// Goes on from what the maps hold: numbers and generations continue, counters stay.
    pub(super) fn inherit(services: BTreeMap<ServiceKey, Inherited>, backends: Backends) -> Self {
        let mut reconciler = Self {
            backends,
            ..Self::default()
        };
        for (key, Inherited { service, slots }) in services {
            reconciler.last_svc_id = reconciler.last_svc_id.max(service.svc_id);
            let planned: Vec<PlannedSlot> = slots
                .iter()
                .map(|(_, slot, address)| PlannedSlot {
                    address: *address,
                    limits: Limits {
                        cluster: slot.cluster,
                        max_connections: slot.max_connections,
                        max_per_endpoint: slot.max_per_endpoint,
                        // Nobody knows any more.
                        close_on_removal: false,
                    },
                    by_pod: slot.by_pod,
                })
                .collect();
            reconciler.backends.keep(&planned);
            let slots = slots
                .into_iter()
                .map(|(number, slot, _)| (number, slot))
                .collect();
            let plan = ServicePlan::inherited(&service, planned);
            reconciler.services.insert(
                key,
                Installed {
                    plan,
                    service,
                    slots,
                },
            );
        }
        reconciler
    }

    /// Applies a plan.
    pub fn apply(&mut self, plan: Plan, sink: &mut impl Sink) -> Report {
        let mut report = Report::default();
        let is_gone = |key: &ServiceKey| {
            plan.scope.contains(key)
                && !plan.services.contains_key(key)
                && !(crowded::is_rest(key) && self.crowded.contains(&key.view_id))
        };
        let gone: Vec<ServiceKey> = self
            .services
            .keys()
            .filter(|key| is_gone(key))
            .copied()
            .collect();
        let (rest, services): (Vec<_>, Vec<_>) = plan
            .services
            .into_iter()
            .partition(|(key, _)| crowded::is_rest(key));
        self.make_room(&plan.scope, &services, sink);
        for (key, wanted) in services {
            self.bring(key, wanted, sink, &mut report);
        }
        let crowded = self.find_crowded(&plan.scope, &report);
        for (key, wanted) in rest {
            if !crowded.contains(&key.view_id) {
                self.bring(key, wanted, sink, &mut report);
            }
        }
        self.relieve(crowded, &plan.scope, sink);
        for key in gone {
            match self.remove(key, sink) {
                Ok(()) => report.removed += 1,
                Err(error) => report.failed.push((key, error)),
            }
        }
        self.sweep(sink);
        report
    }

    /// Writes a service that is not as wanted.
    fn bring(
        &mut self,
        key: ServiceKey,
        wanted: ServicePlan,
        sink: &mut impl Sink,
        report: &mut Report,
    ) {
        let installed = self.services.get(&key);
        if installed.is_some_and(|installed| installed.plan == wanted) {
            return;
        }
        match self.put(key, wanted, sink) {
            Ok(()) => report.changed += 1,
            Err(error) => report.failed.push((key, error)),
        }
    }

    /// Removes counters and backends that no service names any more, once no connection is left
    /// that will be taken off them. To be called from time to time.
    pub(super) fn sweep(&mut self, sink: &mut impl Sink) {
        self.backends.sweep(sink);
    }

    /// Connections that must not go on: their endpoint has left, and its cluster wants them closed.
    /// Each is told once.
    pub(super) fn take_closing(&mut self) -> HashSet<Route> {
        self.backends.take_closing()
    }

    /// What the maps hold.
    pub(super) fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Installed)> {
        self.services.iter()
    }

    pub(super) fn put(
        &mut self,
        key: ServiceKey,
        wanted: ServicePlan,
        sink: &mut impl Sink,
    ) -> Result<(), DatapathError> {
        let (svc_id, generation, old_slots) = match self.services.get(&key) {
            Some(old) => (
                old.service.svc_id,
                old.service.generation,
                old.slots.clone(),
            ),
            None => {
                self.last_svc_id += 1;
                sink.put_state(self.last_svc_id)?;
                (self.last_svc_id, 0, Vec::new())
            }
        };
        let (numbers, planned): (Vec<u32>, Vec<PlannedSlot>) = wanted.numbered().unzip();
        let slots: Vec<(u32, Slot)> = match self.backends.acquire(&planned, sink) {
            Ok(slots) => numbers.into_iter().zip(slots).collect(),
            Err(error) => {
                self.forget_new(key, svc_id, sink);
                return Err(error);
            }
        };
        let flip = slots != old_slots;
        let next = if flip {
            generation.wrapping_add(1)
        } else {
            generation
        };
        if flip {
            for (index, (number, slot)) in slots.iter().enumerate() {
                let written = SlotKey {
                    svc_id,
                    generation: next,
                    slot: *number,
                };
                if let Err(error) = sink.put_slot(written, *slot) {
                    self.undo(svc_id, next, &planned, &slots[..index], sink);
                    self.forget_new(key, svc_id, sink);
                    return Err(error);
                }
            }
        }
        let service = Service {
            svc_id,
            generation: next,
            slots: wanted.slots.len() as u32,
            verdict: wanted.verdict as u8,
            lb: wanted.lb as u8,
            flags: if wanted.fail_open {
                ServiceFlags::FAIL_OPEN
            } else {
                0
            },
            choices: wanted.choices,
        };
        if let Err(error) = sink.put_service(key, service) {
            let written = if flip { &slots[..] } else { &[] };
            self.undo(svc_id, next, &planned, written, sink);
            self.forget_new(key, svc_id, sink);
            return Err(error);
        }
        let old = self.services.insert(
            key,
            Installed {
                plan: wanted,
                service,
                slots,
            },
        );
        if let Some(old) = old {
            if flip {
                drop_slots(svc_id, generation, &old.slots, sink)?;
            }
            self.backends.release(&old.planned());
        }
        Ok(())
    }

    fn remove(&mut self, key: ServiceKey, sink: &mut impl Sink) -> Result<(), DatapathError> {
        let Some(old) = self.services.remove(&key) else {
            return Ok(());
        };
        let Service {
            svc_id, generation, ..
        } = old.service;
        sink.drop_service(key)?;
        drop_slots(svc_id, generation, &old.slots, sink)?;
        self.backends.release(&old.planned());
        sink.drop_state(svc_id)
    }

    /// Removes the counters of a service that never came to be.
    fn forget_new(&mut self, key: ServiceKey, svc_id: u32, sink: &mut impl Sink) {
        if !self.services.contains_key(&key) {
            let _ = sink.drop_state(svc_id);
        }
    }

    /// Takes back what a failed [`Reconciler::put`] wrote; the failure itself is what counts.
    fn undo(
        &mut self,
        svc_id: u32,
        generation: u32,
        planned: &[PlannedSlot],
        written: &[(u32, Slot)],
        sink: &mut impl Sink,
    ) {
        let _ = drop_slots(svc_id, generation, written, sink);
        self.backends.release(planned);
    }
}

fn drop_slots(
    svc_id: u32,
    generation: u32,
    slots: &[(u32, Slot)],
    sink: &mut impl Sink,
) -> Result<(), DatapathError> {
    slots.iter().try_for_each(|(slot, _)| {
        sink.drop_slot(SlotKey {
            svc_id,
            generation,
            slot: *slot,
        })
    })
}

mod crowded;
#[cfg(test)]
mod tests;
