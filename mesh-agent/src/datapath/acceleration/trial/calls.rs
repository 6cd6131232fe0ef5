//! System calls as applications make them, which the standard library does not offer.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::pipe2;

/// FIONREAD.
pub(super) fn readable_bytes(socket: &TcpStream) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}

/// recv(2); `None`: there is nothing now.
pub(super) fn receive(
    socket: &TcpStream,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> io::Result<Option<usize>> {
    match recv(socket.as_raw_fd(), buffer, flags) {
        Ok(read) => Ok(Some(read)),
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// send(2)
pub(super) fn send(socket: &TcpStream, bytes: &[u8], flags: MsgFlags) -> io::Result<usize> {
    Ok(nix::sys::socket::send(socket.as_raw_fd(), bytes, flags)?)
}

/// Whether urgent bytes arrive in time.
pub(super) fn has_urgent(socket: &TcpStream, limit: Duration) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLPRI)];
    Ok(poll(&mut fds, PollTimeout::try_from(limit)?)? > 0)
}

/// One splice(2) into a pipe; 0: it sees nothing.
pub(super) fn splice_to_pipe(socket: &TcpStream, bytes: usize) -> io::Result<usize> {
    let (_out, into) = pipe2(OFlag::O_CLOEXEC)?;
    match nix::fcntl::splice(
        socket,
        None,
        &into,
        None,
        bytes,
        SpliceFFlags::SPLICE_F_NONBLOCK,
    ) {
        Ok(moved) => Ok(moved),
        Err(Errno::EAGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// An edge-triggered watch of one socket.
pub(super) struct Epoll(OwnedFd);

impl Epoll {
    pub(super) fn edges(socket: &TcpStream) -> io::Result<Self> {
        // SAFETY: a plain number.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32,
            u64: 0,
        };
        // SAFETY: the event lives through the call.
        let result = unsafe {
            libc::epoll_ctl(
                epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &raw mut event,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(epoll))
    }

    /// Whether there is an edge in time.
    pub(super) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: the kernel writes at most one event.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                &raw mut event,
                1,
                i32::try_from(limit.as_millis()).unwrap_or(i32::MAX),
            )
        };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(count > 0)
    }
}
