//! Which pods of this node are enrolled: their namespaces, addresses and listeners.

pub mod listeners;
mod manager;
pub mod netns;
pub mod pod;
mod status;
mod watch;

pub use manager::{Manager, Phase};
pub use netns::Netns;
pub use pod::{Pod, PodId};
pub use status::{WorkloadState, WorkloadStatus};
