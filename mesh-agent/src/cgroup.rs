//! The cgroup v2 hierarchy of this machine, wherever it is mounted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is none.
    #[error("cgroup v2 is not mounted; type: mount -t cgroup2 none /sys/fs/cgroup")]
    NotMounted,
    /// The directory is not there.
    #[error(
        "the cgroup v2 directory {path} cannot be opened: {reason}; --cgroup names the directory \
         above all pods, for example {mount}/kubepods.slice"
    )]
    Missing {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
        /// Where cgroup v2 is mounted.
        mount: PathBuf,
    },
    /// The directory belongs to something else, for example to cgroup v1.
    #[error(
        "{path} is not a cgroup v2 directory; on this machine cgroup v2 is mounted on {mount}: \
         --cgroup names a directory at or below it"
    )]
    NotV2 {
        /// The directory.
        path: PathBuf,
        /// Where cgroup v2 is mounted.
        mount: PathBuf,
    },
    /// The agent is told from the pods by its own cgroup.
    #[error(
        "the agent runs in {path} itself, the cgroup that --cgroup names: its own connections \
         would be caught like those of pods; start it in a cgroup of its own, for example by \
         `systemd-run --scope` or as a Kubernetes pod"
    )]
    Own {
        /// The directory.
        path: PathBuf,
    },
    /// /proc does not say what is needed.
    #[error("cannot read {path}: {reason}")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why.
        reason: io::Error,
    },
}

/// Where cgroup v2 is mounted: on /sys/fs/cgroup, or beside cgroup v1 on a hybrid machine.
///
/// # Errors
/// It is not mounted.
pub fn mount() -> Result<PathBuf, CgroupError> {
    let mounts = read("/proc/self/mountinfo")?;
    find(&mounts)
        .map(PathBuf::from)
        .ok_or(CgroupError::NotMounted)
}

fn find(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        (fs.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4))?
    })
}

fn read(path: &'static str) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|reason| CgroupError::Proc { path, reason })
}

/// The directory to attach programs to, checked: the one asked for, or else the whole hierarchy.
/// Returns it with the kernel's number of the agent's own cgroup.
///
/// # Errors
/// See [`CgroupError`].
pub fn choose(asked: Option<&Path>) -> Result<(PathBuf, u64), CgroupError> {
    let mount = mount()?;
    let path = asked.map_or_else(|| mount.clone(), Path::to_owned);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(reason) => {
            return Err(CgroupError::Missing {
                path,
                reason,
                mount,
            });
        }
    };
    if !statfs(&path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Err(CgroupError::NotV2 { path, mount });
    }
    let own = own(&mount)?;
    if own == metadata.ino() {
        return Err(CgroupError::Own { path });
    }
    Ok((path, own))
}

/// The kernel's number of this process's cgroup: the inode of its directory.
fn own(mount: &Path) -> Result<u64, CgroupError> {
    let groups = read("/proc/self/cgroup")?;
    let group = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or(CgroupError::NotMounted)?;
    let path = mount.join(group.trim_start_matches('/'));
    match fs::metadata(&path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(reason) => Err(CgroupError::Missing {
            path,
            reason,
            mount: mount.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_mount_is_found_on_pure_and_hybrid_machines() {
        let hybrid = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      30 25 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(hybrid), Some("/sys/fs/cgroup/unified"));
        let pure = "30 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(pure), Some("/sys/fs/cgroup"));
        assert_eq!(
            find("25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"),
            None
        );
    }
}
