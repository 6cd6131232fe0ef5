//! What an operator is told of TLS that failed, seldom enough not to be drowned in it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::identity::SpiffeId;
use crate::snapshot::ClusterView;

use super::Refused;

/// At most so many lines of one kind in [`PERIOD`]: what strangers send to a port does not keep
/// trouble between workloads from being told.
const LINES: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

/// Counts lines, and those that were left out.
#[derive(Debug)]
struct Limit {
    began: Instant,
    lines: u32,
    omitted: u64,
}

/// By what is to be done; there are few such texts.
static LIMITS: Mutex<BTreeMap<&'static str, Limit>> = Mutex::new(BTreeMap::new());

/// How many lines of a kind were left out before this one; `None`: this one is left out, too.
pub(in crate::proxy) fn permitted(kind: &'static str) -> Option<u64> {
    let mut limits = LIMITS
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let now = Instant::now();
    let limit = limits.entry(kind).or_insert(Limit {
        began: now,
        lines: 0,
        omitted: 0,
    });
    if now - limit.began > PERIOD {
        limit.began = now;
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
    refused: Option<&Refused>,
    error: &io::Error,
) {
    let remedy = remedy(error);
    if let Some(omitted) = permitted(remedy) {
        let (cluster, peer) = (&cluster.config.name, names(refused));
        tracing::warn!(%id, %peer, %endpoint, %cluster, %error, remedy, omitted, "no TLS to an endpoint");
    }
}

/// Who the peer says it is.
fn names(refused: Option<&Refused>) -> String {
    match refused {
        Some(refused) if refused.names.is_empty() => "nameless".into(),
        Some(refused) => refused.names.join(","),
        None => "unknown".into(),
    }
}

/// Of a client.
pub(in crate::proxy) fn downstream(
    id: &SpiffeId,
    client: SocketAddr,
    listener: &str,
    refused: Option<&Refused>,
    error: &io::Error,
) {
    let remedy = remedy(error);
    if let Some(omitted) = permitted(remedy) {
        let peer = names(refused);
        tracing::warn!(%id, %peer, %client, listener, %error, remedy, omitted, "no TLS with a client");
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
        Some(rustls::Error::NoCertificatesPresented) => {
            "the peer shows no certificate, and the policy here is STRICT: is it in the mesh?"
        }
        Some(rustls::Error::PeerIncompatible(_)) => {
            "the peer speaks no version, suite or key exchange that is allowed here"
        }
        _ if error.kind() == io::ErrorKind::TimedOut => {
            "the peer did not finish the handshake in time"
        }
        _ => "see mesh-agent certs",
    }
}
