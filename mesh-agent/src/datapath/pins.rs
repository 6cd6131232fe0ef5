//! What outlives the agent: maps and links pinned in a bpf file system, so that pods keep what
//! the kernel does for them when the agent is killed, and the next agent takes both over.
//!
//! ```text
//! BPFFS/mesh-v1/maps/NAME
//! BPFFS/mesh-v1/links/CGROUP/PROGRAM      CGROUP: the directory's inode
//! BPFFS/mesh-v1/links/pods/COOKIE         one a pod's network namespace
//! ```

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::links::FdLink;
use mesh_common::{
    Addr, Backend, CidrKey, Conns, ConnsKey, Control, DeniedKey, InboundPod, LAYOUT_VERSION,
    ListenKey, OrigKey, OriginalDst, Pod, PortKey, Service, ServiceKey, ServiceState, SkState,
    Slot, SlotKey,
};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DatapathError;
use super::link::{link_update, open_pin};

/// Maps that are pinned, with the sizes of their keys and values.
const MAPS: [(&str, usize, usize); 16] = [
    ("PODS", size_of::<u64>(), size_of::<Pod>()),
    ("IN_PODS", size_of::<Addr>(), size_of::<InboundPod>()),
    ("LISTEN", size_of::<ListenKey>(), size_of::<u32>()),
    // The prefix's length comes before the key.
    ("CIDRS", 4 + size_of::<CidrKey>(), size_of::<u32>()),
    ("PORTS", size_of::<PortKey>(), size_of::<u32>()),
    ("SVC", size_of::<ServiceKey>(), size_of::<Service>()),
    ("SLOTS", size_of::<SlotKey>(), size_of::<Slot>()),
    ("BACK", size_of::<u32>(), size_of::<Backend>()),
    ("SVC_STATE", size_of::<u32>(), size_of::<ServiceState>()),
    ("CONNS", size_of::<ConnsKey>(), size_of::<Conns>()),
    ("SK", size_of::<u32>(), size_of::<SkState>()),
    ("ORIG", size_of::<OrigKey>(), size_of::<OriginalDst>()),
    ("CTRL", size_of::<u32>(), size_of::<Control>()),
    ("COUNTERS", size_of::<u32>(), size_of::<u64>()),
    ("DENIED", size_of::<DeniedKey>(), size_of::<u64>()),
    // A ring buffer has neither.
    ("EVENTS", 0, 0),
];

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another file system.
    #[error(
        "{0} is not in a bpf file system; type: mount -t bpf bpf /sys/fs/bpf, or name another \
         place with --bpffs"
    )]
    NotBpffs(PathBuf),
    /// The pins belong to a running agent.
    #[error("{0} is in use by another agent; stop it, or name another place with --bpffs")]
    InUse(PathBuf),
    /// A file operation failed.
    #[error("cannot {operation} {path}: {reason}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |reason| PinError::Io {
        operation,
        path,
        reason,
    }
}

/// The pins of one agent. Dropping it leaves them where they are.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    cgroup: u64,
    /// Held while the agent runs; the kernel lets go of it however the agent ends.
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the directories, or finds those of an agent that is gone. What belongs to another
    /// layout or another cgroup is removed, and with that detached.
    ///
    /// # Errors
    /// See [`PinError`].
    pub(super) fn open(bpffs: &Path, cgroup: u64) -> Result<Self, PinError> {
        let is_bpffs =
            |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
        let exists = bpffs.ancestors().find(|path| path.exists());
        if !exists.is_some_and(is_bpffs) {
            return Err(PinError::NotBpffs(bpffs.to_owned()));
        }
        let root = bpffs.join(format!("mesh-v{LAYOUT_VERSION}"));
        fs::create_dir_all(&root).map_err(io_error("create", &root))?;
        let directory = File::open(&root).map_err(io_error("open", &root))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|_| PinError::InUse(root.clone()))?;
        let pins = Self {
            root,
            cgroup,
            _lock: lock,
        };
        pins.remove_foreign(bpffs)?;
        for directory in [pins.maps(), pins.links(), pins.pods()] {
            fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
        }
        Ok(pins)
    }

    /// Where each map is pinned.
    pub(super) fn map_paths(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let maps = self.maps();
        MAPS.into_iter()
            .map(move |(name, ..)| (name, maps.join(name)))
    }

    /// Makes a pinned link run this program, in one step, or attaches it and pins the link.
    pub(super) fn link(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        attach: impl FnOnce() -> Result<FdLink, DatapathError>,
    ) -> Result<(), DatapathError> {
        replace_or_attach(&self.links().join(name), program, attach)
    }

    /// As [`Self::link`], for a pod's network namespace.
    pub(super) fn pod_link(
        &self,
        cookie: u64,
        program: BorrowedFd<'_>,
        attach: impl FnOnce() -> Result<FdLink, DatapathError>,
    ) -> Result<(), DatapathError> {
        replace_or_attach(&self.pod(cookie), program, attach)
    }

    /// Lets go of a pod's network namespace.
    pub(super) fn forget_pod(&self, cookie: u64) {
        forget(&self.pod(cookie));
    }

    /// Lets go of every namespace but these.
    pub(super) fn keep_pods(&self, cookies: &HashSet<u64>) {
        for path in entries(&self.pods()) {
            let cookie = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            if cookie.is_none_or(|cookie| !cookies.contains(&cookie)) {
                forget(&path);
            }
        }
    }

    /// Removes every pin: what nothing else holds is detached and freed.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub(super) fn remove(&self) -> Result<(), PinError> {
        fs::remove_dir_all(&self.root).map_err(io_error("remove", &self.root))
    }

    /// Other layouts' directories, and maps whose sizes are not ours although they say so.
    fn remove_foreign(&self, bpffs: &Path) -> Result<(), PinError> {
        let foreign = entries(bpffs).into_iter().filter(|path| {
            *path != self.root
                && path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("mesh-v"))
        });
        for path in foreign {
            tracing::warn!(path = %path.display(), "pins of another layout are removed: what they held starts anew");
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
        let wrong = MAPS
            .into_iter()
            .find(|(name, key, value)| !fits(&self.maps().join(name), *key, *value));
        if let Some((name, ..)) = wrong {
            tracing::warn!(map = name, path = %self.root.display(), "a pinned map has another layout than it claims; all are made anew");
            for path in entries(&self.root) {
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        let own = self.links();
        for path in entries(&self.root.join("links")) {
            if path != own && path != self.pods() {
                tracing::warn!(path = %path.display(), "links to another cgroup are removed");
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links").join(self.cgroup.to_string())
    }

    fn pods(&self) -> PathBuf {
        self.root.join("links/pods")
    }

    fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(cookie.to_string())
    }
}

fn replace_or_attach(
    path: &Path,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<FdLink, DatapathError>,
) -> Result<(), DatapathError> {
    if let Ok(link) = open_pin(path) {
        match link_update(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            Err(error) => {
                let path_shown = path.display();
                tracing::warn!(path = %path_shown, %error, "a pinned link is dead; attaching anew");
                forget(path);
            }
        }
    }
    attach()?.pin(path).map_err(|reason| PinError::Io {
        operation: "pin",
        path: path.to_owned(),
        reason: io::Error::other(reason),
    })?;
    Ok(())
}

/// Removes a pin; one that is gone already is no error.
fn forget(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a pin");
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Whether a pinned map, if there is one, has these sizes.
fn fits(path: &Path, key: usize, value: usize) -> bool {
    if !path.exists() {
        return true;
    }
    MapInfo::from_pin(path)
        .is_ok_and(|info| info.key_size() as usize == key && info.value_size() as usize == value)
}
