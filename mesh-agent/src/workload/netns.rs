//! Network namespaces: opened once, entered for single system calls.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

/// The namespace the agent runs in, opened before any switch.
static HOME: OnceLock<File> = OnceLock::new();

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    cookie: u64,
}

impl Netns {
    /// Opens a namespace by path, for example `/var/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// The path cannot be opened, is not a network namespace, or the caller may not enter it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let socket = within(file.as_fd(), || {
            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
        })??;
        let cookie = socket.cookie_of_netns()?;
        Ok(Self { file, cookie })
    }

    /// The namespace this thread is in.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The kernel's number of the namespace (`SO_NETNS_COOKIE`, kernel >= 5.14), never reused.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `f` with this thread inside the namespace. `f` must not block for long, must not
    /// await and must not start threads.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        within(self.file.as_fd(), f)
    }

    /// A TCP socket that belongs to the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered or has no such address family.
    pub fn tcp_socket(&self, domain: Domain) -> io::Result<Socket> {
        self.enter(|| {
            Socket::new(
                domain,
                Type::STREAM.nonblocking().cloexec(),
                Some(Protocol::TCP),
            )
        })?
    }

    /// Addresses of the namespace, loopback and link-local ones left out.
    ///
    /// # Errors
    /// The namespace cannot be entered or its interfaces cannot be listed.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let interfaces = self
            .enter(nix::ifaddrs::getifaddrs)?
            .map_err(io::Error::from)?;
        let mut addresses: Vec<IpAddr> = interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                if let Some(v4) = address.as_sockaddr_in() {
                    return Some(IpAddr::V4(v4.ip()));
                }
                address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
            })
            .filter(|ip| match ip {
                IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
                IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
            })
            .collect();
        addresses.sort();
        addresses.dedup();
        Ok(addresses)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads a socket's `SO_NETNS_COOKIE`.
trait NetnsCookie {
    fn cookie_of_netns(&self) -> io::Result<u64>;
}

impl NetnsCookie for Socket {
    fn cookie_of_netns(&self) -> io::Result<u64> {
        const SO_NETNS_COOKIE: libc::c_int = 71;
        let mut cookie = 0u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to `cookie`, which lives on.
        let result = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            Ok(cookie)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Switches this thread into `target`, runs `f`, and switches back.
fn within<T>(target: BorrowedFd<'_>, f: impl FnOnce() -> T) -> io::Result<T> {
    let home = match HOME.get() {
        Some(home) => home,
        None => {
            let file = File::open("/proc/self/ns/net")?;
            HOME.get_or_init(|| file)
        }
    };
    setns(target, CloneFlags::CLONE_NEWNET)?;
    let back = Home(home);
    let result = f();
    drop(back);
    Ok(result)
}

/// Brings the thread home, also when the closure panics.
struct Home(&'static File);

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // A thread left in a pod would open the next pod's sockets in the wrong place.
            eprintln!("cannot return to the agent's network namespace: {error}; stopping");
            std::process::abort();
        }
    }
}
