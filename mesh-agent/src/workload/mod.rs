//! Which pods of this node are enrolled: their namespaces, addresses and listeners.

pub mod listeners;
pub mod netns;
pub mod pod;
mod status;

pub use netns::Netns;
pub use pod::{Pod, PodId};
pub use status::{WorkloadState, WorkloadStatus};
