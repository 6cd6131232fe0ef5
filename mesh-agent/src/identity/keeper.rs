//! Keeps a valid certificate for every identity of the node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::authority::{Authority, AuthorityError, Signed};
use super::pem::{Leaf, PemError, certificates, certified_key, root_store};
use super::{Identity, SharedCredentials, SpiffeId, update};
use crate::config::model::secret::Secret;

/// The first wait after a refusal; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Asks for certificates and publishes them.
#[derive(Debug)]
pub struct Keeper {
    credentials: SharedCredentials,
    states: watch::Receiver<BTreeMap<SpiffeId, State>>,
    wanted: watch::Sender<BTreeSet<SpiffeId>>,
    source: String,
}

/// How an identity's certificate fares.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Certificates received.
    pub issued: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Why the last one did; gone with the next certificate.
    pub error: Option<String>,
    /// When the next one is asked for.
    pub next: Option<SystemTime>,
}

impl Keeper {
    /// Begins, and publishes to `credentials`. Certificates are asked to last for `validity`.
    pub fn start(authority: Authority, validity: Duration, credentials: SharedCredentials) -> Self {
        let (wanted, wishes) = watch::channel(BTreeSet::new());
        let (publish, states) = watch::channel(BTreeMap::new());
        let source = authority.describe();
        let worker = Worker {
            authority,
            validity,
            credentials: credentials.clone(),
            states: publish,
            waits: HashMap::new(),
            roots: String::new(),
            taken: HashMap::new(),
        };
        tokio::spawn(worker.run(wishes));
        Self {
            credentials,
            states,
            wanted,
            source,
        }
    }

    /// What the proxy reads.
    pub fn credentials(&self) -> &SharedCredentials {
        &self.credentials
    }

    /// Says which identities the pods of the node have.
    pub fn want(&self, identities: BTreeSet<SpiffeId>) {
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, identities) != *wanted);
    }

    /// How each identity fares.
    pub fn states(&self) -> BTreeMap<SpiffeId, State> {
        self.states.borrow().clone()
    }

    /// Where certificates come from.
    pub fn source(&self) -> &str {
        &self.source
    }
}

struct Worker {
    authority: Authority,
    validity: Duration,
    credentials: SharedCredentials,
    states: watch::Sender<BTreeMap<SpiffeId, State>>,
    waits: HashMap<SpiffeId, Duration>,
    /// The newest roots, in PEM.
    roots: String,
    /// The secrets that identities were made of, of an authority that pushes.
    taken: HashMap<SpiffeId, [Arc<Secret>; 2]>,
}

impl Worker {
    async fn run(mut self, mut wishes: watch::Receiver<BTreeSet<SpiffeId>>) {
        let mut pushed = match &self.authority {
            Authority::Sds(authority) => Some(authority.delivered.clone()),
            Authority::Dev(_) | Authority::Istio(_) => None,
        };
        loop {
            let wanted = wishes.borrow_and_update().clone();
            self.forget(&wanted);
            let now = SystemTime::now();
            let due: Vec<SpiffeId> = wanted
                .iter()
                .filter(|id| self.due(id).is_none_or(|due| due <= now) || self.is_outdated(id))
                .cloned()
                .collect();
            for id in &due {
                self.renew(id).await;
            }
            let next = wanted.iter().filter_map(|id| self.due(id)).min();
            let sleep = next.map_or(LONGEST_WAIT, |next| {
                next.duration_since(SystemTime::now()).unwrap_or_default()
            });
            let came = async {
                match &mut pushed {
                    Some(pushed) => pushed.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                alive = came => {
                    if !alive {
                        return;
                    }
                }
                changed = wishes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether an authority that pushes has pushed something newer.
    fn is_outdated(&self, id: &SpiffeId) -> bool {
        let Authority::Sds(authority) = &self.authority else {
            return false;
        };
        let Some(newest) = authority.secrets(id) else {
            return false;
        };
        let same = |taken: &[Arc<Secret>; 2]| {
            taken
                .iter()
                .zip(&newest)
                .all(|(one, other)| Arc::ptr_eq(one, other))
        };
        !self.taken.get(id).is_some_and(same)
    }

    fn due(&self, id: &SpiffeId) -> Option<SystemTime> {
        self.states.borrow().get(id)?.next
    }

    /// Identities that no pod has any more lose their keys.
    fn forget(&mut self, wanted: &BTreeSet<SpiffeId>) {
        self.waits.retain(|id, _| wanted.contains(id));
        self.taken.retain(|id, _| wanted.contains(id));
        self.states
            .send_modify(|states| states.retain(|id, _| wanted.contains(id)));
        let current = self.credentials.load();
        if current.identities.keys().any(|id| !wanted.contains(id)) {
            update(&self.credentials, |credentials| {
                credentials.identities.retain(|id, _| wanted.contains(id));
            });
        }
    }

    async fn renew(&mut self, id: &SpiffeId) {
        if let Authority::Sds(authority) = &self.authority
            && let Some(secrets) = authority.secrets(id)
        {
            self.taken.insert(id.clone(), secrets);
        }
        let signed = self.authority.certify(id, self.validity).await;
        let taken = signed.and_then(|signed| self.take(id, &signed));
        let (next, error) = match taken {
            Ok(next) => {
                self.waits.remove(id);
                (next, None)
            }
            Err(error) => {
                let wait = self.waits.entry(id.clone()).or_insert(FIRST_WAIT);
                let next = SystemTime::now() + wait.mul_f64(0.5 + fastrand::f64() / 2.0);
                *wait = (*wait * 2).min(LONGEST_WAIT);
                let known = self.credentials.load().identities.get(id).cloned();
                told(id, known.as_deref(), &error);
                (next, Some(error.to_string()))
            }
        };
        self.states.send_modify(|states| {
            let state = states.entry(id.clone()).or_default();
            if error.is_some() {
                state.failures += 1;
            } else {
                state.issued += 1;
            }
            state.error = error;
            state.next = Some(next);
        });
    }

    /// Publishes a certificate; returns when the next one is asked for: after half its life, and
    /// a little earlier or later than others.
    fn take(&mut self, id: &SpiffeId, signed: &Signed) -> Result<SystemTime, AuthorityError> {
        let identity = identity(id, signed)?;
        let now = SystemTime::now();
        let not_after = identity.leaf.not_after;
        let life = not_after.duration_since(now).unwrap_or_default();
        let next = match &self.authority {
            // It renews on its own; at the end at last something is wrong.
            Authority::Sds(_) => not_after.max(now + FIRST_WAIT),
            Authority::Dev(_) | Authority::Istio(_) => {
                now + life.mul_f64(0.45 + fastrand::f64() / 10.0)
            }
        };
        let mut roots = self.credentials.load().roots.clone();
        if !signed.roots.is_empty() && signed.roots != self.roots {
            roots = Some(Arc::new(root_store(certificates(
                signed.roots.as_bytes(),
            )?)?));
            self.roots.clone_from(&signed.roots);
            tracing::info!(source = %self.authority.describe(), "the mesh's roots changed");
        }
        let serial = &identity.leaf.serial;
        tracing::info!(%id, %serial, ?not_after, "certificate received");
        let identity = Arc::new(identity);
        update(&self.credentials, |credentials| {
            credentials.identities.insert(id.clone(), identity.clone());
            credentials.roots.clone_from(&roots);
        });
        Ok(next)
    }
}

/// Says that there is no new certificate, the louder the nearer the end of the old one.
fn told(id: &SpiffeId, known: Option<&Identity>, error: &AuthorityError) {
    let Some(known) = known else {
        tracing::error!(%id, %error, "no certificate; trying again");
        return;
    };
    let (leaf, now) = (&known.leaf, SystemTime::now());
    match leaf.not_after.duration_since(now) {
        Err(_) => {
            tracing::error!(%id, %error, "the certificate has expired and there is no new one: no connection can be made; trying again");
        }
        Ok(left) if leaf.is_near_its_end(now) => {
            tracing::error!(%id, %error, ?left, "the certificate will expire soon and there is no new one; trying again");
        }
        Ok(left) => {
            tracing::warn!(%id, %error, ?left, "no new certificate yet; trying again");
        }
    }
}

fn identity(id: &SpiffeId, signed: &Signed) -> Result<Identity, PemError> {
    let key = certified_key(signed.chain.as_bytes(), signed.key.as_bytes())?;
    let leaf = Leaf::of(&key.cert[0])?;
    // An authority that gives another identity than asked for gives none.
    if !leaf.names.iter().any(|name| name == id.as_str()) {
        let reason = format!("it is not of {id} but of {}", leaf.names.join(", "));
        return Err(PemError::Certificate(reason));
    }
    Ok(Identity {
        id: id.clone(),
        key,
        leaf,
    })
}
