//! The endpoints of a cluster as they are walked: priority, then locality, then endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::balance::locality::effective_weight;
use crate::balance::priority::{Availability, Endpoints, Level, Loads};
use crate::balance::rotation::rotation;
use crate::config::model::cluster::LbPolicy;
use crate::config::model::endpoint::Health;

use super::cluster::Host;
use super::places::{self, Places};

/// How endpoints share the load, whatever the policy.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Percent, for example 140.
    pub overprovisioning_factor: u32,
    /// Percent; 0 disables panic.
    pub panic_threshold: u32,
    /// Weights decide how available a priority is, not numbers.
    pub weighted_priority_health: bool,
    /// Localities' weights count.
    pub locality_weighted: bool,
    /// How endpoints are chosen.
    pub policy: LbPolicy,
}

/// Chooses among the endpoints of a cluster. Built once a snapshot; choosing takes no lock.
#[derive(Debug, Default)]
pub struct Balancer {
    priorities: Vec<Priority>,
    loads: Option<Loads>,
    levels: Vec<Level>,
    overprovisioning_factor: u32,
}

/// What a priority offers to those it is chosen for.
#[derive(Debug)]
struct Priority {
    healthy: Group,
    degraded: Group,
    /// Every endpoint; only in panic.
    panic: Option<Pool>,
}

/// Endpoints that are equally available.
#[derive(Debug)]
enum Group {
    Whole(Pool),
    ByLocality {
        pools: Vec<Pool>,
        /// Indices of pools, as often as their weight says.
        turns: Vec<usize>,
        turn: AtomicUsize,
        weights: Vec<f64>,
    },
}

/// Endpoints among which the policy alone decides.
#[derive(Debug)]
pub struct Pool {
    hosts: Vec<Arc<Host>>,
    /// Indices of hosts, as often as their weight says; empty when all weigh the same.
    turns: Vec<usize>,
    turn: AtomicUsize,
    /// For choice by hash.
    places: Option<Places>,
    id: u64,
}

impl Balancer {
    /// For endpoints by priority, the highest one first.
    pub fn new(priorities: &[Vec<Arc<Host>>], settings: &Settings) -> Self {
        let levels: Vec<Level> = priorities
            .iter()
            .map(|hosts| level(hosts, settings.weighted_priority_health))
            .collect();
        let threshold = settings.panic_threshold;
        let loads = Loads::new(&levels, settings.overprovisioning_factor, threshold);
        let priorities = priorities
            .iter()
            .zip(&loads.panic)
            .map(|(hosts, panic)| Priority {
                healthy: Group::new(hosts, Health::Healthy, settings),
                degraded: Group::new(hosts, Health::Degraded, settings),
                panic: panic.then(|| Pool::new(hosts.clone(), settings)),
            })
            .collect();
        Self {
            priorities,
            loads: Some(loads),
            levels,
            overprovisioning_factor: settings.overprovisioning_factor,
        }
    }

    /// As [`Self::pool`], for a request whose earlier attempts went to the priorities `excluded`.
    /// When no other one can take it, they can (Envoy: `PreviousPrioritiesRetryPriority`).
    pub fn pool_without(&self, random: u64, excluded: &[usize]) -> Option<&Pool> {
        let mut levels = self.levels.clone();
        for priority in excluded {
            if let Some(level) = levels.get_mut(*priority) {
                *level = Level::default();
            }
        }
        let loads = Loads::new(&levels, self.overprovisioning_factor, 0);
        let available = |level: &Level| level.available.healthy + level.available.degraded > 0;
        if !levels.iter().any(available) {
            return self.pool(random);
        }
        self.pool_of(loads.choose(random)?)
    }

    /// The pool for one request or connection. `None`: there is no endpoint to use.
    pub fn pool(&self, random: u64) -> Option<&Pool> {
        self.pool_of(self.loads.as_ref()?.choose(random)?)
    }

    fn pool_of(&self, (priority, availability): (usize, Availability)) -> Option<&Pool> {
        let priority = self.priorities.get(priority)?;
        let pool = match (&priority.panic, availability) {
            (Some(pool), _) => pool,
            (None, Availability::Healthy) => priority.healthy.pool()?,
            (None, Availability::Degraded) => priority.degraded.pool()?,
        };
        (!pool.hosts.is_empty()).then_some(pool)
    }

    /// Endpoints that are used, with their shares of all connections, which sum to 1. What the
    /// kernel's slots are made of.
    pub fn shares(&self, policy: LbPolicy) -> Vec<(Arc<Host>, f64)> {
        let mut shares = Vec::new();
        let Some(loads) = &self.loads else {
            return shares;
        };
        for (index, priority) in self.priorities.iter().enumerate() {
            let healthy = f64::from(loads.healthy[index]);
            let degraded = f64::from(loads.degraded[index]);
            match &priority.panic {
                Some(pool) => pool.add_shares(healthy + degraded, policy, &mut shares),
                None => {
                    priority.healthy.add_shares(healthy, policy, &mut shares);
                    priority.degraded.add_shares(degraded, policy, &mut shares);
                }
            }
        }
        let total: f64 = shares.iter().map(|(_, share)| share).sum();
        for (_, share) in &mut shares {
            *share /= total;
        }
        shares
    }
}

fn level(hosts: &[Arc<Host>], weighted: bool) -> Level {
    let sum = |of: &dyn Fn(&Host) -> u64| {
        let part = |health| {
            hosts
                .iter()
                .filter(|host| host.health_now() == health)
                .map(|host| of(host))
                .sum()
        };
        Endpoints {
            total: hosts.iter().map(|host| of(host)).sum(),
            healthy: part(Health::Healthy),
            degraded: part(Health::Degraded),
        }
    };
    let count = sum(&|_| 1);
    let available = if weighted {
        sum(&|host| host.weight.into())
    } else {
        count
    };
    Level { count, available }
}

impl Group {
    fn new(hosts: &[Arc<Host>], health: Health, settings: &Settings) -> Self {
        let eligible = |host: &&Arc<Host>| host.health_now() == health;
        let by_hash = places::is_by_hash(settings.policy);
        if settings.locality_weighted
            && !by_hash
            && let Some(group) = Self::by_locality(hosts, health, settings)
        {
            return group;
        }
        Self::Whole(Pool::new(
            hosts.iter().filter(eligible).cloned().collect(),
            settings,
        ))
    }

    /// `None` when no locality has a share, which then do not count.
    fn by_locality(hosts: &[Arc<Host>], health: Health, settings: &Settings) -> Option<Self> {
        let mut localities: Vec<(&Host, usize, Vec<Arc<Host>>)> = Vec::new();
        for host in hosts {
            let known = localities
                .iter()
                .position(|(first, ..)| first.locality == host.locality);
            let index = known.unwrap_or(localities.len());
            if known.is_none() {
                localities.push((host, 0, Vec::new()));
            }
            let (_, total, eligible) = &mut localities[index];
            *total += 1;
            if host.health_now() == health {
                eligible.push(host.clone());
            }
        }
        let (weights, pools): (Vec<f64>, Vec<Pool>) = localities
            .into_iter()
            .map(|(first, total, eligible)| {
                let weight = effective_weight(
                    first.locality_weight,
                    eligible.len(),
                    total,
                    settings.overprovisioning_factor,
                );
                (weight, Pool::new(eligible, settings))
            })
            .unzip();
        let turns = rotation(&weights);
        (!turns.is_empty()).then(|| Self::ByLocality {
            turn: start(turns.len()),
            pools,
            turns,
            weights,
        })
    }

    fn pool(&self) -> Option<&Pool> {
        match self {
            Self::Whole(pool) => Some(pool),
            Self::ByLocality {
                pools, turns, turn, ..
            } => {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                pools.get(turns[turn % turns.len()])
            }
        }
    }

    fn add_shares(&self, load: f64, policy: LbPolicy, shares: &mut Vec<(Arc<Host>, f64)>) {
        match self {
            Self::Whole(pool) => pool.add_shares(load, policy, shares),
            Self::ByLocality { pools, weights, .. } => {
                let total: f64 = weights.iter().sum();
                for (pool, weight) in pools.iter().zip(weights) {
                    pool.add_shares(load * weight / total, policy, shares);
                }
            }
        }
    }
}

impl Pool {
    fn new(hosts: Vec<Arc<Host>>, settings: &Settings) -> Self {
        /// Never reused, so that what a worker remembers of a pool never meets another one.
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let weights: Vec<f64> = hosts.iter().map(|host| f64::from(host.weight)).collect();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let turns = if equal {
            Vec::new()
        } else {
            rotation(&weights)
        };
        Self {
            turn: start(turns.len().max(hosts.len())),
            places: Places::new(&hosts, settings),
            hosts,
            turns,
            id: LAST_ID.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Its endpoints; at least one.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// Whether all endpoints weigh the same.
    pub fn equal_weights(&self) -> bool {
        self.turns.is_empty()
    }

    /// Its number, which no other pool of this process has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// By hash; every further attempt may lead elsewhere.
    pub fn by_hash(&self, hash: u64, attempt: usize) -> Option<&Arc<Host>> {
        self.hosts.get(self.places.as_ref()?.pick(hash, attempt)?)
    }

    /// The next in weighted turn.
    pub fn round_robin(&self) -> &Arc<Host> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match self.turns.len() {
            0 => &self.hosts[turn % self.hosts.len()],
            turns => &self.hosts[self.turns[turn % turns]],
        }
    }

    fn add_shares(&self, load: f64, policy: LbPolicy, shares: &mut Vec<(Arc<Host>, f64)>) {
        if load <= 0.0 || self.hosts.is_empty() {
            return;
        }
        // Envoy's RANDOM does not look at weights.
        let weight = |host: &Host| match policy {
            LbPolicy::Random => 1.0,
            _ => f64::from(host.weight),
        };
        let total: f64 = self.hosts.iter().map(|host| weight(host)).sum();
        shares.extend(
            self.hosts
                .iter()
                .map(|host| (host.clone(), load * weight(host) / total)),
        );
    }
}

/// Somewhere, so that agents and snapshots do not all begin with the first endpoint.
fn start(length: usize) -> AtomicUsize {
    AtomicUsize::new(fastrand::usize(..length.max(1)))
}

#[cfg(test)]
mod tests;
