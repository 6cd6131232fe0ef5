//! Who the pods are: SPIFFE identities, their certificates, and whom the mesh trusts.
//!
//! Keys are made here and live in memory only, one for each identity on the node, shared by its
//! pods. A [`Keeper`] gets certificates from an [`Authority`], renews them at half their life and
//! publishes them with the mesh's roots; the proxy reads what is published and never waits.

mod authority;
pub(crate) mod credential;
pub(crate) mod dev;
pub mod files;
mod istio;
mod keeper;
mod pem;
mod sds;
mod spiffe;
mod stats;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

use crate::config::model::Name;
use crate::config::model::secret::{Material, Secret, SecretServer};

pub use authority::{Authority, AuthorityError};
pub use dev::DevAuthority;
pub use istio::IstioAuthority;
pub use keeper::{Keeper, State};
pub use pem::{Leaf, PemError, certificates, certified_key, revocations, root_store};
pub use sds::{Delivered, DeliveredSecrets, SdsAuthority};
pub use spiffe::SpiffeId;
pub use stats::{Fault, SslStats};

/// Where certificates are published.
pub type SharedCredentials = Arc<ArcSwap<Credentials>>;

/// Every identity of the node, the mesh's roots, and what contexts find in files and at servers of
/// secrets, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Grows with every change: what was made of older ones is made anew.
    pub generation: u64,
    /// By identity.
    pub identities: HashMap<SpiffeId, Arc<Identity>>,
    /// Who may sign identities of the mesh; `None`: not known yet.
    pub roots: Option<Arc<RootCertStore>>,
    /// What files hold.
    pub files: Arc<HashMap<Material, files::Read>>,
    /// What secret discovery servers delivered, apart from the configuration's own stream.
    pub secrets: Arc<HashMap<(SecretServer, Name), Arc<Secret>>>,
}

/// Publishes a change.
pub(crate) fn update(shared: &SharedCredentials, change: impl Fn(&mut Credentials)) {
    shared.rcu(|current| {
        let mut next = Credentials::clone(current);
        next.generation += 1;
        change(&mut next);
        next
    });
}

/// A certificate of an identity, and its key.
#[derive(Debug)]
pub struct Identity {
    /// Whose.
    pub id: SpiffeId,
    /// What is shown and signed with.
    pub key: Arc<CertifiedKey>,
    /// What the certificate says.
    pub leaf: Leaf,
}
