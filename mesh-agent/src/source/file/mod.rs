//! The file source: Envoy's own YAML or JSON, and which pods this node has.
//!
//! [`load`] reads a file or a folder of files into validated resources; [`watch`] does so again
//! whenever they change and keeps the last good configuration when they are wrong.

mod bootstrap;
mod discovery;
mod errors;
pub mod fill;
mod identity;
mod load;
mod node;
pub mod tree;
mod watch;

pub use bootstrap::{Bootstrap, server_of};
pub use errors::{ConfigErrors, FileError};
pub use load::{Loaded, load};
pub use watch::{ReloadStatus, Reloads, watch};

#[cfg(test)]
mod tests;
