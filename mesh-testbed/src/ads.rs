//! A management server that a test steers: resources, what is withheld, what is sent raw.

mod security;
mod state;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use envoy_types::pb::google::protobuf::Any;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use tokio::sync::oneshot;
use tonic::service::interceptor::InterceptedService;

use crate::loopback;
use state::Shared;
use stream::Service;

pub use security::Security;
pub use state::{Asked, State};

/// A running server. Ends when dropped.
#[derive(Debug)]
pub struct Ads {
    state: Arc<Shared>,
    address: SocketAddr,
    security: Security,
    /// It works only when nothing else wants the core.
    remote: bool,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The type URL of a message.
pub fn type_url(message: &str) -> String {
    format!("type.googleapis.com/{message}")
}

/// LDS
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// RDS
pub const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// CDS
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// EDS
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// SDS
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

impl Ads {
    /// Starts it on a free port of loopback.
    ///
    /// # Errors
    /// No port is free.
    pub fn start() -> Result<Self> {
        Self::secured(Security::default())
    }

    /// As [`Self::start`], over TLS, or for those who say who they are.
    ///
    /// # Errors
    /// No port is free, or the certificates are wrong.
    pub fn secured(security: Security) -> Result<Self> {
        Self::with(security, false)
    }

    /// As [`Self::start`], for measurements: it stands for another machine, so its work is done
    /// only when nothing else on this one wants the core.
    ///
    /// # Errors
    /// No port is free.
    pub fn remote() -> Result<Self> {
        Self::with(Security::default(), true)
    }

    fn with(security: Security, remote: bool) -> Result<Self> {
        let mut ads = Self {
            security,
            remote,
            state: Arc::default(),
            address: loopback::socket()?,
            stop: None,
            thread: None,
        };
        ads.resume()?;
        Ok(ads)
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it: every stream breaks off, and nobody listens.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Starts it again at the same address, with what it has learnt since.
    ///
    /// # Errors
    /// Another took the port.
    pub fn resume(&mut self) -> Result<()> {
        let listener = loopback::listen(self.address)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let service = Service::new(self.state.clone());
        let mut server = tonic::transport::Server::builder();
        if let Some(tls) = self.security.tls() {
            server = server
                .tls_config(tls)
                .context("the certificates are wrong")?;
        }
        let guard = self.security.guard();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        self.stop = Some(stop);
        let remote = self.remote;
        self.thread = Some(std::thread::spawn(move || {
            let serving = || {
                runtime.block_on(async {
                    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                        return;
                    };
                    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                    let service = AggregatedDiscoveryServiceServer::new(service)
                        .max_encoding_message_size(usize::MAX);
                    let serving = server
                        .add_service(InterceptedService::new(service, guard))
                        .serve_with_incoming(incoming);
                    tokio::select! {
                        _ = serving => {}
                        _ = stopped => {}
                    }
                })
            };
            if remote {
                // Where it is refused, nobody answers, and whoever waits for that says so.
                let _ = crate::priority::idle(serving);
            } else {
                serving();
            }
            // Connections end with the runtime.
            runtime.shutdown_timeout(Duration::from_secs(1));
        }));
        Ok(())
    }

    /// How it is reached from the next [`Self::resume`] on.
    pub fn secure(&mut self, security: Security) {
        self.security = security;
    }

    /// Changes what it serves, all at once.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.change(change);
    }

    /// Everything it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked()
    }

    /// How many streams were opened so far.
    pub fn streams(&self) -> u64 {
        let asked = self.asked();
        asked.iter().map(|asked| asked.stream).max().unwrap_or(0)
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.state.open.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Waits until it was asked something.
    ///
    /// # Errors
    /// It is not in time; what it was asked is in the error.
    pub fn wait(&self, what: &str, mut is: impl FnMut(&Asked) -> bool) -> Result<Asked> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(found) = self.asked().into_iter().find(|asked| is(asked)) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                bail!(
                    "the server was not asked: {what}; it was asked {:#?}",
                    self.asked()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Ads {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A resource from JSON, in Envoy's own field names.
///
/// # Errors
/// It is not one of that type.
pub fn resource(type_url: &str, json: &Value) -> Result<Any> {
    static POOL: std::sync::LazyLock<Option<DescriptorPool>> =
        std::sync::LazyLock::new(|| DescriptorPool::decode(mesh_proto::DESCRIPTORS).ok());
    let name = type_url.rsplit('/').next().unwrap_or_default();
    let descriptor = POOL
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(name))
        .with_context(|| format!("{name} is not known"))?;
    let message = DynamicMessage::deserialize(descriptor, json)
        .with_context(|| format!("{json} is no {name}"))?;
    Ok(Any {
        type_url: type_url.into(),
        value: prost_reflect::prost::Message::encode_to_vec(&message),
    })
}
