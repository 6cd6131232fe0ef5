//! Constants the loader sets before the verifier sees the programs, so that branches for what
//! this kernel lacks are dead code to it.

use core::ptr::read_volatile;

/// `bpf_set_retval` may be called in cgroup hooks (kernel >= 5.18).
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: u8 = 1;

/// `bpf_sk_lookup.ingress_ifindex` can be read (kernel >= 5.17).
#[unsafe(no_mangle)]
static HAS_INGRESS_IFINDEX: u8 = 1;

/// `bpf_skc_to_mptcp_sock` may be called (kernel >= 5.19 with CONFIG_MPTCP).
#[unsafe(no_mangle)]
static HAS_MPTCP: u8 = 1;

#[inline(always)]
pub(crate) fn has_mptcp() -> bool {
    // SAFETY: a plain static; volatile, because the loader changes it behind the compiler's back.
    unsafe { read_volatile(&raw const HAS_MPTCP) != 0 }
}

#[inline(always)]
pub(crate) fn has_set_retval() -> bool {
    // SAFETY: a plain static; volatile, because the loader changes it behind the compiler's back.
    unsafe { read_volatile(&raw const HAS_SET_RETVAL) != 0 }
}

#[inline(always)]
pub(crate) fn has_ingress_ifindex() -> bool {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const HAS_INGRESS_IFINDEX) != 0 }
}

/// Where `struct sock` has `sk_user_data`, in bytes; 0 is unknown.
#[unsafe(no_mangle)]
static SK_USER_DATA: u32 = 0;

/// Where `struct sk_psock` has `ingress_msg`, in bytes.
#[unsafe(no_mangle)]
static PSOCK_INGRESS: u32 = 0;

/// Offsets of `sk_user_data` and `ingress_msg`, if the agent found them in the kernel's BTF.
#[inline(always)]
pub(crate) fn ingress_offsets() -> Option<(usize, usize)> {
    // SAFETY: as above.
    let (user_data, ingress) = unsafe {
        (
            read_volatile(&raw const SK_USER_DATA) as usize,
            read_volatile(&raw const PSOCK_INGRESS) as usize,
        )
    };
    (user_data != 0).then_some((user_data, ingress))
}
