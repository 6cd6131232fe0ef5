//! One question to the system's name servers and `/etc/hosts`.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Instant;

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::{ProtoError, ProtoErrorKind};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{ResolveError, TokioResolver};
use parking_lot::Mutex;

use crate::config::model::cluster::DnsLookupFamily;

/// The files the system's resolver is set up with.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Why a name has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The system's configuration is wrong.
    #[error(
        "cannot read /etc/resolv.conf: {0}; it must name a server, as in \"nameserver 10.96.0.10\""
    )]
    System(#[source] ResolveError),
    /// No server answered.
    #[error("cannot resolve {host}: {source}; are the name servers of /etc/resolv.conf reachable?")]
    Lookup {
        /// The name.
        host: Box<str>,
        /// Why.
        source: ResolveError,
    },
}

/// What a name resolved to.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Empty when the servers say that there is no such name or address.
    pub(super) addresses: Vec<IpAddr>,
    /// When the records' TTL is over.
    pub(super) valid_until: Option<Instant>,
}

/// Asks the system's name servers, `/etc/hosts` first.
#[derive(Debug)]
pub struct Resolver {
    setup: Setup,
}

#[derive(Debug)]
enum Setup {
    /// Read again when the files changed.
    System(Mutex<Option<(FilesIdentity, Arc<Clients>)>>),
    #[cfg(test)]
    Fixed(Arc<Clients>),
}

type FilesIdentity = [Option<(u64, i64, i64, u64)>; SYSTEM_FILES.len()];

impl Resolver {
    /// The system's: `/etc/resolv.conf` and `/etc/hosts`, followed when they change.
    pub fn system() -> Self {
        Self {
            setup: Setup::System(Mutex::new(None)),
        }
    }

    /// One with servers of its own and without `/etc/hosts`.
    #[cfg(test)]
    pub(super) fn with(config: ResolverConfig, mut options: ResolverOpts) -> Self {
        options.use_hosts_file = ResolveHosts::Never;
        Self {
            setup: Setup::Fixed(Arc::new(Clients::new(config, options))),
        }
    }

    /// Asks once.
    pub(super) async fn resolve(
        &self,
        host: &str,
        family: DnsLookupFamily,
    ) -> Result<Resolved, DnsError> {
        let clients = self.clients()?;
        match clients.of(family).lookup_ip(host).await {
            Ok(lookup) => Ok(Resolved {
                addresses: lookup.iter().collect(),
                valid_until: Some(lookup.valid_until()),
            }),
            // As Envoy: a server's word that there is nothing is an answer, not a failure.
            Err(error) if error.proto().is_some_and(says_there_is_none) => Ok(Resolved {
                addresses: Vec::new(),
                valid_until: None,
            }),
            Err(source) => Err(DnsError::Lookup {
                host: host.into(),
                source,
            }),
        }
    }

    fn clients(&self) -> Result<Arc<Clients>, DnsError> {
        match &self.setup {
            #[cfg(test)]
            Setup::Fixed(clients) => Ok(clients.clone()),
            Setup::System(current) => {
                let now = files_identity();
                let mut current = current.lock();
                if let Some((identity, clients)) = &*current
                    && *identity == now
                {
                    return Ok(clients.clone());
                }
                let (config, options) = read_system_conf().map_err(DnsError::System)?;
                let clients = Arc::new(Clients::new(config, options));
                *current = Some((now, clients.clone()));
                Ok(clients)
            }
        }
    }
}

fn files_identity() -> FilesIdentity {
    SYSTEM_FILES.map(|file| {
        let file = fs::metadata(file).ok()?;
        Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
    })
}

fn says_there_is_none(error: &ProtoError) -> bool {
    matches!(
        error.kind(),
        ProtoErrorKind::NoRecordsFound {
            response_code: ResponseCode::NXDomain | ResponseCode::NoError,
            ..
        }
    )
}

/// One client a lookup family: the family is a setting of the whole client.
#[derive(Debug)]
struct Clients([TokioResolver; 5]);

impl Clients {
    fn new(config: ResolverConfig, mut options: ResolverOpts) -> Self {
        // The refresh rate decides how old an answer may be.
        options.cache_size = 0;
        if options.use_hosts_file != ResolveHosts::Never {
            options.use_hosts_file = ResolveHosts::Always;
        }
        let client = |strategy| {
            let provider = TokioConnectionProvider::default();
            let mut builder = TokioResolver::builder_with_config(config.clone(), provider)
                .with_options(options.clone());
            builder.options_mut().ip_strategy = strategy;
            builder.build()
        };
        Self([
            client(LookupIpStrategy::Ipv6thenIpv4),
            client(LookupIpStrategy::Ipv4Only),
            client(LookupIpStrategy::Ipv6Only),
            client(LookupIpStrategy::Ipv4thenIpv6),
            client(LookupIpStrategy::Ipv4AndIpv6),
        ])
    }

    fn of(&self, family: DnsLookupFamily) -> &TokioResolver {
        let [auto, v4, v6, v4_preferred, all] = &self.0;
        match family {
            DnsLookupFamily::Auto => auto,
            DnsLookupFamily::V4Only => v4,
            DnsLookupFamily::V6Only => v6,
            DnsLookupFamily::V4Preferred => v4_preferred,
            DnsLookupFamily::All => all,
        }
    }
}
