//! How handshakes went, named as Envoy's `ssl` statistics of listeners and clusters.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; every increment is relaxed.
#[derive(Debug, Default)]
pub struct SslStats {
    /// Handshakes that ended well.
    pub handshake: AtomicU64,
    /// Of them, those that went on with an earlier session.
    pub session_reused: AtomicU64,
    /// Handshakes that failed.
    pub connection_error: AtomicU64,
    /// Of them: the peer's chain is not trusted.
    pub fail_verify_error: AtomicU64,
    /// Of them: none of the peer's names will do.
    pub fail_verify_san: AtomicU64,
    /// Of them: the peer showed no certificate.
    pub fail_verify_no_cert: AtomicU64,
    /// Of them: the peer took too long.
    pub connect_timeout: AtomicU64,
}

/// What a peer was refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its chain.
    Chain,
    /// Its names.
    Name,
}

impl SslStats {
    /// A handshake ended well.
    pub fn stands(&self, resumed: bool) {
        self.handshake.fetch_add(1, Ordering::Relaxed);
        if resumed {
            self.session_reused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One failed.
    pub fn failed(&self, fault: Option<Fault>, error: &io::Error) {
        let tls = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<rustls::Error>());
        self.connection_error.fetch_add(1, Ordering::Relaxed);
        let more = match (fault, tls) {
            (Some(Fault::Chain), _) => &self.fail_verify_error,
            (Some(Fault::Name), _) => &self.fail_verify_san,
            (None, Some(rustls::Error::NoCertificatesPresented)) => &self.fail_verify_no_cert,
            (None, _) if error.kind() == io::ErrorKind::TimedOut => &self.connect_timeout,
            (None, _) => return,
        };
        more.fetch_add(1, Ordering::Relaxed);
    }

    /// Names and values.
    pub fn all(&self) -> [(&'static str, u64); 7] {
        [
            ("ssl_handshake", &self.handshake),
            ("ssl_session_reused", &self.session_reused),
            ("ssl_connection_error", &self.connection_error),
            ("ssl_fail_verify_error", &self.fail_verify_error),
            ("ssl_fail_verify_san", &self.fail_verify_san),
            ("ssl_fail_verify_no_cert", &self.fail_verify_no_cert),
            ("ssl_connect_timeout", &self.connect_timeout),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
    }
}
