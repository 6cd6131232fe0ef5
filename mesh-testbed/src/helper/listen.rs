//! What the servers have in common.

use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use clap::Args;
use mesh_testbed::wire::Ready;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Where and how a server listens.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Its address; unspecified IPv6 takes IPv4 too.
    #[arg(long, default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    ip: IpAddr,
    /// Its port; 0 takes a free one, which the first line of the output tells.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Listen for multipath TCP, as programs written in Go do.
    #[arg(long)]
    mptcp: bool,
}

impl Listen {
    /// Listens, and says so on standard output.
    pub(crate) fn start(&self) -> Result<TcpListener> {
        let address = SocketAddr::new(self.ip, self.port);
        let protocol = if self.mptcp {
            Protocol::MPTCP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))
            .context("cannot make a socket")?;
        if self.ip.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket
            .bind(&address.into())
            .with_context(|| format!("cannot bind {address}"))?;
        socket.listen(4096)?;
        let listener = TcpListener::from_std(socket.into())?;
        print_line(&Ready {
            listening: listener.local_addr()?,
        })?;
        Ok(listener)
    }
}

/// One line of JSON.
pub(crate) fn print_line(value: &impl serde::Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Peer and own address of a connection, v4-mapped ones as IPv4.
pub(crate) fn ends(stream: &TcpStream) -> std::io::Result<(SocketAddr, SocketAddr)> {
    Ok((
        canonical(stream.peer_addr()?),
        canonical(stream.local_addr()?),
    ))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
