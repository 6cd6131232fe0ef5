//! Whom the server lets in, and who it says it is.

use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Status};

/// How the server is reached. PEM everywhere.
#[derive(Debug, Clone, Default)]
pub struct Security {
    /// Its certificate and key; without them it speaks plaintext.
    pub identity: Option<(String, String)>,
    /// Clients must have a certificate that descends from these roots.
    pub client_roots: Option<String>,
    /// Clients must send this token.
    pub token: Option<String>,
}

impl Security {
    pub(super) fn tls(&self) -> Option<ServerTlsConfig> {
        let (certificate, key) = self.identity.as_ref()?;
        let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        if let Some(roots) = &self.client_roots {
            tls = tls.client_ca_root(Certificate::from_pem(roots));
        }
        Some(tls)
    }

    /// Refuses calls without the token.
    pub(super) fn guard(
        &self,
    ) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
        let wanted = self.token.as_ref().map(|token| format!("Bearer {token}"));
        move |request| {
            let Some(wanted) = &wanted else {
                return Ok(request);
            };
            let sent = request.metadata().get("authorization");
            match sent.map(|value| value.as_bytes()) {
                Some(token) if token == wanted.as_bytes() => Ok(request),
                Some(_) => Err(Status::unauthenticated("this token is not known")),
                None => Err(Status::unauthenticated("there is no token")),
            }
        }
    }
}
