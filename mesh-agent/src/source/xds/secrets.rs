//! Secret discovery at servers of their own: one stream a secret, as Envoy has them, so that one
//! a server refuses does not keep the others from coming.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as PbSecret;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::rpc::Status;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::config::convert;
use crate::config::model::Name;
use crate::config::model::secret::{Secret, SecretServer};
use crate::identity::{Delivered, DeliveredSecrets, SharedCredentials, update};

use super::session::PATIENCE;
use super::types::ResourceType;
use super::{FIRST_WAIT, LONGEST_WAIT, Server, jittered};

/// gRPC's code for what a NACK says.
const INVALID_ARGUMENT: i32 = 3;
/// A secret is small.
const MAX_BYTES: usize = 4 << 20;

/// A secret at a server.
type Key = (SecretServer, Name);

/// Follows secrets at their servers and publishes them.
#[derive(Debug)]
pub struct SecretDiscovery {
    node: Node,
    table: Table,
    streams: HashMap<Key, (Server, tokio::task::AbortHandle)>,
}

/// Where streams tell what they got.
#[derive(Debug, Clone)]
struct Table {
    credentials: SharedCredentials,
    delivered: watch::Sender<Arc<DeliveredSecrets>>,
}

impl Table {
    /// Changes what is told, and publishes the secrets if one of them changed.
    fn change(&self, change: impl FnOnce(&mut DeliveredSecrets) -> bool) {
        let mut secrets_changed = false;
        self.delivered.send_modify(|delivered| {
            secrets_changed = change(Arc::make_mut(delivered));
        });
        if !secrets_changed {
            return;
        }
        let delivered = self.delivered.borrow().clone();
        let secrets = delivered
            .iter()
            .filter_map(|(key, state)| Some((key.clone(), state.secret.clone()?)));
        let secrets: Arc<HashMap<Key, Arc<Secret>>> = Arc::new(secrets.collect());
        update(&self.credentials, |credentials| {
            credentials.secrets = secrets.clone();
        });
    }
}

impl SecretDiscovery {
    /// Nothing is asked for yet.
    pub fn new(node: Node, credentials: SharedCredentials) -> Self {
        let (delivered, _) = watch::channel(Arc::default());
        Self {
            node,
            table: Table {
                credentials,
                delivered,
            },
            streams: HashMap::new(),
        }
    }

    /// What came, and how each fares.
    pub fn delivered(&self) -> watch::Receiver<Arc<DeliveredSecrets>> {
        self.table.delivered.subscribe()
    }

    /// Says which secrets are needed. `locate` finds a server; `None`: nobody says where it is.
    pub fn want(
        &mut self,
        wanted: &BTreeSet<Key>,
        locate: impl Fn(&SecretServer) -> Option<Server>,
    ) {
        let servers: BTreeMap<&Key, Option<Server>> =
            wanted.iter().map(|key| (key, locate(&key.0))).collect();
        let stays = |key: &Key, server: &Server| matches!(servers.get(key), Some(Some(wanted)) if wanted == server);
        self.streams.retain(|key, (server, stream)| {
            let stays = stays(key, server);
            if !stays {
                stream.abort();
            }
            stays
        });
        if self
            .table
            .delivered
            .borrow()
            .keys()
            .any(|key| !wanted.contains(key))
        {
            self.table.change(|delivered| {
                delivered.retain(|key, _| wanted.contains(key));
                true
            });
        }
        for (key, server) in servers {
            if self.streams.contains_key(key) {
                continue;
            }
            let Some(server) = server else {
                let known = |state: &Delivered| state.error.is_some();
                if !self.table.delivered.borrow().get(key).is_some_and(known) {
                    let error = format!("nobody says where {:?} is", key.0);
                    tracing::error!(secret = %key.1, %error, "a secret cannot be asked for");
                    self.table.change(|delivered| {
                        delivered.entry(key.clone()).or_default().error = Some(error);
                        false
                    });
                }
                continue;
            };
            let follower = Follower {
                key: key.clone(),
                server: server.clone(),
                node: self.node.clone(),
                table: self.table.clone(),
                asked: Instant::now(),
            };
            let stream = tokio::spawn(follower.run()).abort_handle();
            self.streams.insert(key.clone(), (server, stream));
        }
    }
}

impl Drop for SecretDiscovery {
    fn drop(&mut self) {
        for (_, stream) in self.streams.values() {
            stream.abort();
        }
    }
}

struct Follower {
    key: Key,
    server: Server,
    node: Node,
    table: Table,
    /// When the secret was first asked for.
    asked: Instant,
}

impl Follower {
    async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let mut fruitful = false;
            let reason = match self.stream(&mut fruitful).await {
                Ok(()) => "the server closed the stream".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            self.failed(&reason);
            let pause = if fruitful { FIRST_WAIT / 5 } else { wait };
            wait = if fruitful {
                FIRST_WAIT
            } else {
                (wait * 2).min(LONGEST_WAIT)
            };
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    fn failed(&self, reason: &str) {
        let state = self.state();
        let kept = state.secret.is_some();
        let (name, server) = (&self.key.1, &self.server.address);
        if kept || state.error.is_none() {
            tracing::warn!(secret = %name, %server, reason, kept, "secret discovery was interrupted");
        }
        self.table.change(|delivered| {
            if let Some(state) = delivered.get_mut(&self.key) {
                state.error = Some(reason.to_owned());
            }
            false
        });
    }

    fn state(&self) -> Delivered {
        let delivered = self.table.delivered.borrow();
        delivered.get(&self.key).cloned().unwrap_or_default()
    }

    fn request(&self, version: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: version.to_owned(),
            resource_names: vec![self.key.1.to_string()],
            type_url: ResourceType::Secret.url().to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    async fn stream(&mut self, fruitful: &mut bool) -> anyhow::Result<()> {
        self.table.change(|delivered| {
            delivered.entry(self.key.clone()).or_default();
            false
        });
        let channel = self.server.connect().await?;
        let mut client =
            SecretDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_BYTES);
        let (outgoing, requests) = mpsc::channel(4);
        let first = DiscoveryRequest {
            node: Some(self.node.clone()),
            ..self.request(&self.state().version)
        };
        outgoing.send(first).await?;
        let opening = client.stream_secrets(ReceiverStream::new(requests));
        let mut incoming = self.patiently(opening).await?.into_inner();
        loop {
            let Some(response) = self.patiently(incoming.message()).await? else {
                return Ok(());
            };
            *fruitful = true;
            outgoing.send(self.answer(&response)).await?;
        }
    }

    /// Tells once when the server says nothing for too long (Envoy: `initial_fetch_timeout`).
    async fn patiently<T>(
        &self,
        what: impl Future<Output = Result<T, tonic::Status>>,
    ) -> anyhow::Result<T> {
        let mut what = std::pin::pin!(what);
        let told =
            |status: tonic::Status| anyhow::anyhow!("{:?}: {}", status.code(), status.message());
        let state = self.state();
        if state.secret.is_none() && state.error.is_none() {
            let left = PATIENCE.saturating_sub(self.asked.elapsed());
            match tokio::time::timeout(left.max(Duration::from_millis(1)), &mut what).await {
                Ok(done) => return done.map_err(told),
                Err(_) => {
                    let seconds = PATIENCE.as_secs();
                    self.failed(&format!("the server did not send it in {seconds} s"));
                }
            }
        }
        what.await.map_err(told)
    }

    /// Takes a response, or refuses it; returns what to say.
    fn answer(&self, response: &DiscoveryResponse) -> DiscoveryRequest {
        let taken = self.take(response);
        let (name, version) = (&self.key.1, &response.version_info);
        match &taken {
            Ok(()) => tracing::info!(secret = %name, version, "secret received"),
            Err(reason) => {
                tracing::error!(secret = %name, version, reason, "a secret was refused; the last good one stays");
                self.table.change(|delivered| {
                    let state = delivered.entry(self.key.clone()).or_default();
                    state.rejected += 1;
                    state.error = Some(reason.clone());
                    false
                });
            }
        }
        DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: taken.err().map(|message| Status {
                code: INVALID_ARGUMENT,
                message,
                ..Status::default()
            }),
            ..self.request(&self.state().version)
        }
    }

    fn take(&self, response: &DiscoveryResponse) -> Result<(), String> {
        let mut ours = None;
        for any in &response.resources {
            let message = PbSecret::decode(any.value.as_slice())
                .map_err(|error| format!("malformed secret: {error}"))?;
            if message.name == *self.key.1 {
                ours = Some(message);
            }
        }
        let message = ours.ok_or_else(|| format!("{} is not in the response", self.key.1))?;
        let secret = convert::secret(&message).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            problems.join("; ")
        })?;
        let secret = Arc::new(secret);
        self.table.change(|delivered| {
            let state = delivered.entry(self.key.clone()).or_default();
            state.secret = Some(secret);
            state.version.clone_from(&response.version_info);
            state.updated = Some(SystemTime::now());
            state.error = None;
            true
        });
        Ok(())
    }
}
