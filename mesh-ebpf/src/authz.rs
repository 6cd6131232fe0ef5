//! Access rules of a pod, as far as addresses and ports decide them.

use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::{Addr, AuthzKey, AuthzVerdict};

use crate::maps::AUTHZ;

/// Whether the rules surely deny a connection. The agent asks all rules about the others.
#[inline(always)]
pub(crate) fn denied(pod_id: u32, from: &Addr, port: u16) -> bool {
    let mut key = Key::new(
        AuthzKey::BITS,
        AuthzKey {
            pod_id,
            port: u32::from(port),
            addr: *from,
        },
    );
    if let Some(verdict) = AUTHZ.get(&key) {
        return *verdict == AuthzVerdict::DENY;
    }
    key.data.port = 0;
    matches!(AUTHZ.get(&key), Some(verdict) if *verdict == AuthzVerdict::DENY)
}
