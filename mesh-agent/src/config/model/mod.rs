//! The validated configuration model: what the rest of the agent reads.
//!
//! One value here stands for one xDS resource. References to other resources (a route's cluster,
//! a listener's RDS name) are names; [`crate::snapshot`] resolves them. Whatever can be compiled
//! once per configuration (regexes, header names, percentages) is compiled here, so that nothing
//! is left to do per request.

pub mod access_log;
pub mod client_weights;
pub mod cluster;
pub mod domains;
pub mod endpoint;
pub mod filter;
pub mod hash;
pub mod hbone;
pub mod headers;
pub mod health_check;
pub mod internal_redirect;
pub mod listener;
pub mod local_reply;
pub mod matcher;
pub mod mirror;
pub mod outlier;
pub mod path_template;
pub mod rate_limit;
pub mod response_flag;
pub mod retry;
pub mod route;
pub mod secret;
pub mod tls;
pub mod workload;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A resource's name, shared by everything that refers to it.
pub type Name = Arc<str>;

/// An address as configured: a literal socket address or a host name to resolve.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A literal IP address and port.
    Socket(SocketAddr),
    /// A DNS name and port (STRICT_DNS, LOGICAL_DNS clusters).
    Hostname {
        /// The DNS name.
        host: Arc<str>,
        /// The port.
        port: u16,
    },
    /// A Unix socket: of a discovery server; no traffic goes there.
    Pipe(Arc<str>),
}

impl Address {
    /// The literal address, if it is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Hostname { .. } | Self::Pipe(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Hostname { host, port } => write!(f, "{host}:{port}"),
            Self::Pipe(path) => write!(f, "unix:{path}"),
        }
    }
}

/// Makes `::ffff:a.b.c.d` into `a.b.c.d`; leaves every other address alone.
pub fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// A share of traffic, as Envoy's `FractionalPercent` or `RuntimeFractionalPercent` default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// How many of `denominator`.
    pub numerator: u32,
    /// 100, 10,000 or 1,000,000.
    pub denominator: u32,
}

impl Fraction {
    /// Everything.
    pub const ALWAYS: Self = Self {
        numerator: 100,
        denominator: 100,
    };

    /// Whether a uniformly random value falls into the share.
    pub fn holds(self, random: u64) -> bool {
        random % u64::from(self.denominator) < u64::from(self.numerator)
    }
}
