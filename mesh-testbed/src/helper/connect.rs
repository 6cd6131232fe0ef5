//! `connect`: opens connections in all the ways programs do, and says what became of each.

use std::io::{BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use mesh_testbed::wire::{Connection, Held};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{setgid, setuid};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::listen::print_line;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Where to.
    to: SocketAddr,
    /// How many connections, one after the other.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Connect the same socket again, to this address, and report that connection. A connection
    /// that stands is dissolved first (AF_UNSPEC).
    #[arg(long)]
    then: Option<SocketAddr>,
    /// Do not block in connect(2).
    #[arg(long)]
    nonblocking: bool,
    /// Reach an IPv4 address through an IPv6 socket (v4-mapped).
    #[arg(long)]
    mapped: bool,
    /// Bind to this address first.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Multipath TCP.
    #[arg(long)]
    mptcp: bool,
    /// Mark the sockets (SO_MARK).
    #[arg(long)]
    mark: Option<u32>,
    /// Become this user and group first.
    #[arg(long)]
    uid: Option<u32>,
    /// Move to a cgroup below the pod's and into a cgroup namespace of its own first.
    #[arg(long)]
    cgroup_namespace: bool,
    /// Do not wait for the answer to the SYN: the connection is told with EINPROGRESS.
    #[arg(long)]
    half_open: bool,
    /// Connect by sending (MSG_FASTOPEN).
    #[arg(long, requires = "send")]
    fastopen: bool,
    /// A connected UDP socket.
    #[arg(long)]
    udp: bool,
    /// Send this when connected.
    #[arg(long)]
    send: Option<String>,
    /// Close our side after sending and read until the peer closes its own.
    #[arg(long)]
    until_close: bool,
    /// Do not wait for the peer to say anything.
    #[arg(long, conflicts_with = "until_close")]
    no_read: bool,
    /// How long connecting and reading may take, each.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    /// Keep the connections until standard input closes. For every line read from it, send a
    /// byte over each and say how many came back.
    #[arg(long)]
    hold: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if args.cgroup_namespace {
        leave_cgroup_namespace()?;
    }
    if let Some(id) = args.uid {
        setgid(id.into()).context("cannot change the group")?;
        setuid(id.into()).context("cannot change the user")?;
    }
    let mut held = Vec::new();
    for _ in 0..args.count {
        let socket = open(args)?;
        print_line(&connection(args, &socket))?;
        if args.hold {
            held.push(socket);
        }
    }
    if args.hold {
        for line in std::io::stdin().lock().lines() {
            line?;
            let alive = held.iter().filter(|socket| is_alive(socket)).count();
            print_line(&Held {
                alive,
                dead: held.len() - alive,
            })?;
        }
    }
    Ok(())
}

/// A cgroup below ours becomes the root of what we see.
fn leave_cgroup_namespace() -> Result<()> {
    let groups = std::fs::read_to_string("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4))?
    });
    let (own, mount) = own.zip(mount).context("there is no cgroup v2")?;
    let below = Path::new(mount)
        .join(own)
        .join(format!("below-{}", std::process::id()));
    std::fs::create_dir(&below).context("cannot make a cgroup")?;
    std::fs::write(below.join("cgroup.procs"), "0").context("cannot enter a cgroup")?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("cannot make a cgroup namespace")
}

fn open(args: &Args) -> Result<Socket> {
    let domain = match args.mapped {
        true => Domain::IPV6,
        false => Domain::for_address(args.to),
    };
    let (kind, protocol) = match (args.udp, args.mptcp) {
        (true, _) => (Type::DGRAM, Protocol::UDP),
        (false, true) => (Type::STREAM, Protocol::MPTCP),
        (false, false) => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    if let Some(mark) = args.mark {
        socket.set_mark(mark)?;
    }
    if let Some(address) = args.bind {
        socket.bind(&as_asked(args, address))?;
    }
    Ok(socket)
}

/// Connects, speaks and listens; the first error ends it and is told.
fn connection(args: &Args, socket: &Socket) -> Connection {
    let mut result = Connection {
        errno: 0,
        connected: false,
        local: None,
        peer: None,
        received: String::new(),
        closed: false,
        connect_us: 0,
    };
    if let Err(error) = exchange(args, socket, &mut result) {
        result.errno = error.raw_os_error().unwrap_or(match error.kind() {
            ErrorKind::TimedOut => libc::ETIMEDOUT,
            _ => libc::EIO,
        });
    }
    result
}

fn exchange(args: &Args, mut socket: &Socket, result: &mut Connection) -> std::io::Result<()> {
    let timeout = Duration::from_millis(args.timeout_ms);
    let mut unsent = args.send.as_deref().map(str::as_bytes).unwrap_or_default();
    if let Some(then) = args.then {
        // The first connect may fail; that the second is independent of it is the point.
        if connect(args, socket, args.to, timeout).is_ok() {
            dissolve(socket)?;
        }
        let start = Instant::now();
        let stands = connect(args, socket, then, timeout);
        result.connect_us = micros(start);
        stands?;
    } else {
        let start = Instant::now();
        if args.fastopen {
            let sent =
                socket.send_to_with_flags(unsent, &as_asked(args, args.to), libc::MSG_FASTOPEN)?;
            unsent = &unsent[sent..];
            // Data that waits for the handshake lets sendto(2) return before its end.
            wait_until_connected(socket, timeout)?;
        } else {
            let stands = connect(args, socket, args.to, timeout);
            result.connect_us = micros(start);
            stands?;
        }
        result.connect_us = micros(start);
    }
    result.connected = true;
    result.local = socket.local_addr()?.as_socket();
    result.peer = socket.peer_addr()?.as_socket();
    socket.set_read_timeout(Some(timeout))?;
    socket.write_all(unsent)?;
    if args.until_close {
        socket.shutdown(Shutdown::Write)?;
    }
    if args.no_read {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let read = socket.read(&mut buffer)?;
        bytes.extend_from_slice(&buffer[..read]);
        result.received = String::from_utf8_lossy(&bytes).into_owned();
        result.closed = read == 0 && !args.udp;
        if read == 0 || !args.until_close {
            return Ok(());
        }
    }
}

/// connect(2); in the non-blocking case waits as an event loop does.
fn connect(args: &Args, socket: &Socket, to: SocketAddr, timeout: Duration) -> std::io::Result<()> {
    let to = as_asked(args, to);
    if args.half_open {
        socket.set_nonblocking(true)?;
        return socket.connect(&to);
    }
    if !args.nonblocking {
        // SO_SNDTIMEO bounds a blocking connect(2); the flags of the socket stay as they are.
        socket.set_write_timeout(Some(timeout))?;
        return socket.connect(&to);
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        result => {
            socket.set_nonblocking(false)?;
            return result;
        }
    }
    let stands = wait_until_connected(socket, timeout);
    socket.set_nonblocking(false)?;
    stands
}

/// Waits as an event loop does.
fn wait_until_connected(socket: &Socket, timeout: Duration) -> std::io::Result<()> {
    let mut fd = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one descriptor, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut fd, 1, timeout) };
    match socket.take_error()? {
        Some(error) => Err(error),
        None if ready < 1 => Err(ErrorKind::TimedOut.into()),
        None => Ok(()),
    }
}

/// Undoes a connect(2); the socket can be connected again.
pub(super) fn dissolve(socket: &Socket) -> std::io::Result<()> {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: an open descriptor and an address that lives through the call.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const unspecified,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn as_asked(args: &Args, address: SocketAddr) -> SockAddr {
    match address {
        SocketAddr::V4(v4) if args.mapped => {
            SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()).into()
        }
        address => address.into(),
    }
}

/// Whether a byte comes back, after all that came back before it. So what was sent is acknowledged
/// by then, and nothing is left unread.
fn is_alive(mut socket: &Socket) -> bool {
    let mut buffer = [0; 4096];
    if socket.write_all(b".").is_err() {
        return false;
    }
    loop {
        match socket.read(&mut buffer) {
            Ok(read) if read > 0 && buffer[read - 1] == b'.' => return true,
            Ok(read) if read > 0 => {}
            _ => return false,
        }
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
