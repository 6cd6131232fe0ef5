//! What the control loop does about certificates: says who needs which, from where.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;

use crate::cli::identity::{IdentityArgs, Source};
use crate::config::model::Name;
use crate::config::model::secret::{Material, SecretServer, SecretSource};
use crate::config::model::tls::CommonTls;
use crate::config::model::workload::Workload;
use crate::identity::files::Files;
use crate::identity::{Authority, Keeper, SdsAuthority, SharedCredentials, SpiffeId};
use crate::source::file;
use crate::source::xds::{SecretDiscovery, Server, Sight};
use crate::store::ResourceSet;

/// Every source of certificates of the node.
#[derive(Debug)]
pub(crate) struct Certificates {
    trust_domain: Arc<str>,
    credentials: SharedCredentials,
    /// Identities of the pods; `None`: nobody signs any.
    pub(crate) keeper: Option<Keeper>,
    /// Files that contexts name.
    pub(crate) files: Files,
    /// Secrets at servers of their own.
    pub(crate) discovery: SecretDiscovery,
    /// The server that identities come from.
    sds: Option<SdsAuthority>,
    identities: BTreeSet<SpiffeId>,
    /// Secrets that contexts name.
    named: BTreeSet<(SecretServer, Name)>,
    /// Which resources were looked at.
    seen: Vec<[usize; 4]>,
}

impl Certificates {
    /// Begins with what the flags say.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub(super) fn start(args: &IdentityArgs, node: Node) -> anyhow::Result<Self> {
        let credentials = SharedCredentials::default();
        let discovery = SecretDiscovery::new(node, credentials.clone());
        let (authority, sds) = match args.source()? {
            Source::Nobody => (None, None),
            Source::Authority(authority) => (Some(*authority), None),
            Source::Sds(target) => {
                let sds = SdsAuthority {
                    server: SecretServer::Target(target),
                    roots: format!("spiffe://{}", args.trust_domain).into(),
                    delivered: discovery.delivered(),
                };
                (Some(Authority::Sds(sds.clone())), Some(sds))
            }
        };
        let keeper = authority.map(|one| Keeper::start(one, args.cert_ttl, credentials.clone()));
        Ok(Self {
            trust_domain: args.trust_domain.as_str().into(),
            files: Files::new(credentials.clone()),
            credentials,
            keeper,
            discovery,
            sds,
            identities: BTreeSet::new(),
            named: BTreeSet::new(),
            seen: Vec::new(),
        })
    }

    /// What the proxy reads.
    pub(crate) fn credentials(&self) -> &SharedCredentials {
        &self.credentials
    }

    /// Says whose certificates are needed: of the pods that are here.
    pub(super) fn want_identities(&mut self, workloads: &[Arc<Workload>], sight: &Sight) {
        let Some(keeper) = &self.keeper else {
            return;
        };
        let there = workloads
            .iter()
            .filter(|workload| workload.netns.path().exists());
        let identities: BTreeSet<SpiffeId> = there
            .map(|workload| SpiffeId::of(workload, &self.trust_domain))
            .collect();
        keeper.want(identities.clone());
        if identities != self.identities {
            self.identities = identities;
            self.ask(sight);
        }
    }

    /// Says which files and secrets the configuration names.
    pub(super) fn want_named(&mut self, sight: &Sight) {
        fn place<T>(one: &Arc<T>) -> usize {
            Arc::as_ptr(one).addr()
        }
        let delivered = &self.credentials.load().secrets;
        let seen: Vec<[usize; 4]> = sight
            .views
            .iter()
            .map(|(_, all)| {
                [
                    place(&all.clusters),
                    place(&all.listeners),
                    place(&all.secrets),
                    place(delivered),
                ]
            })
            .collect();
        if seen == self.seen {
            return;
        }
        let mut files = HashSet::new();
        let mut named = BTreeSet::new();
        for (_, resources) in &sight.views {
            name(resources, &mut files, &mut named);
        }
        for secret in delivered.values() {
            files.extend(secret.value.files());
        }
        self.files.want(&files);
        self.named = named;
        self.seen = seen;
        self.ask(sight);
    }

    /// Asks servers for what contexts name and identities need.
    fn ask(&mut self, sight: &Sight) {
        let mut wanted = self.named.clone();
        if let Some(sds) = &self.sds {
            let ids = self.identities.iter().map(|id| id.as_str().into());
            let names = ids.chain([sds.roots.clone()]);
            wanted.extend(names.map(|name| (sds.server.clone(), name)));
        }
        let locate = |server: &SecretServer| match server {
            SecretServer::Target(target) => Some(Server {
                address: target.to_string(),
                ..Server::default()
            }),
            SecretServer::Cluster(name) => {
                let mut views = sight.views.iter();
                let cluster = views.find_map(|(_, all)| all.clusters.get(name))?;
                file::server_of(&cluster.value)
            }
        };
        self.discovery.want(&wanted, locate);
    }

    /// Reads files that changed.
    pub(super) fn look(&mut self) {
        self.files.look();
    }
}

/// What the contexts of a view name.
fn name(
    resources: &ResourceSet,
    files: &mut HashSet<Material>,
    named: &mut BTreeSet<(SecretServer, Name)>,
) {
    let clusters = resources.clusters.values().flat_map(|one| one.value.tls());
    let listeners = resources.listeners.values().flat_map(|one| one.value.tls());
    let mut context = |tls: &CommonTls| {
        files.extend(tls.files());
        for secret in tls.secrets().into_iter().flatten() {
            if let SecretSource::Server(server) = &secret.source {
                named.insert((server.clone(), secret.name.clone()));
            }
        }
    };
    clusters.for_each(&mut context);
    listeners.for_each(&mut context);
    for secret in resources.secrets.values() {
        files.extend(secret.value.value.files());
    }
}
