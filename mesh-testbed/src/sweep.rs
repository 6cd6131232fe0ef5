//! Removes what testbeds left whose process is gone: killed, or the power failed.

use std::path::Path;

use crate::id::Id;
use crate::{bpffs, cgroup, ip, netns};

/// Removes everything made by testbeds for which `which` is true. As much as can be: what fails
/// is said and left.
pub(crate) fn sweep(cgroups: &Path, which: impl Fn(&Id) -> bool) {
    let ours = |name: &str| Id::of(name).is_some_and(|id| which(&id));
    // Processes first: a namespace lives as long as one is in it.
    for path in directories(cgroups) {
        if ours(&file_name(&path)) {
            report(cgroup::remove(&path));
        }
    }
    for path in bpffs::directories() {
        if ours(&file_name(&path)) {
            report(bpffs::remove(&path));
        }
    }
    for name in netns::names() {
        if ours(&name) {
            report(netns::remove(&name));
        }
    }
    for path in directories(Path::new("/sys/class/net")) {
        let name = file_name(&path);
        if ours(&name) {
            let deleted = ip::batch(None, &format!("link del {name}\n"));
            // Another sweep of this process may have been faster.
            if path.exists() {
                report(deleted);
            }
        }
    }
}

fn directories(path: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    // Interfaces are symbolic links to directories.
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn report(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("testbed: {error:#}");
    }
}
