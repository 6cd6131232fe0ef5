//! Arguments that say where configuration comes from when it is not a file.

use std::path::PathBuf;

use clap::ValueEnum;
use envoy_types::pb::envoy::config::core::v3::Node;

use crate::source::xds::{Mode, Options, Server};

/// The management server, and who asks it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration by xDS")]
pub struct XdsArgs {
    /// The management server: `host:port`, `https://host:port` or `unix:/path`. Listeners,
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
    /// PEM file with the roots that the server's certificate must descend from. Turns TLS on.
    #[arg(long, env = "MESH_XDS_CA", value_name = "FILE")]
    pub xds_ca: Option<PathBuf>,
    /// PEM file with our certificate, for mutual TLS.
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

impl XdsArgs {
    /// What to ask whom for; `None` without a server.
    pub fn options(&self) -> Option<Options> {
        let address = self.xds.clone()?;
        Some(Options {
            server: Server {
                address,
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
                ..Node::default()
            },
            max_message_bytes: usize::from(self.xds_max_message_mib) << 20,
        })
    }
}
