//! Named network namespaces.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

const DIRECTORY: &str = "/var/run/netns";

/// Where a named namespace is.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Names of all namespaces.
pub(crate) fn names() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Gives up a name. The namespace lives on while a process or socket uses it.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = path(name);
    // EINVAL: the name is a plain file, left by an `ip netns add` that was interrupted.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot unmount {}", path.display()));
        }
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `f` on a thread of its own inside the namespace. Sockets it makes belong to the
/// namespace, but to the cgroup of this process.
///
/// # Errors
/// The namespace cannot be entered.
///
/// # Panics
/// When `f` does.
pub fn within_netns<T: Send>(netns: &File, f: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
            Ok(f())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
