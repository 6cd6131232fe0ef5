//! The node agent of a sidecar-less service mesh.
//!
//! Data flows one way: source -> store -> config model -> snapshot -> BPF maps and proxy workers.
//! Telemetry flows back the other way. `ARCHITECTURE.md` has the picture.

pub mod admin;
pub mod agent;
pub mod balance;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod identity;
pub mod proxy;
pub mod pulse;
pub mod sched;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod workload;
