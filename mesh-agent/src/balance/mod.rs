//! Load balancing as arithmetic: no sockets, no clocks, no configuration types.
//!
//! The snapshot builds its balancers from these parts, and what it builds is walked by the proxy
//! (per request or connection) and expanded into the kernel's slots. Envoy is the reference for
//! every rule; the function it follows is named where it is not obvious.

pub mod edf;
pub mod hash;
pub mod load_report;
pub mod locality;
pub mod maglev;
pub mod outlier;
pub mod priority;
pub mod ring;
pub mod rotation;
pub mod subset;

#[cfg(test)]
mod consistent_tests;
