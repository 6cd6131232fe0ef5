//! The listening sockets inside a pod: 15001 for what it sends, 15006 for what it receives, 15008
//! for tunnels.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use mesh_common::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use socket2::{Domain, Protocol, Socket, Type};

use crate::proxy::{ListenerKind, PodListener};

use super::Netns;

/// Connections the kernel completes before the agent accepts them; capped by
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why a pod's listeners could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error(
        "port {port} is taken inside the pod: a sidecar or another agent is running there; remove \
         it (for Istio: sidecar injection) or take the pod off the list of workloads"
    )]
    Taken {
        /// 15001, 15006 or 15008.
        port: u16,
    },
    /// The kernel refused.
    #[error("cannot listen on {address} inside the pod: {reason}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: io::Error,
    },
    /// The namespace is gone or may not be entered.
    #[error("cannot enter the network namespace: {0}; the agent needs CAP_SYS_ADMIN")]
    Enter(#[source] io::Error),
}

/// Listening sockets for every worker; the kernel spreads connections over them.
///
/// # Errors
/// See [`ListenError`].
pub fn listen(netns: &Netns, workers: usize) -> Result<Vec<Vec<PodListener>>, ListenError> {
    netns
        .enter(|| (0..workers).map(|_| listen_here()).collect())
        .map_err(ListenError::Enter)?
}

fn listen_here() -> Result<Vec<PodListener>, ListenError> {
    let outbound =
        |ip: std::net::IpAddr| (ListenerKind::Outbound, SocketAddr::new(ip, OUTBOUND_PORT));
    let inbound = |ip: std::net::IpAddr| (ListenerKind::Inbound, SocketAddr::new(ip, INBOUND_PORT));
    let hbone = |ip: std::net::IpAddr| (ListenerKind::Hbone, SocketAddr::new(ip, HBONE_PORT));
    // The inbound listeners take both families, so that one socket per worker is enough; the
    // outbound ones are on loopback, out of reach of other hosts.
    let wanted = if has_ipv6() {
        vec![
            outbound(Ipv4Addr::LOCALHOST.into()),
            outbound(Ipv6Addr::LOCALHOST.into()),
            inbound(Ipv6Addr::UNSPECIFIED.into()),
            hbone(Ipv6Addr::UNSPECIFIED.into()),
        ]
    } else {
        vec![
            outbound(Ipv4Addr::LOCALHOST.into()),
            inbound(Ipv4Addr::UNSPECIFIED.into()),
            hbone(Ipv4Addr::UNSPECIFIED.into()),
        ]
    };
    wanted
        .into_iter()
        .map(|(kind, address)| {
            let socket = bind(address).map_err(|reason| match reason.kind() {
                io::ErrorKind::AddrInUse => ListenError::Taken {
                    port: address.port(),
                },
                _ => ListenError::Other { address, reason },
            })?;
            Ok(PodListener { kind, socket })
        })
        .collect()
}

/// Whether `::1` exists here: a pod may have IPv6 turned off.
fn has_ipv6() -> bool {
    let probe = || -> io::Result<()> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into())
    };
    probe().is_ok()
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
