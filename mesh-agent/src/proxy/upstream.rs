//! Connections to endpoints, made in the pod's own network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, TcpKeepalive as Keepalive};
use tokio::net::TcpStream;

use crate::config::model::cluster::{Cluster, TcpKeepalive};
use crate::workload::Pod;

use super::worker::reset;

/// How an upstream connection is made.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) timeout: Duration,
    pub(super) sources: Arc<[IpAddr]>,
    pub(super) keepalive: Option<TcpKeepalive>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            sources: Arc::default(),
            keepalive: None,
        }
    }
}

impl From<&Cluster> for Options {
    fn from(cluster: &Cluster) -> Self {
        Self {
            timeout: cluster.connect_timeout,
            sources: cluster.source_addresses.clone(),
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
    let mut sources = options.sources.iter();
    if let Some(source) = sources.find(|source| source.is_ipv4() == address.is_ipv4()) {
        socket.bind(&SocketAddr::new(*source, 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let connecting = Connecting(Some(TcpStream::from_std(socket.into())?));
    tokio::time::timeout(options.timeout, connecting.stand())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// A connection in the making. Given up, it is reset: it may stand already, and an orderly end
/// would tell the endpoint that its client had nothing to say.
struct Connecting(Option<TcpStream>);

impl Connecting {
    async fn stand(mut self) -> io::Result<TcpStream> {
        if let Some(stream) = &self.0 {
            stream.writable().await?;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
        }
        self.0
            .take()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            reset(stream);
        }
    }
}
