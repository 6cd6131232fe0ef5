//! The kernel side: loads and attaches the programs, keeps the BPF maps equal to the snapshot.
//!
//! [`plan`] decides what the kernel should know (pure), [`reconcile`] brings the service maps
//! there by difference, [`pods`] enrols pods, [`Datapath`] owns the loaded programs.

pub mod acceleration;
mod adopt;
mod authz;
mod backends;
mod capture;
pub mod decide;
mod denied;
mod error;
mod events;
mod failure;
mod health;
mod heart;
mod link;
mod load;
mod maps;
mod object;
mod orig;
mod pins;
pub mod plan;
mod pods;
pub mod reconcile;
pub mod sink;
mod sockets;
pub mod sources;
mod status;
mod take;

pub use denied::Denied;
pub use error::DatapathError;
pub use events::Events;
pub use failure::closes_inbound;
pub use heart::Heart;
pub use load::{Datapath, MapSize, Options};
pub use pins::{PinError, uninstall};
pub use pods::Enrolment;
pub use sockets::{Observer, Sample, Sockets};
pub use status::{BackendStatus, MapUse, ServiceStatus};
