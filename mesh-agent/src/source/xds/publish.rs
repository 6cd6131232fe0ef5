//! Make before break: what of the cache may be used by now.
//!
//! A cluster is used once its endpoints are here, a route once its clusters are, a listener once
//! its routes are; until then the version before is. What is removed stays as long as something
//! in use refers to it. Nothing is waited for longer than [`HOLD`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::model::Name;
use crate::config::model::cluster::{Cluster, Discovery};
use crate::config::model::endpoint::LoadAssignment;
use crate::config::model::filter::HttpFilter;
use crate::config::model::listener::{Listener, RouteSource, Terminal};
use crate::config::model::route::RouteConfiguration;
use crate::config::model::secret::Secret;
use crate::store::{Resource, ResourceSet};

use super::cache::{Cache, Good, route_names};
use super::decode::Value;
use super::types::ResourceType;

/// How long an update waits for what it refers to, as long as a resource is waited for.
pub(super) const HOLD: Duration = Duration::from_secs(15);

/// What was held back, and since when.
#[derive(Debug, Default)]
pub(super) struct Holds {
    since: HashMap<(ResourceType, String), Instant>,
    seen: HashSet<(ResourceType, String)>,
}

impl Holds {
    /// Whether to go on waiting.
    fn wait(&mut self, kind: ResourceType, name: &str, now: Instant) -> bool {
        let key = (kind, name.to_owned());
        let since = *self.since.entry(key.clone()).or_insert(now);
        self.seen.insert(key);
        now < since + HOLD
    }

    /// Ends a round: who did not have to wait in it starts anew next time.
    fn end(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        self.since.retain(|key, _| seen.contains(key));
        // While a large mesh comes in, most of it waits.
        self.since.shrink_to(seen.len());
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// When the first wait ends.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let ends = self.since.values().map(|since| *since + HOLD);
        ends.filter(|end| *end > now).min()
    }
}

/// The next set to use, after `before`.
pub(super) fn publish(
    cache: &Cache,
    before: &ResourceSet,
    holds: &mut Holds,
    now: Instant,
) -> ResourceSet {
    let mut next = Next::default();
    clusters(cache, before, holds, now, &mut next);
    routes(cache, before, holds, now, &mut next);
    listeners(cache, before, holds, now, &mut next);
    keep_referenced(before, holds, now, &mut next);
    secrets(cache, before, &mut next);
    holds.end();
    // Where nothing changed nothing has to be made anew of it, or be held twice.
    ResourceSet {
        listeners: or_same(next.listeners, &before.listeners),
        routes: or_same(next.routes, &before.routes),
        clusters: or_same(next.clusters, &before.clusters),
        endpoints: or_same(next.endpoints, &before.endpoints),
        secrets: or_same(next.secrets, &before.secrets),
    }
}

fn or_same<T>(
    next: BTreeMap<Name, Resource<T>>,
    before: &Arc<BTreeMap<Name, Resource<T>>>,
) -> Arc<BTreeMap<Name, Resource<T>>> {
    if same_values(before, &next) {
        before.clone()
    } else {
        Arc::new(next)
    }
}

fn same_values<T>(one: &BTreeMap<Name, Resource<T>>, other: &BTreeMap<Name, Resource<T>>) -> bool {
    let mut pairs = one.iter().zip(other);
    one.len() == other.len()
        && pairs.all(|((name, one), (other_name, other))| {
            name == other_name
                && Arc::ptr_eq(&one.value, &other.value)
                && one.version == other.version
        })
}

/// Secrets that anything in use refers to.
fn secrets(cache: &Cache, before: &ResourceSet, next: &mut Next) {
    let clusters = next.clusters.values().flat_map(|one| one.value.secrets());
    let listeners = next.listeners.values().flat_map(|one| one.value.secrets());
    let mut found = BTreeMap::new();
    for name in clusters.chain(listeners) {
        if found.contains_key(name) {
            continue;
        }
        let good = cache
            .get(ResourceType::Secret, name)
            .map(|entry| &entry.good);
        match good {
            Some(Some(good)) => {
                if let Value::Secret(secret) = &good.value {
                    found.insert(name.clone(), resource(secret, good));
                }
            }
            // The server says that there is none any more: nobody is trusted by it.
            Some(None) => {}
            // Not asked for again yet.
            None => {
                if let Some(known) = before.secrets.get(name) {
                    found.insert(name.clone(), known.clone());
                }
            }
        }
    }
    next.secrets = found;
}

/// Whether secrets are here, or known not to be.
fn all_secrets<'a>(
    cache: &Cache,
    before: &ResourceSet,
    mut names: impl Iterator<Item = &'a Name>,
) -> bool {
    names.all(|name| match cache.get(ResourceType::Secret, name) {
        Some(entry) => entry.good.is_some() || entry.absent,
        None => before.secrets.contains_key(name),
    })
}

/// The next set if only endpoints changed, of these services: nothing waits for them.
pub(super) fn publish_endpoints(
    cache: &Cache,
    before: &ResourceSet,
    services: &BTreeSet<String>,
) -> ResourceSet {
    let mut next = before.clone();
    let endpoints = Arc::make_mut(&mut next.endpoints);
    for name in services {
        let entry = cache.get(ResourceType::Endpoint, name);
        if let Some(used) = endpoints.get_mut(name.as_str())
            && let Some(good) = entry.and_then(|entry| entry.good.as_ref())
            && let Value::Endpoint(value) = &good.value
        {
            *used = resource(value, good);
        }
    }
    next
}

/// A set in the making.
#[derive(Default)]
struct Next {
    listeners: BTreeMap<Name, Resource<Listener>>,
    routes: BTreeMap<Name, Resource<RouteConfiguration>>,
    clusters: BTreeMap<Name, Resource<Cluster>>,
    endpoints: BTreeMap<Name, Resource<LoadAssignment>>,
    secrets: BTreeMap<Name, Resource<Secret>>,
}

fn resource<T>(value: &Arc<T>, good: &Good) -> Resource<T> {
    Resource {
        value: value.clone(),
        version: good.version.clone(),
        updated: good.updated,
        raw: good.raw.clone(),
    }
}

fn clusters(cache: &Cache, before: &ResourceSet, holds: &mut Holds, now: Instant, next: &mut Next) {
    for (name, entry) in cache.of(ResourceType::Cluster) {
        let Some(good) = &entry.good else { continue };
        let Value::Cluster(cluster) = &good.value else {
            continue;
        };
        let known = before.clusters.get(name);
        let ready = endpoints(cache, before, cluster, &mut next.endpoints)
            && all_secrets(cache, before, cluster.secrets());
        let taken = if ready || !holds.wait(ResourceType::Cluster, name, now) {
            Some((cluster.name.clone(), resource(cluster, good)))
        } else {
            known.map(|known| {
                if let Discovery::Eds { service_name } = &known.value.discovery
                    && let Some(endpoints) = before.endpoints.get(service_name)
                {
                    next.endpoints
                        .insert(service_name.clone(), endpoints.clone());
                }
                (cluster.name.clone(), known.clone())
            })
        };
        if let Some((name, taken)) = taken {
            next.clusters.insert(name, taken);
        }
    }
}

/// Takes the cluster's endpoints along; says whether they are here, or known not to be.
fn endpoints(
    cache: &Cache,
    before: &ResourceSet,
    cluster: &Cluster,
    next: &mut BTreeMap<Name, Resource<LoadAssignment>>,
) -> bool {
    let Discovery::Eds { service_name } = &cluster.discovery else {
        return true;
    };
    match cache.get(ResourceType::Endpoint, service_name) {
        Some(entry) => match &entry.good {
            Some(good) => {
                if let Value::Endpoint(endpoints) = &good.value {
                    next.insert(service_name.clone(), resource(endpoints, good));
                }
                true
            }
            None => entry.absent,
        },
        None => {
            // Not asked for again yet: what was in use still is.
            if let Some(known) = before.endpoints.get(service_name) {
                next.insert(service_name.clone(), known.clone());
                return true;
            }
            false
        }
    }
}

fn routes(cache: &Cache, before: &ResourceSet, holds: &mut Holds, now: Instant, next: &mut Next) {
    for (name, entry) in cache.of(ResourceType::Route) {
        let known = before.routes.get(name);
        let taken = match entry.good.as_ref().map(|good| (good, &good.value)) {
            Some((good, Value::Route(routes))) => {
                let unchanged = known.is_some_and(|known| Arc::ptr_eq(&known.value, routes));
                let ready = unchanged || all_clusters(routes, next);
                if ready || !holds.wait(ResourceType::Route, name, now) {
                    Some((routes.name.clone(), resource(routes, good)))
                } else {
                    known.map(|known| (routes.name.clone(), known.clone()))
                }
            }
            _ => None,
        };
        if let Some((name, taken)) = taken {
            next.routes.insert(name, taken);
        }
    }
}

fn all_clusters(routes: &RouteConfiguration, next: &Next) -> bool {
    routes
        .clusters()
        .all(|(_, cluster)| next.clusters.contains_key(cluster))
}

fn listeners(
    cache: &Cache,
    before: &ResourceSet,
    holds: &mut Holds,
    now: Instant,
    next: &mut Next,
) {
    for (name, entry) in cache.of(ResourceType::Listener) {
        let known = before.listeners.get(name);
        let taken = match entry.good.as_ref().map(|good| (good, &good.value)) {
            Some((good, Value::Listener(listener))) => {
                let unchanged = known.is_some_and(|known| Arc::ptr_eq(&known.value, listener));
                let ready = unchanged
                    || all_there(listener, cache, next)
                        && all_secrets(cache, before, listener.secrets());
                if ready || !holds.wait(ResourceType::Listener, name, now) {
                    Some((listener.name.clone(), resource(listener, good)))
                } else {
                    known.map(|known| (listener.name.clone(), known.clone()))
                }
            }
            _ => None,
        };
        if let Some((name, taken)) = taken {
            next.listeners.insert(name, taken);
        }
    }
}

fn all_there(listener: &Listener, cache: &Cache, next: &Next) -> bool {
    let routes = route_names(listener).all(|name| {
        next.routes.contains_key(name)
            || cache
                .get(ResourceType::Route, name)
                .is_some_and(|entry| entry.absent)
    });
    routes
        && chains(listener).all(|terminal| match terminal {
            Terminal::Tcp(proxy) => proxy
                .clusters
                .iter()
                .all(|cluster| next.clusters.contains_key(&cluster.cluster)),
            Terminal::Http(hcm) => match &hcm.routes {
                RouteSource::Inline(routes) => all_clusters(routes, next),
                RouteSource::Rds(_) => true,
            },
        })
}

fn chains(listener: &Listener) -> impl Iterator<Item = &Terminal> {
    listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain)
        .map(|chain| &chain.terminal)
}

/// What is gone from the cache and still referred to stays: routes of listeners that wait for
/// their successors, and clusters of all of them.
fn keep_referenced(before: &ResourceSet, holds: &mut Holds, now: Instant, next: &mut Next) {
    let mut routes = Vec::new();
    for listener in next.listeners.values() {
        for name in route_names(&listener.value) {
            if !next.routes.contains_key(name)
                && let Some(known) = before.routes.get(name)
            {
                routes.push((name.clone(), known.clone()));
            }
        }
    }
    next.routes.extend(routes);
    let mut clusters = Vec::new();
    {
        let mut keep = |name: &Name| {
            if !next.clusters.contains_key(name)
                && let Some(known) = before.clusters.get(name)
                && holds.wait(ResourceType::Cluster, name, now)
            {
                clusters.push((name.clone(), known.clone()));
            }
        };
        for routes in next.routes.values() {
            routes.value.clusters().for_each(|(_, name)| keep(name));
        }
        for listener in next.listeners.values() {
            for terminal in chains(&listener.value) {
                match terminal {
                    Terminal::Tcp(proxy) => {
                        proxy.clusters.iter().for_each(|c| keep(&c.cluster));
                    }
                    Terminal::Http(hcm) => {
                        let filters = hcm.http_filters.iter();
                        filters.flat_map(HttpFilter::clusters).for_each(&mut keep);
                        if let RouteSource::Inline(routes) = &hcm.routes {
                            routes.clusters().for_each(|(_, name)| keep(name));
                        }
                    }
                }
            }
        }
    }
    for (name, cluster) in clusters {
        if let Discovery::Eds { service_name } = &cluster.value.discovery
            && let Some(endpoints) = before.endpoints.get(service_name)
        {
            next.endpoints
                .entry(service_name.clone())
                .or_insert_with(|| endpoints.clone());
        }
        next.clusters.insert(name, cluster);
    }
}
