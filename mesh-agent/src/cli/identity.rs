//! Arguments about certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;

use crate::identity::{Authority, DevAuthority, IstioAuthority};

use super::duration;

/// Who the pods are, and who says so.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Identity")]
pub struct IdentityArgs {
    /// The trust domain of the mesh: the pods are `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    #[arg(
        long,
        env = "MESH_TRUST_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,
    /// Who signs the pods' certificates: `dev:FOLDER`, an authority of your own that is made there
    /// at first use, or `istio:HOST:PORT`, istiod's. Without it there is no mutual TLS, and what
    /// asks for it is refused.
    #[arg(long, env = "MESH_CA", value_name = "SOURCE", conflicts_with = "sds")]
    pub ca: Option<String>,
    /// A secret discovery server that has the pods' certificates, as SPIRE's agent: `unix:/path` or
    /// `host:port`. They are asked for under the pods' SPIFFE ids, the roots under `spiffe://` and
    /// the trust domain.
    #[arg(long, env = "MESH_SDS", value_name = "ADDRESS")]
    pub sds: Option<String>,
    /// PEM file with the roots that the authority's own certificate must descend from.
    #[arg(long, env = "MESH_CA_ROOT", value_name = "FILE")]
    pub ca_root: Option<PathBuf>,
    /// File with a token (JWT) that tells the authority who asks; read anew each time. With
    /// {namespace} and {service_account} in it there is one for each identity. Without, it is the
    /// agent's own, and istiod is asked on behalf of pods, as by ztunnel
    /// (CA_TRUSTED_NODE_ACCOUNTS).
    #[arg(long, env = "MESH_CA_TOKEN", value_name = "FILE")]
    pub ca_token: Option<PathBuf>,
    /// PEM file with a certificate that tells the authority who asks; as with --ca-token, one for
    /// each identity or the agent's own.
    #[arg(long, env = "MESH_CA_CERT", value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// PEM file with the key of --ca-cert.
    #[arg(long, env = "MESH_CA_KEY", value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// The name in the authority's certificate, if it is not that of the address.
    #[arg(long, env = "MESH_CA_SERVER_NAME", value_name = "NAME")]
    pub ca_server_name: Option<String>,
    /// The cluster that tokens are of, as istiod knows it.
    #[arg(
        long,
        env = "MESH_CA_CLUSTER_ID",
        value_name = "ID",
        default_value = "Kubernetes"
    )]
    pub ca_cluster_id: String,
    /// How long certificates are asked to last. They are renewed at half of it.
    #[arg(
        long,
        env = "MESH_CERT_TTL",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = duration::parse
    )]
    pub cert_ttl: Duration,
}

/// Where the pods' certificates come from.
#[derive(Debug)]
pub enum Source {
    /// There are none.
    Nobody,
    /// This signs them.
    Authority(Box<Authority>),
    /// A secret discovery server has them.
    Sds(Arc<str>),
}

impl IdentityArgs {
    /// Where the pods' certificates come from.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub fn source(&self) -> anyhow::Result<Source> {
        if let Some(server) = &self.sds {
            return Ok(Source::Sds(server.as_str().into()));
        }
        let Some(source) = &self.ca else {
            return Ok(Source::Nobody);
        };
        Ok(Source::Authority(Box::new(match source.split_once(':') {
            Some(("dev", folder)) if !folder.is_empty() => {
                Authority::Dev(DevAuthority::open(folder.as_ref())?)
            }
            Some(("istio", server)) if server.contains(':') => Authority::Istio(IstioAuthority {
                server: server.into(),
                root: self.ca_root.clone(),
                client: self.ca_cert.clone().zip(self.ca_key.clone()),
                token: self.ca_token.clone(),
                server_name: self.ca_server_name.clone(),
                cluster_id: self.ca_cluster_id.clone(),
            }),
            _ => bail!("--ca {source}: write dev:FOLDER or istio:HOST:PORT"),
        })))
    }
}
