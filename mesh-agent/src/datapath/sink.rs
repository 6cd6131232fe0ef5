//! The single writes that services are made of.

use mesh_common::{Backend, Conns, ConnsKey, Service, ServiceKey, ServiceState, Slot, SlotKey};

use super::DatapathError;
use super::error::map_error;
use super::maps::ServiceMaps;

/// The writes reconciliation needs; the kernel's maps, or a recorder in tests.
pub trait Sink {
    /// Writes a backend.
    fn put_backend(&mut self, id: u32, backend: Backend) -> Result<(), DatapathError>;
    /// Removes a backend.
    fn drop_backend(&mut self, id: u32) -> Result<(), DatapathError>;
    /// Writes a slot.
    fn put_slot(&mut self, key: SlotKey, slot: Slot) -> Result<(), DatapathError>;
    /// Removes a slot.
    fn drop_slot(&mut self, key: SlotKey) -> Result<(), DatapathError>;
    /// Makes the counters of a service.
    fn put_state(&mut self, svc_id: u32) -> Result<(), DatapathError>;
    /// Removes the counters of a service.
    fn drop_state(&mut self, svc_id: u32) -> Result<(), DatapathError>;
    /// Makes the counters of a cluster's connections, unless they exist.
    fn put_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError>;
    /// Removes them.
    fn drop_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError>;
    /// Connections that are counted there now.
    fn active(&self, key: ConnsKey) -> u64;
    /// Writes a service.
    fn put_service(&mut self, key: ServiceKey, service: Service) -> Result<(), DatapathError>;
    /// Removes a service.
    fn drop_service(&mut self, key: ServiceKey) -> Result<(), DatapathError>;
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

    fn put_slot(&mut self, key: SlotKey, slot: Slot) -> Result<(), DatapathError> {
        self.slots
            .insert(key, slot, 0)
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

    fn active(&self, key: ConnsKey) -> u64 {
        self.conns.get(&key, 0).map_or(0, |conns| conns.active)
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
