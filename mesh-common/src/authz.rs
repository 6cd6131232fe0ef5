//! Who may connect to a pod, as far as addresses say.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// `AUTHZ`: longest prefix -> [`AuthzVerdict`]. The key's bits after `prefix_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AuthzKey {
    /// [`crate::Pod::pod_id`] of the pod that is connected to.
    pub pod_id: u32,
    /// The port dialled; 0 stands for those without entries of their own.
    pub port: u32,
    /// Who connects.
    pub addr: Addr,
}

impl AuthzKey {
    /// Bits that are always matched whole: those before the address.
    pub const FIXED_BITS: u32 = 64;
    /// All bits.
    pub const BITS: u32 = Self::FIXED_BITS + 128;
}

/// What becomes of a connection.
pub struct AuthzVerdict;

impl AuthzVerdict {
    /// The agent knows more.
    pub const ASK: u32 = 0;
    /// It is refused.
    pub const DENY: u32 = 1;
}
