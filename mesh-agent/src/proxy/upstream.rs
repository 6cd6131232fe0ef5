//! Connections to endpoints, made in the pod's own network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, TcpKeepalive as Keepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::config::model::cluster::{Cluster, TcpKeepalive};
use crate::workload::Pod;

/// How an upstream connection is made.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) timeout: Duration,
    pub(super) source: Option<IpAddr>,
    pub(super) keepalive: Option<TcpKeepalive>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            source: None,
            keepalive: None,
        }
    }
}

impl From<&Cluster> for Options {
    fn from(cluster: &Cluster) -> Self {
        Self {
            timeout: cluster.connect_timeout,
            source: cluster.source_address,
            keepalive: cluster.tcp_keepalive.clone(),
        }
    }
}

/// Connects from inside the pod, so that its address, routes and network policies hold.
///
/// # Errors
/// The endpoint refuses or does not answer in time (`TimedOut`).
pub(super) async fn connect(
    pod: &Pod,
    address: SocketAddr,
    options: &Options,
) -> io::Result<TcpStream> {
    let socket = pod.netns.tcp_socket(Domain::for_address(address))?;
    if let Some(keepalive) = &options.keepalive {
        let mut settings = Keepalive::new();
        if let Some(time) = keepalive.time {
            settings = settings.with_time(time);
        }
        if let Some(interval) = keepalive.interval {
            settings = settings.with_interval(interval);
        }
        if let Some(probes) = keepalive.probes {
            settings = settings.with_retries(probes);
        }
        socket.set_tcp_keepalive(&settings)?;
    }
    let source = options
        .source
        .filter(|source| source.is_ipv4() == address.is_ipv4());
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(address);
    let stream = tokio::time::timeout(options.timeout, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
