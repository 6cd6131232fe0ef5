//! Where configuration comes from, and the names in it.

pub mod dns;
pub mod file;
pub mod xds;
