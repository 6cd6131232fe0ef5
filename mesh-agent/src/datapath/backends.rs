//! Numbers of backends, and the counters that go with them.
//!
//! A counter outlives the services that name it for as long as a connection is counted there: an
//! endpoint that leaves and comes back finds its connections counted, and what is taken off a
//! counter was put on the same one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use mesh_common::{Addr, Backend, ConnsKey, Slot};

use super::DatapathError;
use super::plan::PlannedSlot;
use super::sink::Sink;
use super::sockets::Route;

/// Mirrors `BACK` and `CONNS`.
#[derive(Debug, Default)]
pub(super) struct Backends {
    known: HashMap<SocketAddr, Known>,
    counters: HashMap<ConnsKey, Counters>,
    /// Counters that no service names.
    idle: BTreeSet<ConnsKey>,
    /// Whose connections are to be closed.
    closing: BTreeSet<ConnsKey>,
    last_id: u32,
}

#[derive(Debug)]
struct Known {
    id: u32,
    /// Clusters that count connections to it.
    counters: u32,
}

#[derive(Debug)]
struct Counters {
    /// Services that count here.
    users: u32,
    /// `None`: the cluster as a whole.
    backend: Option<SocketAddr>,
}

impl Backends {
    /// What another agent left: backends by number, and the counters there are. None is in use
    /// before [`Self::keep`] says so.
    pub(super) fn inherited(
        backends: &HashMap<u32, SocketAddr>,
        counters: impl IntoIterator<Item = ConnsKey>,
    ) -> Self {
        let mut all = Self {
            last_id: backends.keys().copied().max().unwrap_or(0),
            ..Self::default()
        };
        for (id, address) in backends {
            let known = Known {
                id: *id,
                counters: 0,
            };
            all.known.insert(*address, known);
        }
        for key in counters {
            all.last_id = all.last_id.max(key.backend_id);
            all.count(key, backends.get(&key.backend_id).copied());
        }
        all
    }

    /// Writes what a service needs before it may name it.
    ///
    /// # Errors
    /// A map is full; nothing is in use then.
    pub(super) fn acquire(
        &mut self,
        slots: &[PlannedSlot],
        sink: &mut impl Sink,
    ) -> Result<Vec<Slot>, DatapathError> {
        for slot in distinct(slots) {
            let id = self.backend(slot.address, sink)?;
            for (key, backend) in [
                (ConnsKey::whole(slot.limits.cluster), None),
                (ConnsKey::of(slot.limits.cluster, id), Some(slot.address)),
            ] {
                if self.counters.contains_key(&key) {
                    continue;
                }
                if let Err(error) = sink.put_conns(key) {
                    self.forget_unused(slot.address, sink);
                    return Err(error);
                }
                self.count(key, backend);
            }
        }
        self.keep(slots);
        Ok(slots.iter().filter_map(|slot| self.slot(slot)).collect())
    }

    /// A service names these slots, which are written.
    pub(super) fn keep(&mut self, slots: &[PlannedSlot]) {
        for key in self.keys(slots) {
            if let Some(counters) = self.counters.get_mut(&key) {
                counters.users += 1;
                self.idle.remove(&key);
            }
        }
    }

    /// A service does not name these slots any more.
    pub(super) fn release(&mut self, slots: &[PlannedSlot]) {
        for key in self.keys(slots) {
            if let Some(counters) = self.counters.get_mut(&key) {
                counters.users = counters.users.saturating_sub(1);
                if counters.users == 0 {
                    self.idle.insert(key);
                }
            }
        }
        for slot in slots.iter().filter(|slot| slot.limits.close_on_removal) {
            if let Some(known) = self.known.get(&slot.address) {
                let key = ConnsKey::of(slot.limits.cluster, known.id);
                if self.idle.contains(&key) {
                    self.closing.insert(key);
                }
            }
        }
    }

    /// Connections to endpoints that have left and did not come back.
    pub(super) fn take_closing(&mut self) -> HashSet<Route> {
        std::mem::take(&mut self.closing)
            .into_iter()
            .filter(|key| self.idle.contains(key))
            .map(|key| Route {
                cluster: key.cluster,
                backend_id: key.backend_id,
            })
            .collect()
    }

    /// Removes what nothing names and no connection is counted at. What cannot be removed now is
    /// tried again.
    pub(super) fn sweep(&mut self, sink: &mut impl Sink) {
        let idle: Vec<ConnsKey> = self.idle.iter().copied().collect();
        for key in idle {
            if sink.active(key) != 0 || sink.drop_conns(key).is_err() {
                continue;
            }
            self.idle.remove(&key);
            let Some(backend) = self.counters.remove(&key).and_then(|gone| gone.backend) else {
                continue;
            };
            if let Some(known) = self.known.get_mut(&backend) {
                known.counters = known.counters.saturating_sub(1);
            }
            self.forget_unused(backend, sink);
        }
    }

    /// The number of an address, written if it is new.
    fn backend(&mut self, address: SocketAddr, sink: &mut impl Sink) -> Result<u32, DatapathError> {
        if let Some(known) = self.known.get(&address) {
            return Ok(known.id);
        }
        let id = self.last_id + 1;
        let backend = Backend {
            addr: Addr::from(address.ip()),
            port: address.port(),
            flags: 0,
        };
        sink.put_backend(id, backend)?;
        self.last_id = id;
        self.known.insert(address, Known { id, counters: 0 });
        Ok(id)
    }

    fn count(&mut self, key: ConnsKey, backend: Option<SocketAddr>) {
        self.counters.insert(key, Counters { users: 0, backend });
        self.idle.insert(key);
        if let Some(known) = backend.and_then(|address| self.known.get_mut(&address)) {
            known.counters += 1;
        }
    }

    fn forget_unused(&mut self, address: SocketAddr, sink: &mut impl Sink) {
        let unused = self.known.get(&address).filter(|known| known.counters == 0);
        if let Some(id) = unused.map(|known| known.id)
            && sink.drop_backend(id).is_ok()
        {
            self.known.remove(&address);
        }
    }

    fn slot(&self, slot: &PlannedSlot) -> Option<Slot> {
        Some(Slot {
            cluster: slot.limits.cluster,
            backend_id: self.known.get(&slot.address)?.id,
            max_connections: slot.limits.max_connections,
            max_per_endpoint: slot.limits.max_per_endpoint,
            by_pod: slot.by_pod,
        })
    }

    /// Counters of these slots, each once.
    fn keys(&self, slots: &[PlannedSlot]) -> BTreeSet<ConnsKey> {
        distinct(slots)
            .into_iter()
            .filter_map(|slot| self.slot(slot))
            .flat_map(|slot| {
                [
                    ConnsKey::whole(slot.cluster),
                    ConnsKey::of(slot.cluster, slot.backend_id),
                ]
            })
            .collect()
    }
}

/// Each pair of cluster and address once.
fn distinct(slots: &[PlannedSlot]) -> Vec<&PlannedSlot> {
    let mut slots: Vec<&PlannedSlot> = slots.iter().collect();
    slots.sort_unstable_by_key(|slot| (slot.limits.cluster, slot.address));
    slots.dedup_by_key(|slot| (slot.limits.cluster, slot.address));
    slots
}
