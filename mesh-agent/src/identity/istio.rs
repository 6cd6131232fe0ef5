//! Istio's certificate authority, as istiod serves it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::istio::v1::auth::IstioCertificateRequest;
use mesh_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::KeyPair;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::SpiffeId;
use super::authority::{AuthorityError, Signed};
use super::dev::request;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The authority, and how it is spoken to.
#[derive(Debug, Clone, Default)]
pub struct IstioAuthority {
    /// `host:port`.
    pub server: String,
    /// The roots that its certificate must descend from.
    pub root: Option<PathBuf>,
    /// A certificate and its key that say who asks.
    pub client: Option<(PathBuf, PathBuf)>,
    /// A token that says who asks; read anew each time.
    pub token: Option<PathBuf>,
    /// The name in its certificate, if it is not that of the address.
    pub server_name: Option<String>,
    /// The cluster the token is of.
    pub cluster_id: String,
}

impl IstioAuthority {
    /// Where it is.
    pub fn address(&self) -> &str {
        &self.server
    }

    /// Has a fresh key certified.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(super) async fn certify(
        &self,
        id: &SpiffeId,
        validity: Duration,
    ) -> Result<Signed, AuthorityError> {
        let failed = |error: rcgen::Error| AuthorityError::Make {
            id: id.clone(),
            reason: error.to_string(),
        };
        let key = KeyPair::generate().map_err(failed)?;
        let params = request(id, validity).map_err(failed)?;
        let csr = params.serialize_request(&key).map_err(failed)?;
        let csr = csr.pem().map_err(failed)?;
        let local = |error: anyhow::Error| AuthorityError::Remote {
            address: self.server.clone(),
            reason: format!("{error:#}"),
            hint: "",
        };
        let channel = self.connect().await.map_err(local)?;
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(validity.as_secs()).unwrap_or(i64::MAX),
            ..IstioCertificateRequest::default()
        });
        request.set_timeout(PATIENCE);
        if let Some(token) = self.authorization().map_err(local)? {
            request.metadata_mut().insert("authorization", token);
        }
        if let Ok(cluster) = self.cluster_id.parse::<MetadataValue<Ascii>>() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let answer = IstioCertificateServiceClient::new(channel)
            .create_certificate(request)
            .await
            .map_err(|status| AuthorityError::Remote {
                address: self.server.clone(),
                reason: format!("{:?}: {}", status.code(), status.message()),
                hint: match status.code() {
                    tonic::Code::Unauthenticated => {
                        "; it must know who asks: --ca-token or --ca-cert"
                    }
                    tonic::Code::PermissionDenied => {
                        "; who asks may not have certificates of this identity"
                    }
                    _ => "",
                },
            })?;
        // The last certificate of the chain is the root.
        let mut chain = answer.into_inner().cert_chain;
        let roots = if chain.len() > 1 { chain.pop() } else { None };
        Ok(Signed {
            chain: chain.concat(),
            key: key.serialize_pem(),
            roots: roots.unwrap_or_default(),
        })
    }

    async fn connect(&self) -> anyhow::Result<Channel> {
        let plain = self.root.is_none();
        let scheme = if plain { "http" } else { "https" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.server))
            .with_context(|| format!("{} is not an address; write host:port", self.server))?
            .connect_timeout(PATIENCE);
        if let Some(root) = &self.root {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(root)?));
            if let Some((certificate, key)) = &self.client {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(endpoint.connect().await?)
    }

    fn authorization(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(file) = &self.token else {
            return Ok(None);
        };
        let token = String::from_utf8(read(file)?)
            .with_context(|| format!("{} holds no token", file.display()))?;
        let value = format!("Bearer {}", token.trim());
        Ok(Some(value.parse()?))
    }
}

fn read(file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
