//! Loads the programs, attaches them, and owns both until the agent ends.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::programs::links::{CgroupAttachMode, LinkError};
use aya::programs::sk_lookup::SkLookupLink;
use aya::programs::{CgroupSock, CgroupSockAddr, ProgramError, SkLookup, SockOps};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};

use crate::config::model::Name;
use crate::proxy::OriginalDst;
use crate::snapshot::{Snapshot, ViewId};
use crate::workload::{Netns, PodId};

use super::acceleration::{self, Acceleration, Decision};
use super::error::map_error;
use super::heart::Heart;
use super::maps::{self, NodeMaps, PodMaps, ServiceMaps};
use super::orig::KernelOriginalDst;
use super::pins::Pins;
use super::plan::Plan;
use super::pods::{Enrolment, Pods};
use super::reconcile::{Reconciler, Report};
use super::sockets::Sockets;
use super::sources::Source;
use super::{DatapathError, adopt, failure, object};

/// How the kernel side is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cgroup v2 directory above all pods.
    pub cgroup: PathBuf,
    /// The agent's own cgroup, whose sockets are never captured.
    pub agent_cgroup: u64,
    /// Kernel programs report what they do (`--log-level debug`); costs time per connection.
    pub trace: bool,
    /// A bpf file system, in which maps and links are pinned so that they outlive the agent. `None`:
    /// everything ends with it.
    pub bpffs: Option<PathBuf>,
    /// Maps that are to be of another size. What is pinned already keeps its own.
    pub map_sizes: Vec<MapSize>,
    /// What is accelerated between pods of this node.
    pub acceleration: Acceleration,
}

/// How many entries a map has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapSize {
    /// Its name.
    pub map: String,
    /// Entries at most.
    pub entries: u32,
}

impl std::str::FromStr for MapSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=');
        let size = parts.and_then(|(map, entries)| {
            let entries: u32 = entries.parse().ok().filter(|entries| *entries > 0)?;
            Some(Self {
                map: map.to_owned(),
                entries,
            })
        });
        let size = size.ok_or("must be NAME=ENTRIES, for example SVC=1000")?;
        if !RESIZABLE.contains(&&*size.map) {
            return Err(format!(
                "{} is not one of {}",
                size.map,
                RESIZABLE.join(", ")
            ));
        }
        Ok(size)
    }
}

/// Maps that hold what is configured.
const RESIZABLE: [&str; 11] = [
    "PODS",
    "IN_PODS",
    "LISTEN",
    "CIDRS",
    "AUTHZ",
    "PORTS",
    "SVC",
    "SVC_STATE",
    "SLOTS",
    "BACK",
    "CONNS",
];

/// The loaded programs and their maps. Dropping it detaches everything.
#[allow(missing_debug_implementations)]
pub struct Datapath {
    pub(super) ebpf: Ebpf,
    pub(super) services: ServiceMaps,
    pub(super) pod_maps: PodMaps,
    pub(super) node: NodeMaps,
    pub(super) reconciler: Reconciler,
    /// The snapshot that the service maps hold whole.
    pub(super) applied: Option<Arc<Snapshot>>,
    pub(super) pods: Pods,
    /// Until a thread of its own has it.
    heart: Option<Heart>,
    original_dst: Arc<KernelOriginalDst>,
    pins: Option<Pins>,
    /// Pods that nobody connects to, by namespace; links that are not pinned.
    barred: HashMap<u64, Option<SkLookupLink>>,
    /// Where the programs are to be attached once the maps are filled: those of another version
    /// work until then.
    waiting: Option<Cgroup>,
    pub(super) sockets: Option<Sockets>,
    /// Of clusters with outlier detection, by their state: which health the slots were written for.
    pub(super) health: HashMap<usize, u64>,
    /// Clusters whose services were written last time, and will be once more.
    pub(super) replanned: Vec<(ViewId, Name)>,
    pub(super) map_sizes: Vec<MapSize>,
}

/// cgroup/connect, getpeername and getsockname programs.
const SOCK_ADDR_PROGRAMS: [&str; 6] = [
    "mesh_connect4",
    "mesh_connect6",
    "mesh_peer4",
    "mesh_peer6",
    "mesh_name4",
    "mesh_name6",
];
const SOCK_OPS: &str = "mesh_sock_ops";
const SOCK_RELEASE: &str = "mesh_sock_release";
const SK_LOOKUP: &str = "mesh_sk_lookup";
const SK_BAR: &str = "mesh_sk_bar";

impl Datapath {
    /// Loads the programs and attaches those of the cgroup. Nothing is captured before pods are
    /// enrolled.
    ///
    /// # Errors
    /// The kernel refuses a map, a program or an attachment, or the cgroup does not exist.
    pub fn load(options: &Options) -> Result<Self, DatapathError> {
        let kernel = KernelVersion::current().unwrap_or(KernelVersion::new(5, 15, 0));
        if kernel < KernelVersion::new(5, 15, 0) {
            return Err(DatapathError::Kernel {
                found: format!("{kernel:?}"),
            });
        }
        let at_least = |major, minor| u8::from(kernel >= KernelVersion::new(major, minor, 0));
        let (has_set_retval, has_ingress_ifindex) = (at_least(5, 18), at_least(5, 17));
        // aya-log's levels: 4 is debug, 2 is warn.
        let log_level: u8 = if options.trace { 4 } else { 2 };
        // A kernel built without MPTCP refuses programs that name its sockets.
        let has_mptcp = at_least(5, 19) & u8::from(Path::new("/proc/sys/net/mptcp").exists());
        let cgroup = open_cgroup(&options.cgroup)?;
        let pins = match &options.bpffs {
            Some(bpffs) => Some(Pins::open(bpffs, cgroup.inode)?),
            None => None,
        };
        let decision = Decision::make(options.acceleration);
        let offsets = acceleration::offsets();
        let mut loader = EbpfLoader::new();
        acceleration::describe_kernel(&mut loader, &offsets);
        for (name, path) in pins.iter().flat_map(Pins::map_paths) {
            loader.map_pin_path(name, path);
        }
        for size in &options.map_sizes {
            loader.map_max_entries(&size.map, size.entries);
        }
        let mut ebpf = loader
            .override_global("HAS_MPTCP", &has_mptcp, false)
            .override_global("HAS_SET_RETVAL", &has_set_retval, true)
            .override_global("HAS_INGRESS_IFINDEX", &has_ingress_ifindex, true)
            .override_global("AYA_LOG_LEVEL", &log_level, false)
            .load(object::OBJECT)?;
        load_programs(&mut ebpf)?;
        let decision = acceleration::prepare(&mut ebpf, decision);
        let (mut services, pod_maps, mut node, orig) = maps::take(&mut ebpf)?;
        node.acceleration
            .set(0, decision.settings(), 0)
            .map_err(map_error("ACCEL", "write what is accelerated"))?;
        let reconciler = adopt::services(&mut services)?;
        let pods = adopt::pods(&pod_maps);
        let heart = node.control.take().map(|control| Heart {
            control,
            agent_cgroup: options.agent_cgroup,
        });
        let mut datapath = Self {
            ebpf,
            services,
            pod_maps,
            node,
            reconciler,
            applied: None,
            pods,
            heart,
            original_dst: Arc::new(KernelOriginalDst::new(orig)),
            pins,
            barred: HashMap::new(),
            waiting: Some(cgroup),
            sockets: None,
            health: HashMap::new(),
            replanned: Vec::new(),
            map_sizes: options.map_sizes.clone(),
        };
        if let Some(heart) = &mut datapath.heart {
            heart.beat()?;
        }
        if !datapath.pins.as_ref().is_some_and(Pins::has_outdated) {
            datapath.attach()?;
        }
        Ok(datapath)
    }

    /// Attaches the programs, in place of those of another version if there are any.
    fn attach(&mut self) -> Result<(), DatapathError> {
        if let Some(cgroup) = self.waiting.take() {
            attach_cgroup(&mut self.ebpf, &cgroup, self.pins.as_ref())?;
        }
        Ok(())
    }

    /// Starts forwarding what the kernel programs log. Needs a tokio runtime.
    ///
    /// # Errors
    /// The log ring buffer is missing.
    pub fn forward_logs(&mut self) -> anyhow::Result<()> {
        use tokio::io::Interest;
        use tokio::io::unix::AsyncFd;

        let logger = aya_log::EbpfLogger::init(&mut self.ebpf)?;
        // SAFETY: the logger owns its descriptor and is only dropped together with the AsyncFd.
        let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
        tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        });
        Ok(())
    }

    /// What tells the kernel that the agent is alive; can be taken once.
    pub fn heart(&mut self) -> Option<Heart> {
        self.heart.take()
    }

    /// Removes counters of services and endpoints that are gone and have no connection any more;
    /// to be called from time to time.
    pub fn sweep(&mut self) {
        self.reconciler.sweep(&mut self.services);
    }

    /// Where the proxy asks for original destinations.
    pub fn original_dst(&self) -> Arc<dyn OriginalDst> {
        self.original_dst.clone()
    }

    /// Brings the service maps up to the snapshot.
    pub fn apply(&mut self, snapshot: &Arc<Snapshot>) -> Report {
        let sources = self.pods.sources();
        let plan = match &self.applied {
            Some(before) => Plan::update(before, snapshot, &sources),
            None => Plan::new(snapshot, &sources),
        };
        let report = self.reconciler.apply(plan, &mut self.services);
        // What failed is tried again with the next snapshot.
        self.applied = report.failed.is_empty().then(|| snapshot.clone());
        let routes = self.reconciler.take_closing();
        if let Some(sockets) = &self.sockets
            && !routes.is_empty()
        {
            sockets.close(routes);
        }
        report
    }

    /// Enrols a pod or brings an enrolled one up to date.
    ///
    /// # Errors
    /// A map is full, or the namespace does not take the program.
    pub fn enrol(&mut self, enrolment: &Enrolment<'_>) -> Result<(), DatapathError> {
        self.place_source(enrolment);
        let (ebpf, pins) = (&mut self.ebpf, self.pins.as_ref());
        let put = self.pods.put(&mut self.pod_maps, enrolment, || {
            let key = enrolment.pod.workload.key();
            attach_netns(ebpf, SK_LOOKUP, &enrolment.pod.netns, &key, pins)
        });
        let cookie = enrolment.pod.netns.cookie();
        if put.is_err() && self.pods.cookie(enrolment.pod.id).is_none() {
            // First nobody gets in who must not; then nothing of a pod that was not enrolled stays.
            let closed = enrolment.rules.is_some_and(failure::closes_inbound);
            if !(closed && self.put_bar(&enrolment.pod.netns, &enrolment.pod.workload.key())) {
                self.unbar(cookie);
                if let Some(pins) = &self.pins {
                    pins.forget_pod(cookie);
                }
            }
            self.pods.undo(&mut self.pod_maps, enrolment);
        }
        let changed = put?;
        self.barred.remove(&cookie);
        if let (Some(rules), Some(sockets)) = (changed, &self.sockets) {
            sockets.revoke(enrolment.pod.clone(), enrolment.ips.to_vec(), rules);
        }
        Ok(())
    }

    /// Lets nobody connect to a pod that is not caught, until it is or [`Self::unbar`]. Says whether
    /// that is so: not of one that is enrolled.
    pub fn bar(&mut self, netns: &Netns, pod: &str) -> bool {
        if self.barred.contains_key(&netns.cookie()) {
            return true;
        }
        !self.pods.cookies().contains(&netns.cookie()) && self.put_bar(netns, pod)
    }

    fn put_bar(&mut self, netns: &Netns, pod: &str) -> bool {
        match attach_netns(&mut self.ebpf, SK_BAR, netns, pod, self.pins.as_ref()) {
            Ok(link) => {
                self.barred.insert(netns.cookie(), link);
                true
            }
            Err(error) => {
                tracing::error!(%pod, %error, "connections to the pod cannot be refused");
                false
            }
        }
    }

    /// Lets everybody connect to a pod again.
    pub fn unbar(&mut self, cookie: u64) {
        if self.barred.remove(&cookie).is_some()
            && let Some(pins) = &self.pins
        {
            pins.forget_pod(cookie);
        }
    }

    /// Of a pod that another agent enrolled: whether it was closed without an agent.
    pub fn remembers(&self, cookie: u64) -> Option<bool> {
        self.pods.remembers(cookie)
    }

    /// Before a pod is caught, services that look at its address know where it goes.
    fn place_source(&mut self, enrolment: &Enrolment<'_>) {
        let view = enrolment.pod.view();
        let source = Source::new(enrolment.pod.id.0, enrolment.ips);
        let Some(snapshot) = &self.applied else {
            return;
        };
        if self.pods.knows_source(view, &source) {
            return;
        }
        let mut sources = self.pods.sources();
        sources.add(view, source);
        let plan = Plan::of_sources(snapshot, view, &sources);
        for (_, error) in self.reconciler.apply(plan, &mut self.services).failed {
            tracing::error!(%error, "a pod's endpoints are drawn at random");
        }
    }

    /// Whether another agent left services or pods behind.
    pub fn has_inherited(&self) -> bool {
        self.waiting.is_some()
            || self.reconciler.services().next().is_some()
            || self.pods.inherited().0 > 0
    }

    /// The highest number of a pod that another agent left behind.
    pub fn inherited_pod(&self) -> PodId {
        self.pods.inherited()
    }

    /// The highest number of a view that a pod looks at which another agent left behind.
    pub fn inherited_view(&self) -> ViewId {
        self.pods.inherited_view()
    }

    /// Takes the place of programs of another version, and lets go of pods that another agent left
    /// behind and this one was not told of; to be called once, when those that are here are
    /// enrolled.
    ///
    /// # Errors
    /// A program cannot be attached, or a pin of another version cannot be removed.
    pub fn drop_inherited(&mut self) -> Result<(), DatapathError> {
        self.attach()?;
        self.pods.drop_inherited(&mut self.pod_maps);
        if let Some(pins) = &mut self.pins {
            let mut cookies = self.pods.cookies();
            cookies.extend(self.barred.keys());
            pins.keep_pods(&cookies);
            pins.drop_outdated()?;
        }
        Ok(())
    }

    /// Removes every pin, so that all ends with the agent.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn unpin(&mut self) -> Result<(), DatapathError> {
        match &self.pins {
            Some(pins) => Ok(pins.remove()?),
            None => Ok(()),
        }
    }

    /// Lets a pod go. Connections made so far go on.
    ///
    /// # Errors
    /// A map cannot be written; everything else is removed all the same.
    pub fn remove(&mut self, pod: PodId) -> Result<(), DatapathError> {
        let cookie = self.pods.cookie(pod);
        let removed = self.pods.remove(&mut self.pod_maps, pod);
        if let (Some(pins), Some(cookie)) = (&self.pins, cookie) {
            pins.forget_pod(cookie);
        }
        removed
    }

    /// Lets all pods go.
    pub fn remove_all(&mut self) {
        for pod in self.pods.ids() {
            if let Err(error) = self.remove(pod) {
                tracing::warn!(%error, "cannot remove a pod from the kernel's maps");
            }
        }
    }
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    for name in SOCK_ADDR_PROGRAMS {
        let program: &mut CgroupSockAddr = program(ebpf, name)?;
        program.load().map_err(|reason| DatapathError::Program {
            program: name,
            reason,
        })?;
    }
    let failed = |program| move |reason| DatapathError::Program { program, reason };
    program::<SockOps>(ebpf, SOCK_OPS)?
        .load()
        .map_err(failed(SOCK_OPS))?;
    program::<CgroupSock>(ebpf, SOCK_RELEASE)?
        .load()
        .map_err(failed(SOCK_RELEASE))?;
    for name in [SK_LOOKUP, SK_BAR] {
        program::<SkLookup>(ebpf, name)?
            .load()
            .map_err(failed(name))?;
    }
    Ok(())
}

/// The cgroup v2 directory above all pods.
struct Cgroup {
    path: PathBuf,
    file: File,
    inode: u64,
}

fn open_cgroup(path: &Path) -> Result<Cgroup, DatapathError> {
    let open = || -> io::Result<Cgroup> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Cgroup {
            path: path.to_owned(),
            file,
            inode,
        })
    };
    open().map_err(|reason| DatapathError::Cgroup {
        path: path.to_owned(),
        reason,
    })
}

fn link_error(error: LinkError) -> ProgramError {
    match error {
        LinkError::SyscallError(error) => ProgramError::SyscallError(error),
        other => ProgramError::IOError(io::Error::other(other)),
    }
}

fn attach_cgroup(
    ebpf: &mut Ebpf,
    cgroup: &Cgroup,
    pins: Option<&Pins>,
) -> Result<(), DatapathError> {
    // cgroup links always allow other programs beside them; the flag would be rejected.
    let mode = CgroupAttachMode::Single;
    // Those that only keep accounts come before those that rewrite.
    macro_rules! attach {
        ($kind:ty, $name:expr) => {{
            let failed = |reason| DatapathError::Attach {
                program: $name,
                target: cgroup.path.display().to_string(),
                reason,
            };
            let program = program::<$kind>(ebpf, $name)?;
            match pins {
                None => {
                    program.attach(&cgroup.file, mode).map_err(failed)?;
                }
                Some(pins) => {
                    let fd = program
                        .fd()
                        .and_then(|fd| Ok(fd.try_clone()?))
                        .map_err(failed)?;
                    pins.link($name, fd.as_fd(), || {
                        let link = program.attach(&cgroup.file, mode).map_err(failed)?;
                        let link = program.take_link(link).map_err(failed)?;
                        link.try_into()
                            .map_err(|reason: LinkError| failed(link_error(reason)))
                    })?;
                }
            }
        }};
    }
    attach!(CgroupSock, SOCK_RELEASE);
    attach!(SockOps, SOCK_OPS);
    for name in SOCK_ADDR_PROGRAMS.into_iter().rev() {
        attach!(CgroupSockAddr, name);
    }
    Ok(())
}

/// Makes a pod's link run [`SK_LOOKUP`] or [`SK_BAR`]. Returns the link, unless it is pinned.
fn attach_netns(
    ebpf: &mut Ebpf,
    name: &'static str,
    netns: &Netns,
    pod: &str,
    pins: Option<&Pins>,
) -> Result<Option<SkLookupLink>, DatapathError> {
    let failed = |reason| DatapathError::Attach {
        program: name,
        target: format!("the network namespace of pod {pod}"),
        reason,
    };
    let program: &mut SkLookup = program(ebpf, name)?;
    let Some(pins) = pins else {
        let link = program.attach(netns).map_err(failed)?;
        return Ok(Some(program.take_link(link).map_err(failed)?));
    };
    let fd = program
        .fd()
        .and_then(|fd| Ok(fd.try_clone()?))
        .map_err(failed)?;
    pins.pod_link(netns.cookie(), fd.as_fd(), || {
        let link = program.attach(netns).map_err(failed)?;
        Ok(program.take_link(link).map_err(failed)?.into())
    })?;
    Ok(None)
}

pub(super) fn program<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(DatapathError::Missing(name))?
        .try_into()
        .map_err(|reason| DatapathError::Program {
            program: name,
            reason,
        })
}
