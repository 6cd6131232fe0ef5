//! Brings the service maps from what they hold to what they should hold, by difference.
//!
//! The kernel never sees half a list: backends are written first, then the slots of the next
//! generation, then one update of the service flips to it, and only then does the old go.

use std::collections::{BTreeMap, HashSet};
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
    /// In order.
    slots: Vec<Slot>,
}

impl Installed {
    /// Addresses and slots in order.
    pub(super) fn backends(&self) -> impl Iterator<Item = (SocketAddr, Slot)> {
        let addresses = self.plan.slots.iter().map(|slot| slot.address);
        addresses.zip(self.slots.iter().copied())
    }
}

/// A service that another agent left in the maps.
#[derive(Debug)]
pub(super) struct Inherited {
    pub(super) service: Service,
    /// What is written, and the addresses that stands for.
    pub(super) slots: Vec<(Slot, SocketAddr)>,
}

/// Mirrors the service maps.
#[derive(Debug, Default)]
pub struct Reconciler {
    services: BTreeMap<ServiceKey, Installed>,
    backends: Backends,
    last_svc_id: u32,
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
                .map(|(slot, address)| PlannedSlot {
                    address: *address,
                    limits: Limits {
                        cluster: slot.cluster,
                        max_connections: slot.max_connections,
                        max_per_endpoint: slot.max_per_endpoint,
                        // Nobody knows any more.
                        close_on_removal: false,
                    },
                })
                .collect();
            reconciler.backends.keep(&planned);
            let slots = slots.into_iter().map(|(slot, _)| slot).collect();
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
        let gone: Vec<ServiceKey> = self
            .services
            .keys()
            .filter(|key| plan.scope.contains(key) && !plan.services.contains_key(key))
            .copied()
            .collect();
        for (key, wanted) in plan.services {
            if self
                .services
                .get(&key)
                .is_some_and(|installed| installed.plan == wanted)
            {
                continue;
            }
            match self.put(key, wanted, sink) {
                Ok(()) => report.changed += 1,
                Err(error) => report.failed.push((key, error)),
            }
        }
        for key in gone {
            match self.remove(key, sink) {
                Ok(()) => report.removed += 1,
                Err(error) => report.failed.push((key, error)),
            }
        }
        self.sweep(sink);
        report
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

    fn put(
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
        let slots = match self.backends.acquire(&wanted.slots, sink) {
            Ok(slots) => slots,
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
            for (number, slot) in (0..).zip(&slots) {
                let written = SlotKey {
                    svc_id,
                    generation: next,
                    slot: number,
                };
                if let Err(error) = sink.put_slot(written, *slot) {
                    self.undo(svc_id, next, &wanted.slots, number, sink);
                    self.forget_new(key, svc_id, sink);
                    return Err(error);
                }
            }
        }
        let service = Service {
            svc_id,
            generation: next,
            slots: slots.len() as u32,
            verdict: wanted.verdict as u8,
            lb: wanted.lb as u8,
            flags: if wanted.fail_open {
                ServiceFlags::FAIL_OPEN
            } else {
                0
            },
            pad: 0,
        };
        if let Err(error) = sink.put_service(key, service) {
            self.undo(svc_id, next, &wanted.slots, slots.len() as u32, sink);
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
                drop_slots(svc_id, generation, 0..old.slots.len() as u32, sink)?;
            }
            self.backends.release(&old.plan.slots);
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
        drop_slots(svc_id, generation, 0..old.slots.len() as u32, sink)?;
        self.backends.release(&old.plan.slots);
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
        slots: &[PlannedSlot],
        written: u32,
        sink: &mut impl Sink,
    ) {
        let _ = drop_slots(svc_id, generation, 0..written, sink);
        self.backends.release(slots);
    }
}

fn drop_slots(
    svc_id: u32,
    generation: u32,
    slots: std::ops::Range<u32>,
    sink: &mut impl Sink,
) -> Result<(), DatapathError> {
    slots.into_iter().try_for_each(|slot| {
        sink.drop_slot(SlotKey {
            svc_id,
            generation,
            slot,
        })
    })
}

#[cfg(test)]
mod tests;
