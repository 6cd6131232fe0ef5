//! What outlives the agent: maps and links pinned in a bpf file system, so that pods keep what
//! the kernel does for them when the agent is killed, and the next agent takes both over.
//!
//! ```text
//! BPFFS/mesh-vN/maps/NAME                 N: the layout's version
//! BPFFS/mesh-vN/links/CGROUP/PROGRAM      CGROUP: the directory's inode
//! BPFFS/mesh-vN/links/pods/COOKIE         one a pod's network namespace
//! ```
//!
//! Of another layout the maps cannot be used, but the links can: its programs go on with its maps
//! until ours are filled, then each link is made to run our program, and the rest is removed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::links::FdLink;
use mesh_common::{
    Acceleration, Addr, AuthzKey, Backend, CidrKey, Conns, ConnsKey, Control, DeniedKey, Ends,
    FastKey, Flow, Hello, InboundPod, LAYOUT_VERSION, ListenKey, OrigKey, OriginalDst, Pair, Pod,
    PortKey, Service, ServiceKey, ServiceState, SkState, Slot, SlotKey,
};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::DatapathError;
use super::link::{link_update, open_pin};

/// Maps that are pinned, with the sizes of their keys and values.
const MAPS: [(&str, usize, usize); 24] = [
    ("PODS", size_of::<u64>(), size_of::<Pod>()),
    ("IN_PODS", size_of::<Addr>(), size_of::<InboundPod>()),
    ("LISTEN", size_of::<ListenKey>(), size_of::<u32>()),
    // The prefix's length comes before the key.
    ("CIDRS", 4 + size_of::<CidrKey>(), size_of::<u32>()),
    ("AUTHZ", 4 + size_of::<AuthzKey>(), size_of::<u32>()),
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
    ("ACCEL", size_of::<u32>(), size_of::<Acceleration>()),
    ("NEAR", size_of::<Addr>(), size_of::<u32>()),
    ("PEERS", size_of::<Ends>(), size_of::<Hello>()),
    ("FAST", size_of::<FastKey>(), size_of::<u32>()),
    ("FLOW", size_of::<u32>(), size_of::<Flow>()),
    ("PAIRS", size_of::<u64>(), size_of::<Pair>()),
    ("HABITS", size_of::<u32>(), size_of::<u32>()),
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
    /// Other layouts, whose links are taken over one by one.
    outdated: Vec<Outdated>,
    /// Held while the agent runs; the kernel lets go of it however the agent ends.
    _lock: Flock<File>,
}

/// Pins of another layout.
#[derive(Debug)]
struct Outdated {
    root: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the directories, or finds those of an agent that is gone. What belongs to another
    /// cgroup is removed, and with that detached.
    ///
    /// # Errors
    /// See [`PinError`].
    pub(super) fn open(bpffs: &Path, cgroup: u64) -> Result<Self, PinError> {
        check_bpffs(bpffs)?;
        let root = bpffs.join(format!("mesh-v{LAYOUT_VERSION}"));
        fs::create_dir_all(&root).map_err(io_error("create", &root))?;
        let mut pins = Self {
            _lock: lock(&root)?,
            root,
            cgroup,
            outdated: Vec::new(),
        };
        pins.set_aside()?;
        for root in roots(bpffs).into_iter().filter(|root| *root != pins.root) {
            tracing::info!(path = %root.display(), "another version was here: its programs go on until ours are ready");
            let _lock = lock(&root)?;
            pins.outdated.push(Outdated { root, _lock });
        }
        pins.remove_foreign()?;
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
        self.replace_or_attach(&self.links().join(name), program, attach)
    }

    /// As [`Self::link`], for a pod's network namespace.
    pub(super) fn pod_link(
        &self,
        cookie: u64,
        program: BorrowedFd<'_>,
        attach: impl FnOnce() -> Result<FdLink, DatapathError>,
    ) -> Result<(), DatapathError> {
        self.replace_or_attach(&self.pod(cookie), program, attach)
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

    /// Whether programs of another layout run until [`Self::drop_outdated`].
    pub(super) fn has_outdated(&self) -> bool {
        !self.outdated.is_empty()
    }

    /// Removes what is left of other layouts.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub(super) fn drop_outdated(&mut self) -> Result<(), PinError> {
        for Outdated { root, .. } in self.outdated.drain(..) {
            fs::remove_dir_all(&root).map_err(io_error("remove", &root))?;
        }
        Ok(())
    }

    /// Maps whose sizes are not ours although they say so belong to another layout.
    fn set_aside(&mut self) -> Result<(), PinError> {
        let wrong = MAPS
            .into_iter()
            .find(|(name, key, value)| !fits(&self.maps().join(name), *key, *value));
        let Some((name, ..)) = wrong else {
            return Ok(());
        };
        let mut aside = self.root.clone().into_os_string();
        // Names in a bpf file system have no dots.
        aside.push("-foreign");
        let aside = PathBuf::from(aside);
        tracing::warn!(map = name, path = %self.root.display(), "a pinned map has another layout than it claims; all are made anew");
        if aside.exists() {
            fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))?;
        }
        fs::rename(&self.root, &aside).map_err(io_error("rename", &self.root))?;
        fs::create_dir(&self.root).map_err(io_error("create", &self.root))?;
        // The lock went along with the directory, and is let go of with this one.
        self._lock = lock(&self.root)?;
        Ok(())
    }

    /// Links to other cgroups.
    fn remove_foreign(&self) -> Result<(), PinError> {
        let own = self.links();
        for path in entries(&self.root.join("links")) {
            if path != own && path != self.pods() {
                tracing::warn!(path = %path.display(), "links to another cgroup are removed");
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    fn replace_or_attach(
        &self,
        path: &Path,
        program: BorrowedFd<'_>,
        attach: impl FnOnce() -> Result<FdLink, DatapathError>,
    ) -> Result<(), DatapathError> {
        let place = path.strip_prefix(&self.root).unwrap_or(path);
        let outdated = self
            .outdated
            .iter()
            .map(|outdated| outdated.root.join(place));
        for pin in std::iter::once(path.to_owned()).chain(outdated) {
            let Ok(link) = open_pin(&pin) else { continue };
            match link_update(link.as_fd(), program) {
                Ok(()) if pin == path => return Ok(()),
                Ok(()) => {
                    fs::rename(&pin, path).map_err(io_error("rename", &pin))?;
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(path = %pin.display(), %error, "a pinned link is dead; attaching anew");
                    forget(&pin);
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

/// Removes what agents that are gone have left in a bpf file system, of every layout.
///
/// # Errors
/// An agent is running, this is no bpf file system, or a pin cannot be removed.
pub fn uninstall(bpffs: &Path) -> Result<Vec<PathBuf>, PinError> {
    check_bpffs(bpffs)?;
    let roots = roots(bpffs);
    for root in &roots {
        let _lock = lock(root)?;
        fs::remove_dir_all(root).map_err(io_error("remove", root))?;
    }
    Ok(roots)
}

fn check_bpffs(path: &Path) -> Result<(), PinError> {
    let is_bpffs =
        |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    let exists = path.ancestors().find(|path| path.exists());
    if exists.is_some_and(is_bpffs) {
        Ok(())
    } else {
        Err(PinError::NotBpffs(path.to_owned()))
    }
}

/// Keeps other agents out; an agent that is there keeps us out.
fn lock(root: &Path) -> Result<Flock<File>, PinError> {
    let directory = File::open(root).map_err(io_error("open", root))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock)
        .map_err(|_| PinError::InUse(root.to_owned()))
}

/// Directories of agents, of every layout.
fn roots(bpffs: &Path) -> Vec<PathBuf> {
    let mut roots = entries(bpffs);
    roots.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("mesh-v"))
    });
    roots
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
