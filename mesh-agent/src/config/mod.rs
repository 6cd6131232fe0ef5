//! xDS messages into our own validated model.
//!
//! Everything here is pure: no I/O, no clocks, no globals. A resource either becomes a value of
//! [`model`] that cannot be wrong, or a list of [`Problem`]s that name the field, the reason and
//! the remedy. [`support`] refuses every field that is set and would be without effect.

pub mod check;
// The deprecated spellings are still what istiod sends and people write.
#[allow(deprecated)]
pub mod convert;
pub mod descriptors;
pub mod error;
pub mod model;
pub mod support;

pub use error::Problem;
