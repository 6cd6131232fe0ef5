//! xDS messages into our own validated model.
//!
//! Everything here is pure: no I/O, no clocks, no globals. A resource either becomes a value of
//! [`model`] that cannot be wrong, or an error that names the field, the reason and the remedy.

pub mod model;
