//! A testbed with the programs attached to its cgroup.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, SockHash};
use aya::programs::links::CgroupAttachMode;
use aya::programs::{Program, SkLookup};
use bytemuck::{Pod as PlainOldData, Zeroable as _};
use mesh_common::{
    Addr, Backend, Conns, ConnsKey, Control, Counter, InboundPod, LbKind, ListenKey, ListenKind,
    OrigKey, OriginalDst, Pod, PodFlags, Service, ServiceKey, ServiceState, Slot, SlotKey, TCP,
    UNLIMITED, Verdict,
};
use mesh_testbed::Testbed;

const VIEW: u32 = 1;
const INBOUND_POD: u32 = 2;

/// A key or value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T: Copy>(T);

// SAFETY: bytemuck checked that T is plain old data, and the wrapper adds nothing.
unsafe impl<T: PlainOldData> aya::Pod for Plain<T> {}

/// Programs detach when it is dropped.
pub(crate) struct Node {
    pub(crate) testbed: Testbed,
    ebpf: Ebpf,
    services: u32,
    steered: bool,
}

impl Node {
    pub(crate) fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let object = object()?;
        let mut ebpf = aya::EbpfLoader::new()
            .load_file(&object)
            .with_context(|| format!("cannot load {}", object.display()))?;
        let cgroup = std::fs::File::open(testbed.cgroup())?;
        let mode = CgroupAttachMode::Single;
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::CgroupSockAddr(program) => {
                    program
                        .load()
                        .map_err(|error| anyhow::anyhow!("{name}: {}", last_lines(&error)))?;
                    program.attach(&cgroup, mode)?;
                }
                Program::CgroupSock(program) => {
                    program
                        .load()
                        .map_err(|error| anyhow::anyhow!("{name}: {}", last_lines(&error)))?;
                    program.attach(&cgroup, mode)?;
                }
                Program::SockOps(program) => {
                    program
                        .load()
                        .map_err(|error| anyhow::anyhow!("{name}: {}", last_lines(&error)))?;
                    program.attach(&cgroup, mode)?;
                }
                Program::SkMsg(program) => program
                    .load()
                    .map_err(|error| anyhow::anyhow!("{name}: {}", last_lines(&error)))?,
                Program::SkLookup(program) => program
                    .load()
                    .map_err(|error| anyhow::anyhow!("{name}: {}", last_lines(&error)))?,
                _ => bail!("{name} is of a kind this test does not know"),
            }
        }
        Ok(Self {
            testbed,
            ebpf,
            services: 0,
            steered: false,
        })
    }

    /// Enrols a pod.
    pub(crate) fn enrol(&mut self, pod: &mesh_testbed::Pod) -> Result<()> {
        let value = Pod {
            pod_id: 1,
            view_id: VIEW,
            identity: 0,
            flags: PodFlags::ALL_CIDRS | PodFlags::NO_PORT_RULES,
            capture_id: 0,
            own_v4: u32::from_ne_bytes(pod.ip4().octets()),
            own_v6: Addr::from_octets(pod.ip6().octets()),
        };
        self.insert("PODS", cookie(pod)?, value)
    }

    /// Enrols a pod for what it receives; again to change its flags.
    pub(crate) fn enrol_inbound(&mut self, pod: &mesh_testbed::Pod, flags: u32) -> Result<()> {
        let value = InboundPod {
            pod_id: INBOUND_POD,
            capture_id: 0,
            flags,
        };
        for ip in pod.ips() {
            self.insert("IN_PODS", addr(ip), value)?;
        }
        if self.steered {
            return Ok(());
        }
        self.steered = true;
        let netns = std::fs::File::open(pod.netns_path())?;
        let program = self
            .ebpf
            .program_mut("mesh_sk_lookup")
            .context("no mesh_sk_lookup")?;
        let program: &mut SkLookup = program.try_into()?;
        program.attach(netns)?;
        Ok(())
    }

    /// The listener that [`Self::enrol_inbound`]'s pod is steered to.
    pub(crate) fn steer_to(&mut self, listener: &TcpListener) -> Result<()> {
        let key = ListenKey {
            pod_id: INBOUND_POD,
            kind: ListenKind::INBOUND,
        };
        let mut map: SockHash<&mut MapData, Plain<ListenKey>> =
            SockHash::try_from(self.map_mut("LISTEN")?)?;
        Ok(map.insert(Plain(key), listener.as_raw_fd(), 0)?)
    }

    /// A service with equal backends; its number, which is also that of its cluster.
    pub(crate) fn service(
        &mut self,
        at: SocketAddr,
        verdict: Verdict,
        backends: &[SocketAddr],
    ) -> Result<u32> {
        self.limited(at, verdict, backends, [UNLIMITED; 2])
    }

    /// The number that the next service gets.
    pub(crate) fn next_service(&self) -> u32 {
        self.services + 1
    }

    /// As [`Self::service`], with at most so many connections to all and to each backend.
    pub(crate) fn limited(
        &mut self,
        at: SocketAddr,
        verdict: Verdict,
        backends: &[SocketAddr],
        [max_connections, max_per_endpoint]: [u32; 2],
    ) -> Result<u32> {
        self.services += 1;
        let svc_id = self.services;
        self.insert("SVC_STATE", svc_id, ServiceState::zeroed())?;
        for (slot, backend) in (0..).zip(backends) {
            let backend_id = svc_id * 100 + slot;
            let value = Backend {
                addr: addr(backend.ip()),
                port: backend.port(),
                flags: 0,
            };
            self.insert("BACK", backend_id, value)?;
            let cluster = u64::from(svc_id);
            for key in [ConnsKey::whole(cluster), ConnsKey::of(cluster, backend_id)] {
                self.insert("CONNS", key, Conns::zeroed())?;
            }
            let value = Slot {
                cluster,
                backend_id,
                max_connections,
                max_per_endpoint,
                by_pod: 0,
            };
            self.insert(
                "SLOTS",
                SlotKey {
                    svc_id,
                    generation: 1,
                    slot,
                },
                value,
            )?;
        }
        let key = ServiceKey {
            view_id: VIEW,
            addr: addr(at.ip()),
            port: at.port(),
            proto: TCP as u16,
        };
        let value = Service {
            svc_id,
            generation: 1,
            slots: u32::try_from(backends.len())?,
            verdict: verdict as u8,
            lb: LbKind::RoundRobin as u8,
            flags: 0,
            choices: 0,
        };
        self.insert("SVC", key, value)?;
        Ok(svc_id)
    }

    /// The agent says that it is alive, now.
    pub(crate) fn heartbeat(&mut self) -> Result<()> {
        let uptime = std::fs::read_to_string("/proc/uptime")?;
        let seconds: f64 = uptime.split(' ').next().context("a number")?.parse()?;
        let control = Control {
            heartbeat_ns: (seconds * 1e9) as u64,
            agent_cgroup: 0,
        };
        let mut map: Array<&mut MapData, Plain<Control>> = Array::try_from(self.map_mut("CTRL")?)?;
        Ok(map.set(0, Plain(control), 0)?)
    }

    pub(crate) fn state(&self, svc_id: u32) -> Result<ServiceState> {
        let map = self.ebpf.map("SVC_STATE").context("no SVC_STATE")?;
        let map: HashMap<&MapData, u32, Plain<ServiceState>> = HashMap::try_from(map)?;
        Ok(map.get(&svc_id, 0)?.0)
    }

    /// Counts of a service's cluster, and of each of its backends.
    pub(crate) fn conns(&self, svc_id: u32) -> Result<(Conns, Vec<Conns>)> {
        let map = self.ebpf.map("CONNS").context("no CONNS")?;
        let map: HashMap<&MapData, Plain<ConnsKey>, Plain<Conns>> = HashMap::try_from(map)?;
        let cluster = u64::from(svc_id);
        let whole = map.get(&Plain(ConnsKey::whole(cluster)), 0)?.0;
        let mut backends = Vec::new();
        for backend in svc_id * 100.. {
            match map.get(&Plain(ConnsKey::of(cluster, backend)), 0) {
                Ok(conns) => backends.push(conns.0),
                Err(_) => break,
            }
        }
        Ok((whole, backends))
    }

    /// Where a connection from a pod to the agent wanted to go.
    pub(crate) fn original(
        &self,
        pod: &mesh_testbed::Pod,
        client: SocketAddr,
    ) -> Result<SocketAddr> {
        let map = self.ebpf.map("ORIG").context("no ORIG")?;
        let map: HashMap<&MapData, Plain<OrigKey>, Plain<OriginalDst>> = HashMap::try_from(map)?;
        let key = OrigKey {
            netns_cookie: cookie(pod)?,
            addr: addr(client.ip()),
            port: client.port(),
            pad: [0; 3],
        };
        let value = map.get(&Plain(key), 0)?.0;
        let ip = std::net::Ipv6Addr::from(value.addr.octets()).to_canonical();
        Ok(SocketAddr::new(ip, value.port))
    }

    pub(crate) fn counter(&self, counter: Counter) -> Result<u64> {
        let map = self.ebpf.map("COUNTERS").context("no COUNTERS")?;
        let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map)?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }

    fn insert<K: PlainOldData, V: PlainOldData>(
        &mut self,
        map: &str,
        key: K,
        value: V,
    ) -> Result<()> {
        let map: HashMap<&mut MapData, Plain<K>, Plain<V>> = HashMap::try_from(self.map_mut(map)?)?;
        let mut map = map;
        Ok(map.insert(Plain(key), Plain(value), 0)?)
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))
    }
}

fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::from_octets(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => Addr::from_octets(v6.octets()),
    }
}

/// `SO_NETNS_COOKIE` of a pod.
fn cookie(pod: &mesh_testbed::Pod) -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    pod.within(|| {
        let socket = TcpListener::bind(("127.0.0.1", 0))?;
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `cookie`, which lives on.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(cookie)
    })?
}

/// TARGET_DIR/bpf/mesh-ebpf.o, where the test is TARGET_DIR/debug/deps/NAME.
fn object() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target = test
        .ancestors()
        .nth(3)
        .context("the test is in a target directory")?;
    let object = target.join("bpf/mesh-ebpf.o");
    if !object.is_file() {
        bail!(
            "{} is missing; type: cargo xtask build-ebpf",
            object.display()
        );
    }
    Ok(object)
}

/// The end of what the verifier says; the whole is thousands of lines.
fn last_lines(error: &aya::programs::ProgramError) -> String {
    let text = match error {
        aya::programs::ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string(),
        other => other.to_string(),
    };
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
