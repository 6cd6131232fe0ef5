//! cgroup v2 directories.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Where cgroup v2 is mounted. Hybrid machines have it at /sys/fs/cgroup/unified.
pub(crate) fn mount() -> Result<PathBuf> {
    let mounts =
        std::fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    parse_mount(&mounts).context(
        "no cgroup v2 is mounted; type: mkdir -p /sys/fs/cgroup/unified && \
         mount -t cgroup2 none /sys/fs/cgroup/unified",
    )
}

fn parse_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then_some(())?;
        before.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Makes a directory.
pub(crate) fn create(path: &Path) -> Result<()> {
    std::fs::create_dir(path).with_context(|| format!("cannot create cgroup {}", path.display()))
}

/// What a child does between fork and exec to enter a cgroup, given its `cgroup.procs`. The
/// closure makes system calls only; the file is opened here.
pub(crate) fn enter(
    procs: &Path,
) -> Result<impl FnMut() -> std::io::Result<()> + Send + Sync + 'static> {
    let file = File::options()
        .write(true)
        .open(procs)
        .with_context(|| format!("cannot open {}", procs.display()))?;
    Ok(move || {
        // SAFETY: writes one byte of a static string to an open descriptor.
        if unsafe { libc::write(file.as_raw_fd(), c"0".as_ptr().cast(), 1) } == 1 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    })
}

/// Kills every process in a cgroup and below, and removes it. It may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Kernel >= 5.14, which the agent needs anyway.
    std::fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("cannot kill the processes of {}", path.display()))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while populated(path) {
        if Instant::now() > deadline {
            bail!("processes of {} outlive SIGKILL", path.display());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    remove_tree(path).with_context(|| format!("cannot remove cgroup {}", path.display()))
}

fn populated(path: &Path) -> bool {
    std::fs::read_to_string(path.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// The files of a cgroup go with it and cannot be removed, so `remove_dir_all` is of no use.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_pure_and_hybrid_machines() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let pure = "26 23 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mount(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(parse_mount("31 23 0:28 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
