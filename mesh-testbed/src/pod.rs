//! A pod: a network namespace and a cgroup.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::testbed::Node;
use crate::{cgroup, netns};

/// A pod. Dropped, it ends its processes and gives up its namespace.
#[derive(Debug)]
pub struct Pod {
    node: Arc<Node>,
    name: String,
    cgroup: PathBuf,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    /// Open once the namespace is set up.
    netns: Option<Arc<File>>,
}

impl Pod {
    pub(crate) fn new(
        node: Arc<Node>,
        name: &str,
        cgroup: PathBuf,
        ip4: Ipv4Addr,
        ip6: Ipv6Addr,
    ) -> Self {
        Self {
            node,
            name: name.to_owned(),
            cgroup,
            ip4,
            ip6,
            netns: None,
        }
    }

    pub(crate) fn open(&mut self) -> Result<()> {
        let path = self.netns_path();
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        self.netns = Some(Arc::new(file));
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace, below `/var/run/netns`.
    pub fn netns_path(&self) -> PathBuf {
        netns::path(&self.node.id.netns(&self.name))
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.ip4
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.ip6
    }

    /// Both.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4.into(), self.ip6.into()]
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command that runs in the pod. `tokio::process::Command` can be made from it.
    ///
    /// # Panics
    /// Never of itself: a pod that exists has an open namespace and cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let netns = Arc::clone(self.netns_file());
        let mut command = Command::new(program);
        // A pod that was just removed shows as an error of spawn.
        let mut cgroup = cgroup::enter(&self.cgroup.join("cgroup.procs")).ok();
        let enter = move || {
            // The cgroup first: a socket belongs to the cgroup its process was in.
            match &mut cgroup {
                Some(enter) => enter()?,
                None => return Err(std::io::Error::from_raw_os_error(libc::ENOENT)),
            }
            // SAFETY: an open descriptor of a namespace.
            if unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: the closure makes only async-signal-safe system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `f` on a thread of its own inside the namespace. Its sockets belong to the cgroup of
    /// this process, so what they connect to is not caught.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within_netns(self.netns_file(), f)
    }

    fn netns_file(&self) -> &Arc<File> {
        self.netns
            .as_ref()
            .expect("`Testbed::pods` opens it before it hands the pod out")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for result in [
            cgroup::remove(&self.cgroup),
            netns::remove(&self.node.id.netns(&self.name)),
        ] {
            if let Err(error) = result {
                eprintln!("testbed: pod {}: {error:#}", self.name);
            }
        }
    }
}
