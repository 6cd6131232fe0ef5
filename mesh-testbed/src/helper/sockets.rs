//! `sockets`: makes sockets and hands them over the Unix socket that is its standard input.

use std::io::IoSlice;
use std::os::fd::{AsRawFd as _, RawFd};

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;
use mesh_testbed::SOCKET_BATCH;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// How many.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// AF_INET6 instead of AF_INET.
    #[arg(long)]
    ipv6: bool,
    /// Multipath TCP.
    #[arg(long)]
    mptcp: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let domain = if args.ipv6 {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let protocol = if args.mptcp {
        Protocol::MPTCP
    } else {
        Protocol::TCP
    };
    let mut left = args.count;
    while left > 0 {
        let batch = (0..left.min(SOCKET_BATCH))
            .map(|_| Socket::new(domain, Type::STREAM, Some(protocol)))
            .collect::<std::io::Result<Vec<_>>>()
            .context("cannot make a socket")?;
        let fds: Vec<RawFd> = batch.iter().map(|socket| socket.as_raw_fd()).collect();
        sendmsg::<()>(
            std::io::stdin().as_raw_fd(),
            &[IoSlice::new(&[0])],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .context("standard input is no Unix socket")?;
        left -= batch.len();
    }
    Ok(())
}
