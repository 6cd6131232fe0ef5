//! Keeps a valid certificate for every identity of the node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::authority::{Authority, AuthorityError, Signed};
use super::{
    Credentials, Identity, PemError, SharedCredentials, SpiffeId, certificates, certified_key,
};

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
    /// Begins. Certificates are asked to last for `validity`.
    pub fn start(authority: Authority, validity: Duration) -> Self {
        let credentials = SharedCredentials::default();
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
}

impl Worker {
    async fn run(mut self, mut wishes: watch::Receiver<BTreeSet<SpiffeId>>) {
        loop {
            let wanted = wishes.borrow_and_update().clone();
            self.forget(&wanted);
            let now = SystemTime::now();
            let due: Vec<SpiffeId> = wanted
                .iter()
                .filter(|id| self.due(id).is_none_or(|due| due <= now))
                .cloned()
                .collect();
            for id in &due {
                self.renew(id).await;
            }
            let next = wanted.iter().filter_map(|id| self.due(id)).min();
            let sleep = next.map_or(LONGEST_WAIT, |next| {
                next.duration_since(SystemTime::now()).unwrap_or_default()
            });
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                changed = wishes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn due(&self, id: &SpiffeId) -> Option<SystemTime> {
        self.states.borrow().get(id)?.next
    }

    /// Identities that no pod has any more lose their keys.
    fn forget(&mut self, wanted: &BTreeSet<SpiffeId>) {
        self.waits.retain(|id, _| wanted.contains(id));
        self.states
            .send_modify(|states| states.retain(|id, _| wanted.contains(id)));
        let current = self.credentials.load_full();
        if current.identities.keys().any(|id| !wanted.contains(id)) {
            let mut identities = current.identities.clone();
            identities.retain(|id, _| wanted.contains(id));
            self.publish(identities, current.roots.clone());
        }
    }

    fn publish(
        &self,
        identities: HashMap<SpiffeId, Arc<Identity>>,
        roots: Option<Arc<RootCertStore>>,
    ) {
        let generation = self.credentials.load().generation + 1;
        self.credentials.store(Arc::new(Credentials {
            generation,
            identities,
            roots,
        }));
    }

    async fn renew(&mut self, id: &SpiffeId) {
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
                let until = known.map(|known| known.not_after);
                tracing::error!(%id, %error, valid_until = ?until, "no certificate; trying again");
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
        let life = identity.not_after.duration_since(now).unwrap_or_default();
        let next = now + life.mul_f64(0.45 + fastrand::f64() / 10.0);
        let current = self.credentials.load_full();
        let mut roots = current.roots.clone();
        if !signed.roots.is_empty() && signed.roots != self.roots {
            let mut store = RootCertStore::empty();
            for root in certificates(signed.roots.as_bytes())? {
                store
                    .add(root)
                    .map_err(|error| PemError::Certificate(error.to_string()))?;
            }
            roots = Some(Arc::new(store));
            self.roots.clone_from(&signed.roots);
        }
        let mut identities = current.identities.clone();
        tracing::info!(%id, serial = %identity.serial, not_after = ?identity.not_after, "certificate received");
        identities.insert(id.clone(), Arc::new(identity));
        self.publish(identities, roots);
        Ok(next)
    }
}

fn identity(id: &SpiffeId, signed: &Signed) -> Result<Identity, PemError> {
    let key = certified_key(signed.chain.as_bytes(), signed.key.as_bytes())?;
    let malformed = |reason: String| PemError::Certificate(reason);
    let leaf = &key.cert[0];
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| malformed(error.to_string()))?;
    let time = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let validity = parsed.validity();
    let identity = Identity {
        id: id.clone(),
        not_before: time(validity.not_before),
        not_after: time(validity.not_after),
        issuer: parsed.issuer().to_string(),
        serial: parsed.raw_serial_as_string(),
        key: key.clone(),
    };
    // An authority that gives another identity than asked for gives none.
    let certificate =
        webpki::EndEntityCert::try_from(leaf).map_err(|error| malformed(error.to_string()))?;
    if !certificate
        .valid_uri_names()
        .any(|name| name == id.as_str())
    {
        return Err(malformed(format!("it is not of {id}")));
    }
    Ok(identity)
}
