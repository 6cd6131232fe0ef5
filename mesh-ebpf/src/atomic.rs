//! Atomic addition on map values, which several CPUs change at once.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Adds.
///
/// # Safety
/// `counter` points to a live, aligned map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}

/// Adds and returns the value before.
///
/// Not relaxed: LLVM 22 makes a relaxed addition the instruction that returns nothing, even when
/// the result is used, which then is the addend.
///
/// # Safety
/// As [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(counter, value) }
}
