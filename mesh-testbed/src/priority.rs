//! Work that stands for another machine's, on this one.

use std::io;

use anyhow::{Context as _, Result};

/// Does something only when nothing else on this machine wants the core (`SCHED_IDLE`).
///
/// # Errors
/// The kernel refuses it; then it is not done.
pub fn idle<T>(work: impl FnOnce() -> T) -> Result<T> {
    set(libc::SCHED_IDLE).context("cannot lower the priority")?;
    let result = work();
    set(libc::SCHED_OTHER).context("cannot restore the priority")?;
    Ok(result)
}

fn set(policy: libc::c_int) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call, and the kernel only reads it. 0 is this thread.
    match unsafe { libc::sched_setscheduler(0, policy, &param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
