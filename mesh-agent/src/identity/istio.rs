//! Istio's certificate authority, as istiod serves it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mesh_proto::istio::v1::auth::IstioCertificateRequest;
use mesh_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_reflect::prost_types;
use rcgen::KeyPair;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::SpiffeId;
use super::authority::{AuthorityError, Signed};
use super::credential;
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
    /// A certificate and its key that say who asks, read anew each time; see
    /// [`Self::is_asked_by_pods`].
    pub client: Option<(PathBuf, PathBuf)>,
    /// A token that says who asks; likewise.
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

    /// Whether each identity has a credential of its own: the file's name has `{namespace}` or
    /// `{service_account}` in it. Otherwise the agent asks in its own name on behalf of pods.
    fn is_asked_by_pods(&self) -> bool {
        let certificate = self.client.as_ref().map(|(certificate, _)| certificate);
        let mut files = self.token.iter().chain(certificate);
        files.any(|file| credential::is_of_accounts(file))
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
        let channel = self.connect(id).await.map_err(local)?;
        let metadata = (!self.is_asked_by_pods()).then(|| on_behalf_of(id));
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(validity.as_secs()).unwrap_or(i64::MAX),
            metadata,
        });
        request.set_timeout(PATIENCE);
        if let Some(token) = self.authorization(id).map_err(local)? {
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
        // The last one is the root; with several roots it holds them all.
        let mut chain = answer.into_inner().cert_chain;
        let roots = if chain.len() > 1 { chain.pop() } else { None };
        for part in &mut chain {
            if !part.ends_with('\n') {
                part.push('\n');
            }
        }
        Ok(Signed {
            chain: chain.concat(),
            key: key.serialize_pem(),
            roots: roots.unwrap_or_default(),
        })
    }

    async fn connect(&self, id: &SpiffeId) -> anyhow::Result<Channel> {
        let plain = self.root.is_none();
        let scheme = if plain { "http" } else { "https" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.server))
            .with_context(|| format!("{} is not an address; write host:port", self.server))?
            .connect_timeout(PATIENCE);
        if let Some(root) = &self.root {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(root)?));
            if let Some((certificate, key)) = &self.client {
                let (certificate, key) = (of(certificate, id), of(key, id));
                tls = tls.identity(Identity::from_pem(read(&certificate)?, read(&key)?));
            }
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(endpoint.connect().await?)
    }

    fn authorization(&self, id: &SpiffeId) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(file) = &self.token else {
            return Ok(None);
        };
        let file = of(file, id);
        let token = String::from_utf8(read(&file)?)
            .with_context(|| format!("{} holds no token", file.display()))?;
        let value = format!("Bearer {}", token.trim());
        Ok(Some(value.parse()?))
    }
}

/// What a node agent says to be asked on behalf of a pod (Istio: `ImpersonatedIdentity`).
fn on_behalf_of(id: &SpiffeId) -> prost_types::Struct {
    let value = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(id.as_str().into())),
    };
    prost_types::Struct {
        fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
    }
}

/// The file of an identity.
fn of(file: &Path, id: &SpiffeId) -> PathBuf {
    let (namespace, account) = id.namespace_and_account().unwrap_or_default();
    credential::of_account(file, namespace, account)
}

fn read(file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_can_be_written_down() {
        let id = SpiffeId::from("spiffe://cluster.local/ns/shop/sa/web");
        let key = KeyPair::generate().unwrap();
        let params = request(&id, Duration::from_secs(3600)).unwrap();
        let csr = params.serialize_request(&key).unwrap();
        assert!(csr.pem().unwrap().contains("CERTIFICATE REQUEST"));
    }

    #[test]
    fn each_identity_has_its_own_file_if_the_name_says_so() {
        let id = SpiffeId::from("spiffe://cluster.local/ns/shop/sa/web");
        let one = Path::new("/run/tokens/{namespace}/{service_account}");
        assert_eq!(of(one, &id), Path::new("/run/tokens/shop/web"));
        assert_eq!(of(Path::new("/run/token"), &id), Path::new("/run/token"));
        let mut authority = IstioAuthority {
            token: Some(one.into()),
            ..IstioAuthority::default()
        };
        assert!(authority.is_asked_by_pods());
        authority.token = Some("/run/token".into());
        assert!(!authority.is_asked_by_pods());
        let told = format!("{:?}", on_behalf_of(&id));
        assert!(told.contains("ImpersonatedIdentity") && told.contains(id.as_str()));
    }
}
