//! How the server is reached.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::identity::credential;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// A server and how to speak to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// `host:port`, `http://host:port`, `https://host:port` or `unix:/path`.
    pub address: String,
    /// PEM file with the roots that the server's certificate must descend from.
    pub ca: Option<PathBuf>,
    /// PEM files with our own certificate and key; see [`Self::asked_by`].
    pub identity: Option<(PathBuf, PathBuf)>,
    /// File with a token (JWT) to send; read anew for every stream. See [`Self::asked_by`].
    pub token: Option<PathBuf>,
    /// The name in the server's certificate, if it is not that of the address.
    pub server_name: Option<String>,
}

impl Server {
    /// As a pod of this service account asks it: `{namespace}` and `{service_account}` in the names
    /// of files stand for its own. A server that knows accounts answers each about its own pods
    /// only (Istio: `ENABLE_XDS_IDENTITY_CHECK`).
    pub(super) fn asked_by(&self, namespace: &str, service_account: &str) -> Self {
        let of = |file: &PathBuf| credential::of_account(file, namespace, service_account);
        Self {
            identity: self.identity.as_ref().map(|(one, key)| (of(one), of(key))),
            token: self.token.as_ref().map(of),
            ..self.clone()
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// What is wrong with the address or the files, or why nobody answers.
    pub(super) async fn connect(&self) -> anyhow::Result<Channel> {
        let endpoint = self.endpoint()?;
        endpoint
            .connect()
            .await
            .with_context(|| format!("cannot reach the xDS server at {}", self.address))
    }

    fn wants_tls(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }

    /// Whether it is spoken to over TLS.
    pub(super) fn is_secured(&self) -> bool {
        match self.address.split_once(':') {
            Some(("https", _)) => true,
            Some(("http" | "unix", _)) => false,
            _ => self.wants_tls(),
        }
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let tls = self.wants_tls();
        let address = match self.address.split_once(':') {
            Some(("http" | "https" | "unix", _)) => self.address.clone(),
            _ if tls => format!("https://{}", self.address),
            _ => format!("http://{}", self.address),
        };
        let mut endpoint = Endpoint::from_shared(address.clone())
            .with_context(|| format!("{} is not an address; write host:port", self.address))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true)
            .tcp_keepalive(Some(KEEPALIVE.0))
            .initial_connection_window_size(8 << 20)
            .initial_stream_window_size(8 << 20);
        if address.starts_with("https") {
            let mut config = ClientTlsConfig::new();
            match &self.ca {
                Some(ca) => config = config.ca_certificate(Certificate::from_pem(read(ca)?)),
                None => bail!("https needs the roots to trust: --xds-ca FILE"),
            }
            if let Some((certificate, key)) = &self.identity {
                config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            if let Some(name) = &self.server_name {
                config = config.domain_name(name);
            }
            endpoint = endpoint
                .tls_config(config)
                .context("the TLS settings for the xDS server are wrong")?;
        }
        Ok(endpoint)
    }

    /// The `authorization` header.
    ///
    /// # Errors
    /// The file cannot be read or holds something else.
    pub(super) fn authorization(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(file) = &self.token else {
            return Ok(None);
        };
        let token = String::from_utf8(read(file)?)
            .with_context(|| format!("{} holds no token", file.display()))?;
        let value = format!("Bearer {}", token.trim());
        let value = value
            .parse()
            .with_context(|| format!("{} holds no token", file.display()))?;
        Ok(Some(value))
    }
}

fn read(file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
