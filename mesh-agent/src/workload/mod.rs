//! Which pods of this node are enrolled: their namespaces, addresses and listeners.

pub mod netns;
pub mod pod;

pub use netns::Netns;
pub use pod::{Pod, PodId};
