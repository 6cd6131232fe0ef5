//! Who the pods are: SPIFFE identities, their certificates, and whom the mesh trusts.
//!
//! Keys are made here and live in memory only, one for each identity on the node, shared by its
//! pods. A [`Keeper`] gets certificates from an [`Authority`], renews them at half their life and
//! publishes them with the mesh's roots; the proxy reads what is published and never waits.

mod authority;
mod dev;
mod istio;
mod keeper;
mod pem;
mod spiffe;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;

pub use authority::{Authority, AuthorityError};
pub use dev::DevAuthority;
pub use istio::IstioAuthority;
pub use keeper::{Keeper, State};
pub use pem::{PemError, certificates, certified_key};
pub use spiffe::SpiffeId;

/// Where certificates are published.
pub type SharedCredentials = Arc<ArcSwap<Credentials>>;

/// Every identity of the node and the mesh's roots, as of one moment.
#[derive(Debug, Default)]
pub struct Credentials {
    /// Grows with every change: what was made of older ones is made anew.
    pub generation: u64,
    /// By identity.
    pub identities: HashMap<SpiffeId, Arc<Identity>>,
    /// Who may sign identities of the mesh; `None`: not known yet.
    pub roots: Option<Arc<RootCertStore>>,
}

/// A certificate of an identity, and its key.
#[derive(Debug)]
pub struct Identity {
    /// Whose.
    pub id: SpiffeId,
    /// What is shown and signed with.
    pub key: Arc<CertifiedKey>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ends to be.
    pub not_after: SystemTime,
    /// Who signed it.
    pub issuer: String,
    /// Its number.
    pub serial: String,
}
