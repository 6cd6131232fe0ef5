//! Brings the service maps from what they hold to what they should hold, by difference.
//!
//! The kernel never sees half a list: backends are written first, then the slots of the next
//! generation, then one update of the service flips to it, and only then does the old go.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use mesh_common::{
    Addr, Backend, Conns, ConnsKey, Service, ServiceFlags, ServiceKey, ServiceState, SlotKey,
};

use super::DatapathError;
use super::error::map_error;
use super::maps::ServiceMaps;
use super::plan::{Plan, ServicePlan};

/// The writes reconciliation needs; the kernel's maps, or a recorder in tests.
pub trait Sink {
    /// Writes a backend.
    fn put_backend(&mut self, id: u32, backend: Backend) -> Result<(), DatapathError>;
    /// Removes a backend.
    fn drop_backend(&mut self, id: u32) -> Result<(), DatapathError>;
    /// Writes a slot.
    fn put_slot(&mut self, key: SlotKey, backend: u32) -> Result<(), DatapathError>;
    /// Removes a slot.
    fn drop_slot(&mut self, key: SlotKey) -> Result<(), DatapathError>;
    /// Makes the counters of a service.
    fn put_state(&mut self, svc_id: u32) -> Result<(), DatapathError>;
    /// Removes the counters of a service.
    fn drop_state(&mut self, svc_id: u32) -> Result<(), DatapathError>;
    /// Makes the counters of a service's connections to a backend.
    fn put_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError>;
    /// Removes them.
    fn drop_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError>;
    /// Writes a service.
    fn put_service(&mut self, key: ServiceKey, service: Service) -> Result<(), DatapathError>;
    /// Removes a service.
    fn drop_service(&mut self, key: ServiceKey) -> Result<(), DatapathError>;
}

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
    /// Backend numbers in slot order.
    slots: Vec<u32>,
}

impl Installed {
    /// Addresses and numbers in slot order.
    pub(super) fn backends(&self) -> impl Iterator<Item = (SocketAddr, u32)> {
        self.plan
            .slots
            .iter()
            .copied()
            .zip(self.slots.iter().copied())
    }
}

#[derive(Debug)]
struct KnownBackend {
    id: u32,
    /// Services that use it.
    users: u32,
}

/// A service that another agent left in the maps.
#[derive(Debug)]
pub(super) struct Inherited {
    pub(super) service: Service,
    /// Numbers and addresses of its backends, in slot order.
    pub(super) slots: Vec<(u32, SocketAddr)>,
}

/// Mirrors the service maps.
#[derive(Debug, Default)]
pub struct Reconciler {
    services: BTreeMap<ServiceKey, Installed>,
    backends: HashMap<SocketAddr, KnownBackend>,
    last_svc_id: u32,
    last_backend_id: u32,
}

impl Reconciler {
    /// Goes on from what the maps hold: numbers and generations continue, counters stay.
    pub(super) fn inherit(services: BTreeMap<ServiceKey, Inherited>) -> Self {
        let mut reconciler = Self::default();
        for (key, Inherited { service, slots }) in services {
            reconciler.last_svc_id = reconciler.last_svc_id.max(service.svc_id);
            let (numbers, addresses): (Vec<u32>, Vec<SocketAddr>) = slots.into_iter().unzip();
            for (address, id) in addresses.iter().zip(&numbers) {
                reconciler.last_backend_id = reconciler.last_backend_id.max(*id);
                reconciler
                    .backends
                    .entry(*address)
                    .or_insert(KnownBackend { id: *id, users: 0 });
            }
            for address in distinct(&addresses) {
                if let Some(known) = reconciler.backends.get_mut(&address) {
                    known.users += 1;
                }
            }
            let plan = ServicePlan::inherited(&service, addresses);
            reconciler.services.insert(
                key,
                Installed {
                    plan,
                    service,
                    slots: numbers,
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
            .filter(|key| !plan.services.contains_key(key))
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
        report
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
        let slots = match self.acquire(svc_id, &wanted.slots, sink) {
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
            for (slot, backend) in slots.iter().enumerate() {
                let slot = SlotKey {
                    svc_id,
                    generation: next,
                    slot: slot as u32,
                };
                if let Err(error) = sink.put_slot(slot, *backend) {
                    self.undo(svc_id, next, &wanted.slots, slot.slot, sink);
                    self.forget_new(key, svc_id, sink);
                    return Err(error);
                }
            }
        }
        let service = Service {
            svc_id,
            generation: next,
            slots: slots.len() as u32,
            max_connections: 0,
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
            self.release(svc_id, &old.plan.slots, sink)?;
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
        self.release(svc_id, &old.plan.slots, sink)?;
        sink.drop_state(svc_id)
    }

    /// Numbers for the backends of a service, one use each however many slots they have.
    fn acquire(
        &mut self,
        svc_id: u32,
        slots: &[SocketAddr],
        sink: &mut impl Sink,
    ) -> Result<Vec<u32>, DatapathError> {
        for address in distinct(slots) {
            if !self.backends.contains_key(&address) {
                let id = self.last_backend_id + 1;
                sink.put_backend(id, backend(address))?;
                self.last_backend_id = id;
                self.backends.insert(address, KnownBackend { id, users: 0 });
            }
        }
        for address in distinct(slots) {
            if let Some(known) = self.backends.get_mut(&address) {
                known.users += 1;
                sink.put_conns(ConnsKey {
                    svc_id,
                    backend_id: known.id,
                })?;
            }
        }
        Ok(slots
            .iter()
            .filter_map(|address| Some(self.backends.get(address)?.id))
            .collect())
    }

    fn release(
        &mut self,
        svc_id: u32,
        slots: &[SocketAddr],
        sink: &mut impl Sink,
    ) -> Result<(), DatapathError> {
        let kept = |services: &BTreeMap<ServiceKey, Installed>, address: &SocketAddr| {
            services.values().any(|service| {
                service.service.svc_id == svc_id && service.plan.slots.contains(address)
            })
        };
        for address in distinct(slots) {
            let Some(known) = self.backends.get_mut(&address) else {
                continue;
            };
            known.users = known.users.saturating_sub(1);
            let (id, users) = (known.id, known.users);
            if users == 0 {
                self.backends.remove(&address);
                sink.drop_backend(id)?;
                sink.drop_conns(ConnsKey {
                    svc_id,
                    backend_id: id,
                })?;
            } else if !kept(&self.services, &address) {
                sink.drop_conns(ConnsKey {
                    svc_id,
                    backend_id: id,
                })?;
            }
        }
        Ok(())
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
        slots: &[SocketAddr],
        written: u32,
        sink: &mut impl Sink,
    ) {
        let _ = drop_slots(svc_id, generation, 0..written, sink);
        let _ = self.release(svc_id, slots, sink);
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

fn distinct(slots: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut slots = slots.to_vec();
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn backend(address: SocketAddr) -> Backend {
    Backend {
        addr: Addr::from(address.ip()),
        max_connections: 0,
        port: address.port(),
        flags: 0,
    }
}

impl Sink for ServiceMaps {
    fn put_backend(&mut self, id: u32, backend: Backend) -> Result<(), DatapathError> {
        self.back
            .insert(id, backend, 0)
            .map_err(map_error("BACK", "write a backend"))
    }

    fn drop_backend(&mut self, id: u32) -> Result<(), DatapathError> {
        self.back
            .remove(&id)
            .map_err(map_error("BACK", "remove a backend"))
    }

    fn put_slot(&mut self, key: SlotKey, backend: u32) -> Result<(), DatapathError> {
        self.slots
            .insert(key, backend, 0)
            .map_err(map_error("SLOTS", "write a slot"))
    }

    fn drop_slot(&mut self, key: SlotKey) -> Result<(), DatapathError> {
        self.slots
            .remove(&key)
            .map_err(map_error("SLOTS", "remove a slot"))
    }

    fn put_state(&mut self, svc_id: u32) -> Result<(), DatapathError> {
        self.state
            .insert(svc_id, ServiceState::default(), 0)
            .map_err(map_error("SVC_STATE", "make counters"))
    }

    fn drop_state(&mut self, svc_id: u32) -> Result<(), DatapathError> {
        self.state
            .remove(&svc_id)
            .map_err(map_error("SVC_STATE", "remove counters"))
    }

    fn put_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError> {
        const BPF_NOEXIST: u64 = 1;
        match self.conns.insert(key, Conns::default(), BPF_NOEXIST) {
            // Connections that outlived an earlier generation are still counted there.
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                Ok(())
            }
            result => result.map_err(map_error("CONNS", "make counters")),
        }
    }

    fn drop_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError> {
        self.conns
            .remove(&key)
            .map_err(map_error("CONNS", "remove counters"))
    }

    fn put_service(&mut self, key: ServiceKey, service: Service) -> Result<(), DatapathError> {
        self.svc
            .insert(key, service, 0)
            .map_err(map_error("SVC", "write a service"))
    }

    fn drop_service(&mut self, key: ServiceKey) -> Result<(), DatapathError> {
        self.svc
            .remove(&key)
            .map_err(map_error("SVC", "remove a service"))
    }
}

#[cfg(test)]
mod tests;
