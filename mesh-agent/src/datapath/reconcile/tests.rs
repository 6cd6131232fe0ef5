//! Reconciliation against a recorder that checks, after every single write, what the kernel
//! could read.

use std::collections::BTreeMap;

use mesh_common::{Addr, Backend, ConnsKey, LbKind, TCP, UNLIMITED, Verdict};

use super::super::plan::Scope;
use super::*;

#[derive(Default)]
struct Recorder {
    backends: BTreeMap<u32, Backend>,
    slots: BTreeMap<SlotKey, Slot>,
    states: BTreeMap<u32, ()>,
    /// With the connections counted there.
    conns: BTreeMap<ConnsKey, u64>,
    services: BTreeMap<ServiceKey, Service>,
    writes: usize,
    fail_at: Option<usize>,
    /// Services at most.
    room: Option<usize>,
}

impl Recorder {
    fn step(&mut self) -> Result<(), DatapathError> {
        self.writes += 1;
        if self.fail_at == Some(self.writes) {
            self.fail_at = None;
            return Err(DatapathError::Missing("room"));
        }
        Ok(())
    }

    /// Whatever service the kernel finds, every slot and backend of it is there.
    fn check(&self) -> Result<(), DatapathError> {
        for service in self.services.values() {
            for slot in 0..service.slots {
                let key = SlotKey {
                    svc_id: service.svc_id,
                    generation: service.generation,
                    slot,
                };
                let slot = self.slots.get(&key).expect("a live slot");
                assert!(self.backends.contains_key(&slot.backend_id));
                for backend_id in [0, slot.backend_id] {
                    let key = ConnsKey::of(slot.cluster, backend_id);
                    assert!(self.conns.contains_key(&key));
                }
            }
            assert!(self.states.contains_key(&service.svc_id));
        }
        Ok(())
    }

    fn reachable(&self, key: &ServiceKey) -> Vec<u16> {
        let service = self.services[key];
        (0..service.slots)
            .map(|slot| {
                let key = SlotKey {
                    svc_id: service.svc_id,
                    generation: service.generation,
                    slot,
                };
                self.backends[&self.slots[&key].backend_id].port
            })
            .collect()
    }
}

impl Sink for Recorder {
    fn put_backend(&mut self, id: u32, backend: Backend) -> Result<(), DatapathError> {
        self.step()?;
        self.backends.insert(id, backend);
        self.check()
    }
    fn drop_backend(&mut self, id: u32) -> Result<(), DatapathError> {
        self.step()?;
        self.backends.remove(&id).expect("a known backend");
        self.check()
    }
    fn put_slot(&mut self, key: SlotKey, slot: Slot) -> Result<(), DatapathError> {
        self.step()?;
        self.slots.insert(key, slot);
        self.check()
    }
    fn drop_slot(&mut self, key: SlotKey) -> Result<(), DatapathError> {
        self.step()?;
        self.slots.remove(&key).expect("a known slot");
        self.check()
    }
    fn put_state(&mut self, svc_id: u32) -> Result<(), DatapathError> {
        self.step()?;
        self.states.insert(svc_id, ());
        self.check()
    }
    fn drop_state(&mut self, svc_id: u32) -> Result<(), DatapathError> {
        self.step()?;
        self.states.remove(&svc_id).expect("known counters");
        self.check()
    }
    fn put_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError> {
        self.step()?;
        assert_eq!(self.conns.insert(key, 0), None, "they exist");
        self.check()
    }
    fn drop_conns(&mut self, key: ConnsKey) -> Result<(), DatapathError> {
        self.step()?;
        self.conns.remove(&key).expect("known counters");
        self.check()
    }
    fn active(&self, key: ConnsKey) -> u64 {
        self.conns.get(&key).copied().unwrap_or(0)
    }
    fn put_service(&mut self, key: ServiceKey, service: Service) -> Result<(), DatapathError> {
        self.step()?;
        let full = self.room.is_some_and(|room| self.services.len() >= room);
        if full && !self.services.contains_key(&key) {
            return Err(DatapathError::Missing("room"));
        }
        self.services.insert(key, service);
        self.check()
    }
    fn drop_service(&mut self, key: ServiceKey) -> Result<(), DatapathError> {
        self.step()?;
        self.services.remove(&key).expect("a known service");
        self.check()
    }
}

fn key(port: u16) -> ServiceKey {
    ServiceKey {
        view_id: 1,
        addr: Addr::from_v4_be(0x0a00_0001_u32.to_be()),
        port,
        proto: TCP as u16,
    }
}

const LIMITS: Limits = Limits {
    cluster: 77,
    max_connections: 5,
    max_per_endpoint: UNLIMITED,
    close_on_removal: true,
};

fn plan(services: &[(u16, &[u16])]) -> Plan {
    let services = services
        .iter()
        .map(|(port, backends)| {
            let slots = backends
                .iter()
                .map(|port| PlannedSlot {
                    address: ([10, 0, 0, 2], *port).into(),
                    limits: LIMITS,
                    by_pod: 0,
                })
                .collect();
            let service = ServicePlan {
                name: "s".into(),
                verdict: Verdict::Direct,
                lb: LbKind::RoundRobin,
                choices: 0,
                slots,
                by_pod: BTreeMap::new(),
                fail_open: false,
                why: "".into(),
            };
            (key(*port), service)
        })
        .collect();
    Plan {
        services,
        scope: Scope::Everything,
    }
}

#[test]
fn adds_changes_and_removes() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
    reconciler.apply(plan(&[(1, &[10, 11]), (2, &[11])]), &mut kernel);
    assert_eq!(kernel.reachable(&key(1)), [10, 11]);
    assert_eq!(kernel.backends.len(), 2);

    reconciler.apply(plan(&[(1, &[12, 11, 11])]), &mut kernel);
    assert_eq!(kernel.reachable(&key(1)), [12, 11, 11]);
    assert_eq!(kernel.services.len(), 1);
    assert_eq!(kernel.backends.len(), 2);
    assert_eq!(kernel.slots.len(), 3);

    reconciler.apply(plan(&[]), &mut kernel);
    assert!(kernel.services.is_empty() && kernel.slots.is_empty() && kernel.backends.is_empty());
    assert!(kernel.states.is_empty() && kernel.conns.is_empty());
}

#[test]
fn what_is_counted_stays_as_long_as_a_connection() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
    reconciler.apply(plan(&[(1, &[10, 11])]), &mut kernel);
    let number = |kernel: &Recorder| {
        let (id, _) = kernel.backends.iter().find(|(_, b)| b.port == 10).unwrap();
        *id
    };
    let id = number(&kernel);
    let (whole, one) = (ConnsKey::whole(77), ConnsKey::of(77, id));
    for key in [whole, one] {
        kernel.conns.insert(key, 3);
    }
    // An endpoint goes and comes back, then the service does.
    for ports in [&[11][..], &[10, 11], &[]] {
        let services: &[(u16, &[u16])] = if ports.is_empty() { &[] } else { &[(1, ports)] };
        reconciler.apply(plan(services), &mut kernel);
        let closing = reconciler.take_closing();
        assert_eq!(
            closing.len(),
            usize::from(!ports.contains(&10)),
            "{ports:?}"
        );
        assert_eq!((kernel.conns[&whole], kernel.conns[&one]), (3, 3));
        assert_eq!(number(&kernel), id);
    }
    assert_eq!((kernel.conns.len(), kernel.backends.len()), (2, 1));
    for key in [whole, one] {
        kernel.conns.insert(key, 0);
    }
    reconciler.sweep(&mut kernel);
    assert!(kernel.conns.is_empty() && kernel.backends.is_empty());
}

#[test]
fn a_changed_limit_is_written() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
    let mut wanted = plan(&[(1, &[10])]);
    reconciler.apply(plan(&[(1, &[10])]), &mut kernel);
    let service = wanted.services.get_mut(&key(1)).unwrap();
    service.slots[0].limits.max_connections = 6;
    reconciler.apply(wanted, &mut kernel);
    let limits: Vec<u32> = kernel.slots.values().map(|s| s.max_connections).collect();
    assert_eq!(limits, [6]);
}

#[test]
fn an_equal_plan_writes_nothing() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
    reconciler.apply(plan(&[(1, &[10, 11])]), &mut kernel);
    let writes = kernel.writes;
    let report = reconciler.apply(plan(&[(1, &[10, 11])]), &mut kernel);
    assert_eq!((report.changed, kernel.writes), (0, writes));
}

#[test]
fn a_new_list_is_a_new_generation() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
    reconciler.apply(plan(&[(1, &[10])]), &mut kernel);
    let before = kernel.services[&key(1)];
    reconciler.apply(plan(&[(1, &[10, 11])]), &mut kernel);
    let after = kernel.services[&key(1)];
    assert_eq!(before.svc_id, after.svc_id);
    assert_eq!(before.generation + 1, after.generation);
}

#[test]
fn a_full_map_leaves_the_last_good_list_and_leaks_nothing() {
    for fail_at in 1..40 {
        let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
        reconciler.apply(plan(&[(1, &[10, 11])]), &mut kernel);
        kernel.fail_at = Some(kernel.writes + fail_at);
        let report = reconciler.apply(plan(&[(1, &[12, 13, 14])]), &mut kernel);
        let reachable = kernel.reachable(&key(1));
        assert!(
            reachable == [10, 11] || reachable == [12, 13, 14],
            "{reachable:?}"
        );
        if report.failed.is_empty() {
            break;
        }
        reconciler.apply(plan(&[(1, &[12, 13, 14])]), &mut kernel);
        assert_eq!(kernel.reachable(&key(1)), [12, 13, 14]);
    }
}

#[test]
fn a_pods_own_slot_goes_with_its_generation() {
    let (mut reconciler, mut kernel) = (Reconciler::default(), Recorder::default());
    let with = |ports: &[u16]| {
        let mut wanted = plan(&[(1, &[10, 11])]);
        let service = wanted.services.get_mut(&key(1)).unwrap();
        service.lb = LbKind::SourceAddress;
        for (pod, port) in (7..).zip(ports) {
            let slot = PlannedSlot {
                address: ([10, 0, 0, 2], *port).into(),
                limits: LIMITS,
                by_pod: 0,
            };
            service.by_pod.insert(SlotKey::of_pod(pod, 0), slot);
        }
        wanted
    };
    let own = |kernel: &Recorder| -> Vec<u16> {
        let slots = kernel.slots.range(
            SlotKey {
                svc_id: 1,
                generation: kernel.services[&key(1)].generation,
                slot: SlotKey::of_pod(0, 0),
            }..,
        );
        slots
            .map(|(_, slot)| kernel.backends[&slot.backend_id].port)
            .collect()
    };
    for ports in [&[10][..], &[11], &[11, 10], &[10], &[]] {
        reconciler.apply(with(ports), &mut kernel);
        assert_eq!(own(&kernel), ports);
        assert_eq!(kernel.services[&key(1)].slots, 2);
        assert_eq!(kernel.slots.len(), 2 + ports.len());
    }
    reconciler.apply(plan(&[]), &mut kernel);
    assert!(kernel.slots.is_empty() && kernel.backends.is_empty());
}

#[test]
fn services_without_room_are_the_agents_until_there_is_some() {
    let mut kernel = Recorder {
        room: Some(4),
        ..Recorder::default()
    };
    let mut reconciler = Reconciler::default();
    let six: Vec<(u16, &[u16])> = (1..=6).map(|port| (port, &[10_u16][..])).collect();
    for _ in 0..2 {
        let report = reconciler.apply(plan(&six), &mut kernel);
        assert!(!report.failed.is_empty());
        let rest: Vec<u8> = kernel
            .services
            .iter()
            .filter(|(key, _)| crowded::is_rest(key))
            .map(|(_, service)| service.verdict)
            .collect();
        assert_eq!(rest, [Verdict::Agent as u8; 2]);
        assert_eq!(kernel.services.len(), 4);
    }
    let report = reconciler.apply(plan(&six[..4]), &mut kernel);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    assert_eq!(kernel.services.len(), 4);
    assert!(!kernel.services.keys().any(crowded::is_rest));
}
