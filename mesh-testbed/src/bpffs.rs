//! The BPF file system, in which programs and maps are pinned.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

const ROOT: &str = "/sys/fs/bpf";

/// Where it is mounted; mounts it if it is not.
pub(crate) fn root() -> Result<&'static Path> {
    let root = Path::new(ROOT);
    let mounted = statfs(root).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    if !mounted {
        mount(
            Some("bpf"),
            root,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount bpffs on {ROOT}"))?;
    }
    Ok(root)
}

/// Directories of testbeds.
pub(crate) fn directories() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(ROOT) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Removes a directory and every pin in it; what nothing else holds is detached and freed.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
