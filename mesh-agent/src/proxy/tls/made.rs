//! Which configurations were made.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};

use crate::config::model::tls::{CommonTls, DownstreamTls, UpstreamTls};
use crate::identity::{Credentials, SpiffeId};

use super::Offer;
use super::config::{self, Made};
use super::material::{Inline, Parts, Secrets, TlsError, ViewSecrets};
use super::peer::Verifier;

/// A context of either side.
pub(super) trait Context: Sized {
    /// rustls' configuration.
    type Config;
    /// What differs between connections of a context.
    type Variant: Clone + Eq + Hash;

    fn common(&self) -> &CommonTls;

    fn make(
        &self,
        parts: Parts,
        variant: &Self::Variant,
        id: &SpiffeId,
    ) -> Result<Made<Self::Config>, TlsError>;

    fn of(known: &mut Known) -> &mut Entries<Self>;
}

impl Context for UpstreamTls {
    type Config = ClientConfig;
    /// What is offered instead of the context's protocols.
    type Variant = Option<Offer>;

    fn common(&self) -> &CommonTls {
        &self.common
    }

    fn make(
        &self,
        parts: Parts,
        offer: &Option<Offer>,
        _id: &SpiffeId,
    ) -> Result<Made<ClientConfig>, TlsError> {
        config::client(self, parts, offer.as_ref())
    }

    fn of(known: &mut Known) -> &mut Entries<Self> {
        &mut known.clients
    }
}

impl Context for DownstreamTls {
    type Config = ServerConfig;
    /// With protocols to choose from, or without.
    type Variant = bool;

    fn common(&self) -> &CommonTls {
        &self.common
    }

    fn make(
        &self,
        parts: Parts,
        with_alpn: &bool,
        id: &SpiffeId,
    ) -> Result<Made<ServerConfig>, TlsError> {
        config::server(self, parts, id, *with_alpn)
    }

    fn of(known: &mut Known) -> &mut Entries<Self> {
        &mut known.servers
    }
}

/// The context by address, the identity, and the variant.
type Key<C> = (usize, SpiffeId, <C as Context>::Variant);
type Entries<C> = HashMap<Key<C>, Entry<C>>;

#[derive(Debug)]
pub(super) struct Entry<C: Context> {
    /// Keeps the address from standing for another context, and tells when it is gone.
    context: Weak<C>,
    secrets: Secrets,
    made: Made<C::Config>,
}

impl<C: Context> Clone for Entry<C> {
    fn clone(&self) -> Self {
        Self {
            context: self.context.clone(),
            secrets: self.secrets.clone(),
            made: self.made.clone(),
        }
    }
}

/// What was made of the credentials of a generation.
#[derive(Debug, Default)]
pub(super) struct Known {
    generation: u64,
    clients: Entries<UpstreamTls>,
    servers: Entries<DownstreamTls>,
}

impl Known {
    /// Forgets everything when certificates or roots changed: sessions of the old ones are not
    /// resumed, either.
    fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
    }

    fn find<C: Context>(&mut self, key: &Key<C>, secrets: &Secrets) -> Option<Entry<C>> {
        let entry = C::of(self).get(key)?;
        entry.secrets.are(secrets).then(|| entry.clone())
    }

    fn put<C: Context>(&mut self, key: Key<C>, entry: Entry<C>) {
        let entries = C::of(self);
        if entries.len() == entries.capacity() {
            entries.retain(|_, entry| entry.context.strong_count() > 0);
        }
        entries.insert(key, entry);
    }
}

/// The configurations of all workers: sessions begun with one are resumed with another.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Store {
    known: Mutex<Known>,
    inline: Inline,
}

/// What a worker has got from the store.
#[derive(Debug)]
pub(super) struct Cache {
    store: Arc<Store>,
    known: RefCell<Known>,
    verifiers: RefCell<Verifiers>,
}

/// Who judges without a handshake, by the address of the context, which is kept so that no other
/// one comes to be there.
#[derive(Debug, Default)]
struct Verifiers {
    generation: u64,
    of: HashMap<usize, (Arc<dyn Any + Send + Sync>, Arc<Verifier>)>,
}

/// Most of them; with one more they are made anew.
const VERIFIERS: usize = 256;

impl Cache {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            known: RefCell::default(),
            verifiers: RefCell::default(),
        }
    }

    /// Who judges peers by a context without secrets that shows the workload's certificate: the
    /// same one as long as neither certificates nor roots change.
    pub(super) fn verifier<C: Context + Send + Sync + 'static>(
        &self,
        tls: &Arc<C>,
        id: &SpiffeId,
        credentials: &Credentials,
    ) -> Result<Arc<Verifier>, TlsError> {
        if !credentials.identities.contains_key(id) {
            return Err(TlsError::NoIdentity(id.clone()));
        }
        let mut known = self.verifiers.borrow_mut();
        if known.generation != credentials.generation || known.of.len() >= VERIFIERS {
            *known = Verifiers {
                generation: credentials.generation,
                of: HashMap::new(),
            };
        }
        let key = Arc::as_ptr(tls).addr();
        if let Some((_, verifier)) = known.of.get(&key) {
            return Ok(verifier.clone());
        }
        let inline = &self.store.inline;
        let parts = inline.parts(tls.common(), &Secrets::default(), credentials, id)?;
        let verifier = Arc::new(parts.verifier(config::provider(tls.common()), true));
        known.of.insert(key, (tls.clone(), verifier.clone()));
        Ok(verifier)
    }

    /// The configuration of a context for an identity, made if it must be.
    pub(super) fn get<C: Context>(
        &self,
        tls: &Arc<C>,
        variant: C::Variant,
        id: &SpiffeId,
        view: Option<&ViewSecrets>,
        credentials: &Credentials,
    ) -> Result<Made<C::Config>, TlsError> {
        static NONE: ViewSecrets = BTreeMap::new();
        let secrets = Secrets::of(tls.common(), view.unwrap_or(&NONE), credentials);
        let key = (Arc::as_ptr(tls).addr(), id.clone(), variant);
        let known = &mut *self.known.borrow_mut();
        known.renew(credentials.generation);
        if let Some(entry) = known.find::<C>(&key, &secrets) {
            return Ok(entry.made);
        }
        let mut shared = self.store.known.lock();
        // A worker that is behind makes its own: it will not be asked for again.
        let newest = credentials.generation >= shared.generation;
        if newest {
            shared.renew(credentials.generation);
            if let Some(entry) = shared.find::<C>(&key, &secrets) {
                known.put(key, entry.clone());
                return Ok(entry.made);
            }
        }
        let parts = self
            .store
            .inline
            .parts(tls.common(), &secrets, credentials, id)?;
        let entry = Entry {
            context: Arc::downgrade(tls),
            made: tls.make(parts, &key.2, id)?,
            secrets,
        };
        if newest {
            shared.put(key.clone(), entry.clone());
        }
        known.put(key, entry.clone());
        Ok(entry.made)
    }
}
