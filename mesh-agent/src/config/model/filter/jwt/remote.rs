//! Keys that are fetched, and kept for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use crate::config::model::filter::service::HttpUri;

use super::jwks::Jwks;

/// Envoy's `RemoteJwks`. All workers share what one of them has fetched.
#[derive(Debug)]
pub struct RemoteJwks {
    /// Where from.
    pub uri: HttpUri,
    /// For how long keys are used before they are fetched again.
    pub keep: Duration,
    /// Requests go on with the old keys while new ones are fetched (`async_fetch`); otherwise they
    /// wait.
    pub in_background: bool,
    /// How long after a failure in the background it is tried again.
    pub again_after: Duration,
    fetched: ArcSwapOption<Fetched>,
    fetching: AtomicBool,
    /// Fetches that have ended, well or not.
    ended: AtomicU64,
    waiting: Notify,
}

#[derive(Debug)]
struct Fetched {
    keys: Arc<Jwks>,
    /// When to fetch again.
    until: Instant,
}

/// What to do for keys.
#[derive(Debug)]
pub enum Found<'a> {
    /// Use these.
    Fresh(Arc<Jwks>),
    /// Use these, and fetch new ones meanwhile.
    Stale(Arc<Jwks>, Option<Fetching<'a>>),
    /// Fetch them.
    Fetch(Fetching<'a>),
    /// Somebody fetches them: wait until that has ended, then look again.
    Wait(Wait<'a>),
}

/// The right to fetch; without a result the next one gets it.
#[derive(Debug)]
pub struct Fetching<'a>(&'a RemoteJwks);

/// Waits for another one's fetch.
#[derive(Debug)]
pub struct Wait<'a> {
    remote: &'a RemoteJwks,
    ended: u64,
}

impl RemoteJwks {
    /// Nothing is fetched yet.
    pub fn new(uri: HttpUri, keep: Duration, in_background: bool, again_after: Duration) -> Self {
        Self {
            uri,
            keep,
            in_background,
            again_after,
            fetched: ArcSwapOption::empty(),
            fetching: AtomicBool::new(false),
            ended: AtomicU64::new(0),
            waiting: Notify::new(),
        }
    }

    /// Looks for keys.
    pub fn find(&self) -> Found<'_> {
        // Read before the right to fetch is asked for: who had it may end in between.
        let ended = self.ended.load(Ordering::Acquire);
        if let Some(fetched) = &*self.fetched.load() {
            let keys = fetched.keys.clone();
            if Instant::now() < fetched.until {
                return Found::Fresh(keys);
            }
            if self.in_background {
                return Found::Stale(keys, self.begin());
            }
        }
        match self.begin() {
            Some(fetching) => Found::Fetch(fetching),
            None => Found::Wait(Wait {
                remote: self,
                ended,
            }),
        }
    }

    fn begin(&self) -> Option<Fetching<'_>> {
        let begun = self.fetching.swap(true, Ordering::AcqRel);
        (!begun).then(|| Fetching(self))
    }
}

impl Fetching<'_> {
    /// Keys are here.
    pub fn succeeded(self, keys: Jwks) -> Arc<Jwks> {
        let keys = Arc::new(keys);
        self.0.fetched.store(Some(Arc::new(Fetched {
            keys: keys.clone(),
            until: Instant::now() + self.0.keep,
        })));
        keys
    }

    /// They are not; old ones, if there are any, serve a little longer.
    pub fn failed(self) {
        if self.0.in_background
            && let Some(old) = &*self.0.fetched.load()
        {
            self.0.fetched.store(Some(Arc::new(Fetched {
                keys: old.keys.clone(),
                until: Instant::now() + self.0.again_after,
            })));
        }
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.fetching.store(false, Ordering::Release);
        self.0.ended.fetch_add(1, Ordering::Release);
        self.0.waiting.notify_waiters();
    }
}

impl Wait<'_> {
    /// Ends with the fetch, and says what it brought.
    pub async fn ended(self) -> Option<Arc<Jwks>> {
        loop {
            let notified = self.remote.waiting.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if self.remote.ended.load(Ordering::Acquire) != self.ended {
                break;
            }
            notified.await;
        }
        let fetched = self.remote.fetched.load();
        let fetched = fetched.as_ref()?;
        (Instant::now() < fetched.until).then(|| fetched.keys.clone())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn remote(keep: Duration, in_background: bool) -> RemoteJwks {
        let uri = HttpUri {
            cluster: "c".into(),
            scheme: "http",
            authority: HeaderValue::from_static("h"),
            path: "/".into(),
            timeout: None,
        };
        RemoteJwks::new(uri, keep, in_background, Duration::from_secs(1))
    }

    fn keys() -> Jwks {
        Jwks::parse(br#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#).expect("keys")
    }

    #[tokio::test]
    async fn one_fetches_and_the_others_wait() {
        let remote = remote(Duration::from_secs(60), false);
        let Found::Fetch(first) = remote.find() else {
            panic!("nothing is there");
        };
        let Found::Wait(wait) = remote.find() else {
            panic!("one is enough");
        };
        let (waited, ()) = tokio::join!(wait.ended(), async {
            first.succeeded(keys());
        });
        assert!(waited.is_some());
        assert!(matches!(remote.find(), Found::Fresh(_)));
    }

    #[tokio::test]
    async fn who_gives_up_lets_the_next_one_fetch() {
        let remote = remote(Duration::from_secs(60), false);
        let Found::Fetch(first) = remote.find() else {
            panic!("nothing is there");
        };
        let Found::Wait(wait) = remote.find() else {
            panic!("one is enough");
        };
        drop(first);
        assert!(wait.ended().await.is_none());
        assert!(matches!(remote.find(), Found::Fetch(_)));
    }

    #[test]
    fn old_keys_serve_while_new_ones_are_fetched() {
        let remote = remote(Duration::ZERO, true);
        let Found::Fetch(first) = remote.find() else {
            panic!("nothing is there");
        };
        first.succeeded(keys());
        let Found::Stale(_, Some(second)) = remote.find() else {
            panic!("they are old at once");
        };
        assert!(matches!(remote.find(), Found::Stale(_, None)));
        second.failed();
        assert!(matches!(remote.find(), Found::Fresh(_)));
    }
}
