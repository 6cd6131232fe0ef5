//! Sockets of a pod, held by the test itself.
//!
//! A socket belongs to the cgroup and the namespace of the process that made it, for good. So a
//! process in the pod makes it and hands it over, and whatever the test then does with it is
//! what the pod does: its connect(2) is caught.

use std::io::IoSliceMut;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Socket};

use crate::Pod;
use crate::server::helper;

/// Most descriptors in one message (`SCM_MAX_FD` is 253).
pub const BATCH: usize = 200;
/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which protocol a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain TCP.
    Tcp,
    /// Multipath TCP.
    Mptcp,
}

impl Pod {
    /// Fresh stream sockets of the pod, not connected.
    ///
    /// # Errors
    /// The helper program cannot be started, or the kernel has no such protocol.
    pub fn sockets(&self, domain: Domain, kind: Kind, count: usize) -> Result<Vec<Socket>> {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let mut command = helper(self)?;
        command
            .args(["sockets", "--count", &count.to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        if domain == Domain::IPV6 {
            command.arg("--ipv6");
        }
        if kind == Kind::Mptcp {
            command.arg("--mptcp");
        }
        let mut child = command.spawn().context("cannot start the helper")?;
        // The child's end of the pair is open in `command` too, and would hide that it ended.
        drop(command);
        let received = receive(&ours, count);
        let status = child.wait()?;
        let sockets = received?;
        ensure!(
            status.success() && sockets.len() == count,
            "{} of {count} sockets were made: {status}",
            sockets.len()
        );
        Ok(sockets)
    }

    /// A fresh socket of the family of `to`.
    ///
    /// # Errors
    /// As [`Self::sockets`].
    pub fn socket(&self, to: SocketAddr) -> Result<Socket> {
        let mut sockets = self.sockets(Domain::for_address(to), Kind::Tcp, 1)?;
        sockets.pop().context("one socket was asked for")
    }

    /// A connection of the pod, with read and write timeouts that keep a test from hanging.
    ///
    /// # Errors
    /// As [`Self::sockets`], or it is refused.
    pub fn dial(&self, to: SocketAddr) -> Result<TcpStream> {
        let socket = self.socket(to)?;
        socket
            .connect_timeout(&to.into(), PATIENCE)
            .with_context(|| format!("cannot connect to {to}"))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

fn receive(from: &UnixStream, count: usize) -> Result<Vec<Socket>> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let mut byte = [0];
        let mut space = nix::cmsg_space!([i32; BATCH]);
        let mut data = [IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(from.as_raw_fd(), &mut data, Some(&mut space), flags)
            .context("cannot receive sockets")?;
        if message.bytes == 0 {
            break;
        }
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for us.
                sockets.extend(fds.into_iter().map(|fd| unsafe { Socket::from_raw_fd(fd) }));
            }
        }
    }
    Ok(sockets)
}
