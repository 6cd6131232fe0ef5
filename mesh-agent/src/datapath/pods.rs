//! Enrols pods: capture settings, listener sockets, addresses, and last of all the pod itself.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use aya::programs::sk_lookup::SkLookupLink;
use mesh_common::{
    Addr, AuthzKey, CidrKey, InboundPod, ListenKey, ListenKind, Pod as PodEntry, PodFlags,
};

use crate::config::model::listener::Listener;
use crate::config::model::workload::Capture;
use crate::snapshot::ViewId;
use crate::workload::{Pod, PodId};

use super::DatapathError;
use super::adopt::stale;
use super::authz::InboundRules;
use super::capture::{CaptureEntries, entries};
use super::error::map_error;
use super::failure;
use super::maps::PodMaps;
use super::sources::{Source, Sources};

/// What the kernel needs to know to catch a pod's connections.
#[derive(Debug)]
pub struct Enrolment<'a> {
    /// The pod.
    pub pod: &'a Arc<Pod>,
    /// Its addresses now.
    pub ips: &'a [IpAddr],
    /// What is captured now.
    pub capture: &'a Arc<Capture>,
    /// The pod's inbound listener; `None` leaves inbound connections alone.
    pub inbound: Option<&'a TcpListener>,
    /// Whose access rules hold for inbound connections.
    pub rules: Option<&'a Listener>,
}

/// What the maps hold of one pod.
#[derive(Debug)]
struct Enrolled {
    name: String,
    cookie: u64,
    entry: PodEntry,
    capture: Arc<Capture>,
    addresses: BTreeSet<IpAddr>,
    /// All there are, captured or not.
    near: BTreeSet<IpAddr>,
    rules: InboundRules,
    /// Ends inbound capture when dropped, unless it is pinned.
    _inbound: Option<SkLookupLink>,
}

/// Capture settings in the maps, shared by the pods that have equal ones.
#[derive(Debug)]
struct Settings {
    id: u32,
    users: u32,
    entries: CaptureEntries,
}

/// Mirrors the pod maps.
#[derive(Debug, Default)]
pub(super) struct Pods {
    enrolled: HashMap<PodId, Enrolled>,
    settings: HashMap<Arc<Capture>, Settings>,
    last_capture_id: u32,
    /// What another agent enrolled, until that is dropped.
    inherited: Vec<PodEntry>,
    /// Whether they were closed without an agent, by namespace; for good.
    remembered: HashMap<u64, bool>,
    /// The highest number of a pod that another agent enrolled.
    inherited_pod_id: u32,
    /// The highest number of a view that one of those looks at.
    inherited_view_id: u32,
}

impl Pods {
    /// Enrols a pod or brings an enrolled one up to date. Live connections are not touched; if
    /// other rules hold for them than before, those are returned.
    pub(super) fn put(
        &mut self,
        maps: &mut PodMaps,
        enrolment: &Enrolment<'_>,
        attach: impl FnOnce() -> Result<Option<SkLookupLink>, DatapathError>,
    ) -> Result<Option<InboundRules>, DatapathError> {
        let pod = enrolment.pod;
        let name = pod.workload.key().to_string();
        for address in enrolment.ips {
            let owner = self
                .enrolled
                .iter()
                .find(|(id, other)| **id != pod.id && other.addresses.contains(address));
            if let Some((_, owner)) = owner
                && enrolment.inbound.is_some()
            {
                return Err(DatapathError::AddressTaken {
                    address: *address,
                    owner: owner.name.clone(),
                    pod: name,
                });
            }
        }
        let capture = self.acquire(maps, enrolment.capture)?;
        let written = self.write(maps, enrolment, name, capture, attach);
        if written.is_err() {
            let _ = self.release(maps, enrolment.capture);
        }
        written
    }

    /// Everything of a pod, with the number of its capture settings and the flags they mean.
    fn write(
        &mut self,
        maps: &mut PodMaps,
        enrolment: &Enrolment<'_>,
        name: String,
        (capture_id, mut flags): (u32, u32),
        attach: impl FnOnce() -> Result<Option<SkLookupLink>, DatapathError>,
    ) -> Result<Option<InboundRules>, DatapathError> {
        let pod = enrolment.pod;
        let mut rules = match (enrolment.inbound, enrolment.rules) {
            (Some(_), Some(listener)) => InboundRules::new(listener, enrolment.ips),
            _ => InboundRules::default(),
        };
        let old_rules = self.enrolled.get(&pod.id).map(|old| old.rules.clone());
        if let Err(error) = write_rules(maps, &rules, pod.id) {
            tracing::warn!(pod = %name, %error, "the agent alone asks who may connect");
            rules = InboundRules::default();
        }
        if !rules.is_empty() {
            flags |= PodFlags::INBOUND_RULES;
        }
        if enrolment.inbound.is_some() && enrolment.rules.is_some_and(failure::closes_inbound) {
            flags |= PodFlags::INBOUND_FAIL_CLOSED;
        }
        let addresses: BTreeSet<IpAddr> = if enrolment.inbound.is_some() {
            enrolment.ips.iter().copied().collect()
        } else {
            BTreeSet::new()
        };
        if let Some(listener) = enrolment.inbound
            && !self.enrolled.contains_key(&pod.id)
        {
            let key = ListenKey {
                pod_id: pod.id.0,
                kind: ListenKind::INBOUND,
            };
            maps.listen
                .insert(key, listener.as_raw_fd(), 0)
                .map_err(map_error("LISTEN", "register the inbound listener"))?;
        }
        for address in &addresses {
            let value = InboundPod {
                pod_id: pod.id.0,
                capture_id,
                flags,
            };
            maps.in_pods
                .insert(Addr::from(*address), value, 0)
                .map_err(map_error("IN_PODS", "write an address"))?;
        }
        let first = |v4: bool| enrolment.ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
        let entry = PodEntry {
            pod_id: pod.id.0,
            view_id: pod.view().0,
            identity: 0,
            flags,
            capture_id,
            own_v4: first(true)
                .and_then(|ip| Addr::from(ip).v4_be())
                .unwrap_or(0),
            own_v6: first(false).map(Addr::from).unwrap_or(Addr::UNSPECIFIED),
        };
        let cookie = pod.netns.cookie();
        let old = self.enrolled.remove(&pod.id);
        let (link, old_addresses, old_near, old_capture) = match old {
            Some(old) => (old._inbound, old.addresses, old.near, Some(old.capture)),
            None => (attach()?, BTreeSet::new(), BTreeSet::new(), None),
        };
        maps.pods
            .insert(cookie, entry, 0)
            .map_err(map_error("PODS", "enrol the pod"))?;
        let near: BTreeSet<IpAddr> = enrolment.ips.iter().copied().collect();
        write_near(maps, &old_near, &near)?;
        for gone in old_addresses.difference(&addresses) {
            maps.in_pods
                .remove(&Addr::from(*gone))
                .map_err(map_error("IN_PODS", "remove an address"))?;
        }
        self.enrolled.insert(
            pod.id,
            Enrolled {
                name,
                cookie,
                entry,
                capture: enrolment.capture.clone(),
                addresses,
                near,
                rules: rules.clone(),
                _inbound: link,
            },
        );
        let old_rules = old_rules.unwrap_or_default();
        drop_rules(maps, &old_rules, &rules, pod.id);
        if let Some(old) = old_capture {
            self.release(maps, &old)?;
        }
        Ok((rules != old_rules && !rules.is_empty()).then_some(rules))
    }

    /// Removes what [`Self::put`] wrote of a pod before it failed. What cannot be removed was not
    /// written.
    pub(super) fn undo(&self, maps: &mut PodMaps, enrolment: &Enrolment<'_>) {
        let id = enrolment.pod.id;
        for address in enrolment.ips {
            let address = Addr::from(*address);
            if maps
                .in_pods
                .get(&address, 0)
                .is_ok_and(|pod| pod.pod_id == id.0)
            {
                let _ = maps.in_pods.remove(&address);
            }
        }
        let _ = maps.listen.remove(&ListenKey {
            pod_id: id.0,
            kind: ListenKind::INBOUND,
        });
        if let Some(listener) = enrolment.rules {
            let rules = InboundRules::new(listener, enrolment.ips);
            drop_rules(maps, &rules, &InboundRules::default(), id);
        }
        let _ = maps.pods.remove(&enrolment.pod.netns.cookie());
    }

    /// Lets a pod go: new connections are plain from here on.
    pub(super) fn remove(&mut self, maps: &mut PodMaps, id: PodId) -> Result<(), DatapathError> {
        let Some(old) = self.enrolled.remove(&id) else {
            return Ok(());
        };
        debug_assert_eq!(old.entry.pod_id, id.0);
        drop_rules(maps, &old.rules, &InboundRules::default(), id);
        let results = [
            maps.pods
                .remove(&old.cookie)
                .map_err(map_error("PODS", "remove the pod")),
            old.addresses.iter().try_for_each(|address| {
                maps.in_pods
                    .remove(&Addr::from(*address))
                    .map_err(map_error("IN_PODS", "remove an address"))
            }),
            write_near(maps, &old.near, &BTreeSet::new()),
            self.release(maps, &old.capture),
        ];
        // A listener that was closed has left the map by itself.
        let _ = maps.listen.remove(&ListenKey {
            pod_id: id.0,
            kind: ListenKind::INBOUND,
        });
        results.into_iter().collect()
    }

    /// None yet, and numbers beyond those of these.
    pub(super) fn inherited_from(pods: Vec<(u64, PodEntry)>) -> Self {
        let closed = |pod: &PodEntry| pod.flags & PodFlags::INBOUND_FAIL_CLOSED != 0;
        let remembered = pods.iter().map(|(cookie, pod)| (*cookie, closed(pod)));
        let remembered = remembered.collect();
        let pods: Vec<PodEntry> = pods.into_iter().map(|(_, pod)| pod).collect();
        let highest = |of: fn(&PodEntry) -> u32| pods.iter().map(of).max().unwrap_or(0);
        Self {
            last_capture_id: highest(|pod| pod.capture_id),
            inherited_pod_id: highest(|pod| pod.pod_id),
            inherited_view_id: highest(|pod| pod.view_id),
            inherited: pods,
            remembered,
            ..Self::default()
        }
    }

    /// Of a pod that another agent enrolled: whether it was closed without an agent.
    pub(super) fn remembers(&self, cookie: u64) -> Option<bool> {
        self.remembered.get(&cookie).copied()
    }

    /// Who connects from this node, those another agent enrolled included.
    pub(super) fn sources(&self) -> Sources {
        let mut sources = Sources::default();
        let ours = self.enrolled.values().map(|pod| &pod.entry);
        for pod in ours.chain(&self.inherited) {
            sources.add(ViewId(pod.view_id), source(pod));
        }
        sources
    }

    /// Whether a pod is enrolled with this view and these addresses already.
    pub(super) fn knows_source(&self, view: ViewId, wanted: &Source) -> bool {
        let known = self.enrolled.get(&PodId(wanted.pod_id));
        known.is_some_and(|known| known.entry.view_id == view.0 && source(&known.entry) == *wanted)
    }

    /// The highest number of a pod that another agent enrolled; ours must be higher.
    pub(super) fn inherited(&self) -> PodId {
        PodId(self.inherited_pod_id)
    }

    /// The highest number of a view that such a pod looks at.
    pub(super) fn inherited_view(&self) -> ViewId {
        ViewId(self.inherited_view_id)
    }

    /// Namespaces of enrolled pods.
    pub(super) fn cookies(&self) -> HashSet<u64> {
        self.enrolled.values().map(|pod| pod.cookie).collect()
    }

    /// Removes what another agent left and nobody took over.
    pub(super) fn drop_inherited(&mut self, maps: &mut PodMaps) {
        self.inherited.clear();
        let cookies = self.cookies();
        let settings: HashSet<u32> = self.settings.values().map(|one| one.id).collect();
        let ours = |id: u32| self.enrolled.contains_key(&PodId(id));
        // What cannot be removed is gone already.
        for cookie in stale(maps.pods.keys().flatten(), |key| cookies.contains(key)) {
            let _ = maps.pods.remove(&cookie);
        }
        let in_pods: Vec<(Addr, InboundPod)> = maps.in_pods.iter().flatten().collect();
        for (address, _) in in_pods.into_iter().filter(|(_, pod)| !ours(pod.pod_id)) {
            let _ = maps.in_pods.remove(&address);
        }
        for key in stale(maps.listen.keys().flatten(), |key| ours(key.pod_id)) {
            let _ = maps.listen.remove(&key);
        }
        let near: HashSet<Addr> = self
            .enrolled
            .values()
            .flat_map(|pod| pod.near.iter().copied().map(Addr::from))
            .collect();
        for address in stale(maps.near.keys().flatten(), |key| near.contains(key)) {
            let _ = maps.near.remove(&address);
        }
        let rules: Vec<Key<AuthzKey>> = maps.authz.keys().flatten().collect();
        for key in rules {
            let data: AuthzKey = key.data();
            if !ours(data.pod_id) {
                let _ = maps.authz.remove(&key);
            }
        }
        let ranges: Vec<Key<CidrKey>> = maps.cidrs.keys().flatten().collect();
        for key in ranges {
            let data: CidrKey = key.data();
            if !settings.contains(&data.capture_id) {
                let _ = maps.cidrs.remove(&key);
            }
        }
        for key in stale(maps.ports.keys().flatten(), |key| {
            settings.contains(&key.capture_id)
        }) {
            let _ = maps.ports.remove(&key);
        }
    }

    /// The namespace of an enrolled pod.
    pub(super) fn cookie(&self, id: PodId) -> Option<u64> {
        Some(self.enrolled.get(&id)?.cookie)
    }

    /// Enrolled pods.
    pub(super) fn ids(&self) -> Vec<PodId> {
        self.enrolled.keys().copied().collect()
    }

    fn acquire(
        &mut self,
        maps: &mut PodMaps,
        capture: &Arc<Capture>,
    ) -> Result<(u32, u32), DatapathError> {
        if let Some(settings) = self.settings.get_mut(capture) {
            settings.users += 1;
            return Ok((settings.id, settings.entries.flags));
        }
        self.last_capture_id += 1;
        let id = self.last_capture_id;
        let entries = entries(capture, id);
        for ((prefix, key), action) in &entries.cidrs {
            maps.cidrs
                .insert(&Key::new(*prefix, *key), action, 0)
                .map_err(map_error("CIDRS", "write a range"))?;
        }
        for (key, action) in &entries.ports {
            maps.ports
                .insert(key, action, 0)
                .map_err(map_error("PORTS", "write a port"))?;
        }
        let flags = entries.flags;
        self.settings.insert(
            capture.clone(),
            Settings {
                id,
                users: 1,
                entries,
            },
        );
        Ok((id, flags))
    }

    fn release(&mut self, maps: &mut PodMaps, capture: &Arc<Capture>) -> Result<(), DatapathError> {
        let Some(settings) = self.settings.get_mut(capture) else {
            return Ok(());
        };
        settings.users -= 1;
        if settings.users > 0 {
            return Ok(());
        }
        let Some(settings) = self.settings.remove(capture) else {
            return Ok(());
        };
        for (prefix, key) in settings.entries.cidrs.keys() {
            maps.cidrs
                .remove(&Key::new(*prefix, *key))
                .map_err(map_error("CIDRS", "remove a range"))?;
        }
        for key in settings.entries.ports.keys() {
            maps.ports
                .remove(key)
                .map_err(map_error("PORTS", "remove a port"))?;
        }
        Ok(())
    }
}

/// Where a pod's connections come from.
fn source(pod: &PodEntry) -> Source {
    Source {
        pod_id: pod.pod_id,
        v4: (pod.own_v4 != 0).then(|| Addr::from_v4_be(pod.own_v4).into()),
        v6: (pod.own_v6 != Addr::UNSPECIFIED).then(|| pod.own_v6.into()),
    }
}

/// Writes which addresses are those of pods of this node. One that is gone already is no error.
fn write_near(
    maps: &mut PodMaps,
    old: &BTreeSet<IpAddr>,
    new: &BTreeSet<IpAddr>,
) -> Result<(), DatapathError> {
    for gone in old.difference(new) {
        let _ = maps.near.remove(&Addr::from(*gone));
    }
    new.iter().try_for_each(|address| {
        maps.near
            .insert(Addr::from(*address), 1, 0)
            .map_err(map_error("NEAR", "write an address"))
    })
}

/// Writes who is surely denied; over what is there.
fn write_rules(maps: &mut PodMaps, rules: &InboundRules, pod: PodId) -> Result<(), DatapathError> {
    for ((prefix, key), verdict) in rules.entries(pod.0) {
        let written = maps.authz.insert(&Key::new(prefix, key), verdict, 0);
        if let Err(error) = written.map_err(map_error("AUTHZ", "write a range")) {
            drop_rules(maps, rules, &InboundRules::default(), pod);
            return Err(error);
        }
    }
    Ok(())
}

/// Removes what does not hold any more. What cannot be removed is gone already.
fn drop_rules(maps: &mut PodMaps, old: &InboundRules, new: &InboundRules, pod: PodId) {
    let stays = new.entries(pod.0);
    for (prefix, key) in old.entries(pod.0).into_keys() {
        if !stays.contains_key(&(prefix, key)) {
            let _ = maps.authz.remove(&Key::new(prefix, key));
        }
    }
}
