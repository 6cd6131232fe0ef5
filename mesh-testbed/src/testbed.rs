//! One node: a bridge, pods on it, and a cgroup above them.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::id::Id;
use crate::lease::{self, Lease};
use crate::pod::Pod;
use crate::sweep::sweep;
use crate::{bpffs, cgroup, ip};

/// The name of the cgroup, below [`Testbed::cgroup`], that an agent is put in. In Kubernetes too
/// the agent lives below the cgroup that its programs are attached to.
pub const NODE_CGROUP_AGENT: &str = "agent";

/// A node of its own on this machine. Several may exist at once. Dropped, it takes everything
/// with it, its processes included, once its last pod is dropped.
#[derive(Debug)]
pub struct Testbed {
    node: Arc<Node>,
    next_host: AtomicU16,
}

/// What all pods of a testbed share.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: Id,
    cgroups: PathBuf,
    cgroup: PathBuf,
    bpffs: PathBuf,
    lease: Lease,
}

impl Testbed {
    /// Makes the bridge and the cgroup. Needs root.
    ///
    /// # Errors
    /// Not root, no cgroup v2, no bpffs, no iproute2.
    pub fn new() -> Result<Self> {
        let cgroups = cgroup::mount()?;
        let bpffs = {
            let _alone = lease::alone()?;
            let bpffs = bpffs::root()?;
            sweep(&cgroups, Id::is_orphan);
            bpffs
        };
        let id = Id::new();
        let node = Arc::new(Node {
            cgroup: cgroups.join(id.to_string()),
            bpffs: bpffs.join(id.to_string()),
            lease: Lease::take()?,
            cgroups,
            id,
        });
        cgroup::create(&node.cgroup)?;
        cgroup::create(&node.cgroup.join(NODE_CGROUP_AGENT))?;
        std::fs::create_dir(&node.bpffs)
            .with_context(|| format!("cannot create {}", node.bpffs.display()))?;
        let bridge = &node.id;
        let (ip4, ip6) = (node.lease.pod4(1), node.lease.pod6(1));
        ip::batch(
            None,
            &format!(
                "link add {bridge} type bridge mcast_snooping 0\n\
                 link set {bridge} up\n\
                 addr add {ip4}/22 dev {bridge}\n\
                 addr add {ip6}/64 dev {bridge} nodad\n"
            ),
        )?;
        Ok(Self {
            node,
            next_host: AtomicU16::new(2),
        })
    }

    /// A pod: a namespace on the bridge and a cgroup. The name is unique in the testbed.
    ///
    /// # Errors
    /// The name is taken or not fit for a file name, or the testbed is full (1,021 pods).
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let mut pods = self.pods([name])?;
        pods.pop().context("one name makes one pod")
    }

    /// Many pods at once, which is faster than one by one.
    ///
    /// # Errors
    /// As [`Self::pod`].
    pub fn pods(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Vec<Pod>> {
        let mut outside = String::new();
        let mut pods = Vec::new();
        for name in names {
            let name = name.as_ref();
            let fit = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if name.is_empty() || !name.chars().all(fit) || name == NODE_CGROUP_AGENT {
                bail!("{name:?} is no name for a pod");
            }
            let host = self.next_host.fetch_add(1, Ordering::Relaxed);
            if host > 1022 {
                bail!("the testbed is full");
            }
            let (netns, veth) = (self.node.id.netns(name), self.node.id.veth(host.into()));
            writeln!(
                outside,
                "netns add {netns}\n\
                 link add {veth} type veth peer name eth0 netns {netns}\n\
                 link set {veth} master {} up",
                self.node.id
            )?;
            let cgroup = self.node.cgroup.join(name);
            cgroup::create(&cgroup)?;
            let ip4 = self.node.lease.pod4(host);
            let ip6 = self.node.lease.pod6(host);
            // From here on dropping it undoes what is done.
            pods.push(Pod::new(self.node.clone(), name, cgroup, ip4, ip6));
        }
        ip::batch(None, &outside)?;
        for pod in &mut pods {
            self.wire(pod)?;
        }
        Ok(pods)
    }

    /// Sets up the inside of a pod's namespace.
    fn wire(&self, pod: &mut Pod) -> Result<()> {
        let lease = &self.node.lease;
        ip::batch(
            Some(&self.node.id.netns(pod.name())),
            &format!(
                "link set lo up\n\
                 addr add {}/22 dev eth0\n\
                 addr add {}/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via {}\n\
                 route add default via {}\n\
                 route add unreachable {}/24\n\
                 route add unreachable {}/64\n",
                pod.ip4(),
                pod.ip6(),
                lease.pod4(1),
                lease.pod6(1),
                lease.service4(0),
                lease.service6(0),
            ),
        )?;
        pod.open()
    }

    /// The address of a service, to which no pod has a route: a connection that is not caught
    /// fails at once with EHOSTUNREACH.
    pub fn vip4(&self, number: u8) -> Ipv4Addr {
        self.node.lease.service4(number)
    }

    /// As [`Self::vip4`].
    pub fn vip6(&self, number: u8) -> Ipv6Addr {
        self.node.lease.service6(number.into())
    }

    /// The node's own addresses, which are the pods' default gateway.
    pub fn node_ips(&self) -> [IpAddr; 2] {
        let lease = &self.node.lease;
        [lease.pod4(1).into(), lease.pod6(1).into()]
    }

    /// The cgroup above all pods, to which programs are attached.
    pub fn cgroup(&self) -> &Path {
        &self.node.cgroup
    }

    /// A directory of our own in bpffs, for pins.
    pub fn bpffs(&self) -> &Path {
        &self.node.bpffs
    }

    /// A name no other testbed has at this time, fit for files.
    pub fn name(&self) -> String {
        self.node.id.to_string()
    }
}

/// Removes everything that testbeds of this process made and kills the processes in it, whoever
/// holds it: for a program that was told to stop while it waits for one of them.
pub fn remove_own() {
    if let Ok(cgroups) = cgroup::mount() {
        sweep(&cgroups, Id::is_own);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        sweep(&self.cgroups, |id| *id == self.id);
    }
}
