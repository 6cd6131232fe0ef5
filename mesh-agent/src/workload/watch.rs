//! Notices when a pod's network namespace ends or its addresses change.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::config::model::workload::NetnsSource;

use super::Netns;

/// Device and inode of a namespace: equal for equal namespaces, as `ls -i /proc/*/ns/net` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetnsIdentity {
    device: u64,
    inode: u64,
}

impl NetnsSource {
    /// Where the namespace can be opened.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        }
    }

    /// Which namespace is there now.
    ///
    /// # Errors
    /// There is none.
    pub fn identity(&self) -> io::Result<NetnsIdentity> {
        let metadata = fs::metadata(self.path())?;
        Ok(NetnsIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// A subscription to address changes of one namespace.
#[derive(Debug)]
pub(super) struct AddressWatch {
    socket: fs::File,
}

impl AddressWatch {
    /// Subscribes inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel has no route netlink.
    pub(super) fn new(netns: &Netns) -> io::Result<Self> {
        let socket = netns.enter(|| -> io::Result<OwnedFd> {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            // SAFETY: no pointers.
            let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new and nobody else's.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: plain old data.
            let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;
            // SAFETY: the address lives during the call and has the size given.
            let result = unsafe {
                libc::bind(
                    fd,
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_nl>() as libc::socklen_t,
                )
            };
            if result == 0 {
                Ok(socket)
            } else {
                Err(io::Error::last_os_error())
            }
        })??;
        Ok(Self {
            socket: socket.into(),
        })
    }

    /// Whether anything changed since the last call. Never blocks.
    pub(super) fn changed(&mut self) -> bool {
        let mut buffer = [0_u8; 4096];
        let mut changed = false;
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return changed,
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
                // ENOBUFS: messages were lost, so something changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(_) => return changed,
            }
        }
    }
}
