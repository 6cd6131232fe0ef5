//! Arguments that say where configuration comes from when it is not a file.

use std::path::PathBuf;

use clap::ValueEnum;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};

use crate::source::file::Bootstrap;
use crate::source::xds::{Mode, Options, Scope, Server};

/// The management server, and who asks it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration by xDS")]
pub struct XdsArgs {
    /// The management server: `host:port`, `https://host:port` or `unix:/path`; without it, the
    /// one that `dynamic_resources` of the configuration names. Listeners,
    /// routes, clusters and endpoints come from there; --config still says which pods this node
    /// has.
    #[arg(long, env = "MESH_XDS", value_name = "ADDRESS")]
    pub xds: Option<String>,
    /// The protocol variant.
    #[arg(
        long,
        env = "MESH_XDS_MODE",
        value_name = "MODE",
        default_value = "delta"
    )]
    pub xds_mode: XdsMode,
    /// Who has a stream: the node, or each pod as if it had a sidecar.
    #[arg(
        long,
        env = "MESH_XDS_SCOPE",
        value_name = "SCOPE",
        default_value = "node"
    )]
    pub xds_scope: XdsScope,
    /// PEM file with the roots that the server's certificate must descend from. Turns TLS on.
    #[arg(long, env = "MESH_XDS_CA", value_name = "FILE")]
    pub xds_ca: Option<PathBuf>,
    /// PEM file with our certificate, for mutual TLS. With --xds-scope workload, {namespace} and
    /// {service_account} in the names of this, its key and the token stand for each pod's own.
    #[arg(long, env = "MESH_XDS_CERT", value_name = "FILE", requires = "xds_key")]
    pub xds_cert: Option<PathBuf>,
    /// PEM file with the key of --xds-cert.
    #[arg(long, env = "MESH_XDS_KEY", value_name = "FILE", requires = "xds_cert")]
    pub xds_key: Option<PathBuf>,
    /// File with a token (JWT) that says who we are; read anew for every stream.
    #[arg(long, env = "MESH_XDS_TOKEN", value_name = "FILE")]
    pub xds_token: Option<PathBuf>,
    /// The name in the server's certificate, if it is not that of the address (istiod's is
    /// `istiod.istio-system.svc`).
    #[arg(long, env = "MESH_XDS_SERVER_NAME", value_name = "NAME")]
    pub xds_server_name: Option<String>,
    /// The largest response taken, in MiB.
    #[arg(
        long,
        env = "MESH_XDS_MAX_MESSAGE_MIB",
        value_name = "MIB",
        default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub xds_max_message_mib: u16,
    /// Our id towards the server.
    #[arg(
        long,
        env = "MESH_NODE_ID",
        value_name = "ID",
        default_value = "mesh-agent"
    )]
    pub node_id: String,
    /// The id of the Kubernetes cluster, as istiod knows it.
    #[arg(
        long,
        env = "MESH_CLUSTER_ID",
        value_name = "ID",
        default_value = "Kubernetes"
    )]
    pub cluster_id: String,
    /// Our cluster towards the server.
    #[arg(
        long,
        env = "MESH_NODE_CLUSTER",
        value_name = "NAME",
        default_value = "mesh"
    )]
    pub node_cluster: String,
}

/// The protocol variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum XdsMode {
    /// Changes only.
    #[default]
    Delta,
    /// The state of the world with every response.
    Sotw,
}

/// Who has a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum XdsScope {
    /// The node: all pods see the same.
    #[default]
    Node,
    /// Each pod, as an Istio sidecar: what it sees may differ by labels and `Sidecar` resources.
    Workload,
}

impl XdsArgs {
    /// Who has a stream.
    pub fn scope(&self) -> Scope {
        match self.xds_scope {
            XdsScope::Node => Scope::Node,
            XdsScope::Workload => Scope::Workload,
        }
    }

    /// What to ask whom for; `None` without a server. Flags win over what the file says.
    pub fn options(&self, file: Option<&Bootstrap>) -> Option<Options> {
        let mut options = self.flags();
        if self.xds.is_none() {
            let file = file?;
            options.server.address.clone_from(&file.address);
            options.mode = if file.delta { Mode::Delta } else { Mode::Sotw };
            let server = &mut options.server;
            server.ca = server.ca.take().or_else(|| file.ca.clone());
            server.identity = server.identity.take().or_else(|| file.identity.clone());
            server.server_name = server
                .server_name
                .take()
                .or_else(|| file.server_name.clone());
        }
        if let Some(node) = file.and_then(|file| file.node.clone()) {
            let metadata = options.node.metadata.take().unwrap_or_default();
            options.node = Node {
                user_agent_name: options.node.user_agent_name,
                ..node
            };
            let fields = &mut options.node.metadata.get_or_insert_default().fields;
            for (key, value) in metadata.fields {
                fields.entry(key).or_insert(value);
            }
        }
        Some(options)
    }

    /// Who we say we are.
    pub fn node(&self) -> Node {
        self.flags().node
    }

    fn flags(&self) -> Options {
        Options {
            server: Server {
                address: self.xds.clone().unwrap_or_default(),
                ca: self.xds_ca.clone(),
                identity: self.xds_cert.clone().zip(self.xds_key.clone()),
                token: self.xds_token.clone(),
                server_name: self.xds_server_name.clone(),
            },
            mode: match self.xds_mode {
                XdsMode::Delta => Mode::Delta,
                XdsMode::Sotw => Mode::Sotw,
            },
            node: Node {
                id: self.node_id.clone(),
                cluster: self.node_cluster.clone(),
                user_agent_name: "mesh-agent".into(),
                metadata: Some(metadata(&[
                    ("CLUSTER_ID", &self.cluster_id),
                    ("ISTIO_VERSION", ISTIO_VERSION),
                    ("NODE_NAME", &hostname()),
                ])),
                ..Node::default()
            },
            max_message_bytes: usize::from(self.xds_max_message_mib) << 20,
        }
    }
}

/// The version of Istio whose sidecars we speak like: istiod answers each version as it
/// understands.
const ISTIO_VERSION: &str = "1.29.6";

fn metadata(pairs: &[(&str, &str)]) -> Struct {
    let fields = pairs.iter().map(|(key, text)| {
        let kind = Some(Kind::StringValue((*text).to_owned()));
        ((*key).to_owned(), Value { kind })
    });
    Struct {
        fields: fields.collect(),
    }
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
