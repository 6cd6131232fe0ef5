//! Pipes that carry bytes from socket to socket without copying them into this process.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Asked for a pipe's capacity; the kernel may give less.
const CAPACITY: usize = 512 << 10;

/// A pipe and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    filled: usize,
}

impl Pipe {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new() -> io::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Users with many pipes may be refused more memory; the default will do.
        let size = i32::try_from(CAPACITY).unwrap_or(i32::MAX);
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(size));
        Ok(Self {
            out,
            into,
            filled: 0,
        })
    }

    /// Bytes in it.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Takes what the socket has; to be called when the pipe is empty, because a full pipe looks
    /// like an empty socket. 0: the peer has ended.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is broken.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let read = from.try_io(Interest::READABLE, || {
            Ok(splice(from, None, &self.into, None, CAPACITY, flags())?)
        })?;
        self.filled += read;
        Ok(read)
    }

    /// Hands the socket what it takes.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is broken.
    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let written = to.try_io(Interest::WRITABLE, || {
            Ok(splice(&self.out, None, to, None, self.filled, flags())?)
        })?;
        self.filled -= written;
        Ok(written)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}
