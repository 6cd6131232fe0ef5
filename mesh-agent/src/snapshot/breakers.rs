//! Circuit breakers: what a cluster may have in use at once, whatever worker uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::model::cluster::{CircuitBreakers, RoutingPriority, Thresholds};

/// What is in use, of one priority.
#[derive(Debug, Default)]
pub struct InUse {
    /// Connections.
    pub connections: AtomicU64,
    /// Requests that wait for a connection.
    pub pending: AtomicU64,
    /// Requests in flight.
    pub requests: AtomicU64,
    /// Retries in flight.
    pub retries: AtomicU64,
}

/// What is in use, by priority. Outlives snapshots.
#[derive(Debug, Default)]
pub struct Resources {
    /// Of the default priority.
    pub default: Arc<InUse>,
    /// Of high-priority routes.
    pub high: Arc<InUse>,
}

/// The limits of one priority and what is in use of it.
#[derive(Debug)]
pub struct Breakers {
    in_use: Arc<InUse>,
    limits: Thresholds,
}

/// [`Breakers`] of both priorities.
#[derive(Debug)]
pub struct ByPriority {
    default: Breakers,
    high: Breakers,
}

impl ByPriority {
    /// The limits of a configuration over what is in use.
    pub fn new(config: &CircuitBreakers, resources: &Resources) -> Self {
        let of = |limits: &Thresholds, in_use: &Arc<InUse>| Breakers {
            in_use: in_use.clone(),
            limits: limits.clone(),
        };
        Self {
            default: of(&config.default, &resources.default),
            high: of(&config.high, &resources.high),
        }
    }

    /// Those of a priority.
    pub fn of(&self, priority: RoutingPriority) -> &Breakers {
        match priority {
            RoutingPriority::Default => &self.default,
            RoutingPriority::High => &self.high,
        }
    }
}

impl Breakers {
    /// A place for a connection.
    pub fn hold_connection(&self) -> Option<Held> {
        self.hold(Resource::Connection, self.limits.max_connections.into())
    }

    /// A place for a connection without which nothing would ever be served: one that an endpoint
    /// without any gets over the limit, too (Envoy: `tryCreateNewConnection`).
    pub fn hold_first_connection(&self) -> Option<Held> {
        self.hold(Resource::Connection, u64::MAX)
    }

    /// A place among those who wait for a connection.
    pub fn hold_pending(&self) -> Option<Held> {
        self.hold(Resource::Pending, self.limits.max_pending_requests.into())
    }

    /// A place for a request.
    pub fn hold_request(&self) -> Option<Held> {
        self.hold(Resource::Request, self.limits.max_requests.into())
    }

    /// A place for a retry.
    pub fn hold_retry(&self) -> Option<Held> {
        let limit = match &self.limits.retry_budget {
            None => self.limits.max_retries.into(),
            Some(budget) => {
                let in_use = &self.in_use;
                let active = in_use.requests.load(Ordering::Relaxed)
                    + in_use.pending.load(Ordering::Relaxed);
                let share = (budget.percent / 100.0 * active as f64) as u64;
                share.max(budget.min_concurrency.into())
            }
        };
        self.hold(Resource::Retry, limit)
    }

    /// What is in use.
    pub fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// The limits.
    pub fn limits(&self) -> &Thresholds {
        &self.limits
    }

    /// Of many that ask at once no more get one than there are.
    fn hold(&self, resource: Resource, limit: u64) -> Option<Held> {
        resource
            .of(&self.in_use)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                (held < limit).then_some(held + 1)
            })
            .ok()?;
        Some(Held {
            in_use: self.in_use.clone(),
            resource,
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Resource {
    Connection,
    Pending,
    Request,
    Retry,
}

impl Resource {
    fn of(self, in_use: &InUse) -> &AtomicU64 {
        match self {
            Self::Connection => &in_use.connections,
            Self::Pending => &in_use.pending,
            Self::Request => &in_use.requests,
            Self::Retry => &in_use.retries,
        }
    }
}

/// A place taken; drop gives it back.
#[derive(Debug)]
pub struct Held {
    in_use: Arc<InUse>,
    resource: Resource,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resource
            .of(&self.in_use)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::model::cluster::RetryBudget;

    use super::*;

    fn breakers(limits: Thresholds) -> Breakers {
        Breakers {
            in_use: Arc::default(),
            limits,
        }
    }

    #[test]
    fn a_place_is_taken_until_it_is_given_back() {
        let breakers = breakers(Thresholds {
            max_requests: 2,
            ..Thresholds::default()
        });
        let first = breakers.hold_request();
        let second = breakers.hold_request();
        assert!(first.is_some() && second.is_some());
        assert!(breakers.hold_request().is_none());
        drop(first);
        assert!(breakers.hold_request().is_some());
    }

    #[test]
    fn a_budget_grows_with_what_is_in_flight() {
        let breakers = breakers(Thresholds {
            max_retries: 0,
            retry_budget: Some(RetryBudget {
                percent: 50.0,
                min_concurrency: 1,
            }),
            ..Thresholds::default()
        });
        let _first = breakers.hold_retry().unwrap();
        assert!(breakers.hold_retry().is_none());
        let _requests: Vec<_> = (0..4).map(|_| breakers.hold_request().unwrap()).collect();
        let _second = breakers.hold_retry().unwrap();
        assert!(breakers.hold_retry().is_none());
    }
}
