//! What an operator is told of TLS that failed, seldom enough not to be drowned in it.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::identity::SpiffeId;
use crate::snapshot::ClusterView;

/// At most so many lines in [`PERIOD`].
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Counts lines, and those that were left out.
#[derive(Debug)]
struct Limit {
    began: Option<Instant>,
    lines: u32,
    omitted: u64,
}

static LIMIT: Mutex<Limit> = Mutex::new(Limit {
    began: None,
    lines: 0,
    omitted: 0,
});

/// How many lines were left out before this one; `None`: this one is left out, too.
pub(in crate::proxy) fn permitted() -> Option<u64> {
    let mut limit = LIMIT
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let now = Instant::now();
    if limit.began.is_none_or(|began| now - began > PERIOD) {
        limit.began = Some(now);
        limit.lines = 0;
    }
    if limit.lines == LINES {
        limit.omitted += 1;
        return None;
    }
    limit.lines += 1;
    Some(std::mem::take(&mut limit.omitted))
}

/// Of an endpoint.
pub(in crate::proxy) fn upstream(
    id: &SpiffeId,
    endpoint: SocketAddr,
    cluster: &ClusterView,
    error: &io::Error,
) {
    if let Some(omitted) = permitted() {
        let cluster = &cluster.config.name;
        let remedy = remedy(error);
        tracing::warn!(%id, %endpoint, %cluster, %error, remedy, omitted, "no TLS to an endpoint");
    }
}

/// Of a client.
pub(in crate::proxy) fn downstream(
    id: &SpiffeId,
    client: SocketAddr,
    listener: &str,
    error: &io::Error,
) {
    if let Some(omitted) = permitted() {
        let remedy = remedy(error);
        tracing::warn!(%id, %client, listener, %error, remedy, omitted, "no TLS with a client");
    }
}

/// What to look at first.
fn remedy(error: &io::Error) -> &'static str {
    let tls = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)) => {
            "the peer's certificate was not renewed in time; compare the clocks, too"
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "the peer's authority is not among the roots: are both of one mesh?"
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked)) => {
            "the peer's certificate was revoked"
        }
        Some(rustls::Error::General(_)) => {
            "the peer is another workload than the configuration asks for"
        }
        Some(rustls::Error::AlertReceived(_)) => "the peer refused; its own log says why",
        Some(rustls::Error::InvalidMessage(_)) => "the peer does not speak TLS on this port",
        _ => "see mesh-agent certs",
    }
}
