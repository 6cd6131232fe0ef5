//! cgroup/sock_release.
//!
//! When: the last close(2) of a socket below the cgroup, before TCP says goodbye. A connected
//! socket lives on in the kernel until TCP is done, and sockops gives its reservation back then;
//! one that never connected ends here.
//! Returns: ignored; 1 by convention.

use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use mesh_common::sk_flags;

use crate::{reserve, sk_state};

const DONE: i32 = 1;
const TCP_CLOSE: u32 = 7;

#[cgroup_sock(sock_release)]
pub fn mesh_sock_release(ctx: SockContext) -> i32 {
    if let Some(state) = sk_state::get(ctx.sock) {
        // SAFETY: the hook's own socket.
        let tcp_state = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock).state) };
        if tcp_state == TCP_CLOSE {
            reserve::release(state);
        } else {
            state.flags |= sk_flags::LEFT;
        }
    }
    DONE
}
