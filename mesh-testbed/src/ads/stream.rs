//! One stream of the server, of either variant.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryService;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::state::{Asked, Raw, Shared};
use super::{CLUSTER, LISTENER};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Debug)]
pub(super) struct Service {
    state: Arc<Shared>,
    streams: AtomicU64,
}

impl Service {
    pub(super) fn new(state: Arc<Shared>) -> Self {
        let streams = state.asked().iter().map(|asked| asked.stream).max();
        Self {
            state,
            streams: AtomicU64::new(streams.unwrap_or(0)),
        }
    }
}

/// What a stream asked for of a kind, and what it was sent.
#[derive(Debug, Default)]
struct Kind {
    names: BTreeSet<String>,
    sent: BTreeMap<String, u64>,
    /// Something was sent, be it that there is nothing.
    answered: bool,
}

/// The answer to what changed of a kind: new versions, and names that are gone.
type Change = (Vec<Resource>, Vec<String>);

#[derive(Debug)]
struct Told {
    state: Arc<Shared>,
    kinds: BTreeMap<String, Kind>,
    /// The client's id.
    node: String,
    /// How many raw responses it was sent.
    raw: usize,
    nonce: u64,
}

impl Told {
    fn new(state: Arc<Shared>) -> Self {
        let raw = state.lock().raw.len();
        state.open.fetch_add(1, Ordering::Relaxed);
        Self {
            state,
            node: String::new(),
            kinds: BTreeMap::new(),
            raw,
            nonce: 0,
        }
    }

    fn nonce(&mut self) -> String {
        self.nonce += 1;
        self.nonce.to_string()
    }

    /// What is new of a kind. State of the world: everything wanted, if anything is new.
    fn change(&mut self, type_url: &str, whole: bool) -> Option<Change> {
        let state = self.state.lock();
        let kind = self.kinds.get_mut(type_url)?;
        let wildcard = matches!(type_url, CLUSTER | LISTENER);
        if state.withheld.contains(type_url) {
            return None;
        }
        let there: BTreeMap<&String, &(u64, Any)> = state
            .resources
            .get(type_url)
            .into_iter()
            .flatten()
            .filter(|(name, _)| state.shows(type_url, name, &self.node))
            .collect();
        let wanted: BTreeMap<&String, _> = there
            .iter()
            .filter(|(name, _)| wildcard || kind.names.contains(**name))
            .filter(|(name, _)| state.says(type_url, name))
            .map(|(name, resource)| (*name, *resource))
            .collect();
        let gone: Vec<String> = kind
            .sent
            .keys()
            .filter(|name| !there.contains_key(name))
            .cloned()
            .collect();
        let news = wanted
            .iter()
            .any(|(name, (version, _))| kind.sent.get(*name) != Some(version));
        if !news && gone.is_empty() && (kind.answered || !wildcard) {
            return None;
        }
        kind.answered = true;
        let resources = wanted
            .iter()
            .filter(|(name, (version, _))| whole || kind.sent.get(**name) != Some(version))
            .map(|(name, (version, any))| Resource {
                name: (*name).clone(),
                version: version.to_string(),
                resource: Some(any.clone()),
                ..Resource::default()
            })
            .collect();
        for name in &gone {
            kind.sent.remove(name);
        }
        for (name, (version, _)) in wanted {
            kind.sent.insert(name.clone(), *version);
        }
        Some((resources, gone))
    }

    fn raw(&mut self) -> Option<Raw> {
        let raw = self.state.lock().raw.get(self.raw).cloned();
        self.raw += usize::from(raw.is_some());
        raw
    }

    fn types(&self) -> Vec<String> {
        // As control planes do: what is referred to first.
        let mut types: Vec<String> = self.kinds.keys().cloned().collect();
        types.sort();
        types
    }

    fn deltas(&mut self) -> Vec<Option<DeltaDiscoveryResponse>> {
        let mut responses = Vec::new();
        while let Some(raw) = self.raw() {
            match raw {
                Raw::Delta(response) => responses.push(Some(response)),
                Raw::Sotw(_) => {}
                Raw::Close => responses.push(None),
            }
        }
        for type_url in self.types() {
            if let Some((resources, removed_resources)) = self.change(&type_url, false) {
                responses.push(Some(DeltaDiscoveryResponse {
                    nonce: self.nonce(),
                    system_version_info: self.state.lock().version.to_string(),
                    type_url,
                    resources,
                    removed_resources,
                    ..DeltaDiscoveryResponse::default()
                }));
            }
        }
        responses
    }

    fn sotws(&mut self) -> Vec<Option<DiscoveryResponse>> {
        let mut responses = Vec::new();
        while let Some(raw) = self.raw() {
            match raw {
                Raw::Sotw(response) => responses.push(Some(response)),
                Raw::Delta(_) => {}
                Raw::Close => responses.push(None),
            }
        }
        for type_url in self.types() {
            if let Some((resources, _)) = self.change(&type_url, true) {
                responses.push(Some(DiscoveryResponse {
                    nonce: self.nonce(),
                    version_info: self.state.lock().version.to_string(),
                    type_url,
                    resources: resources.into_iter().filter_map(|r| r.resource).collect(),
                    ..DiscoveryResponse::default()
                }));
            }
        }
        responses
    }

    fn ask_delta(&mut self, stream: u64, request: DeltaDiscoveryRequest) {
        if let Some(node) = &request.node {
            self.node.clone_from(&node.id);
        }
        let kind = self.kinds.entry(request.type_url.clone()).or_default();
        kind.names
            .extend(request.resource_names_subscribe.iter().cloned());
        for name in &request.resource_names_unsubscribe {
            kind.names.remove(name);
            kind.sent.remove(name);
        }
        for (name, version) in &request.initial_resource_versions {
            if let Ok(version) = version.parse() {
                kind.sent.insert(name.clone(), version);
                kind.answered = true;
            }
        }
        self.state.note(Asked {
            stream,
            type_url: request.type_url,
            names: request.resource_names_subscribe,
            given_up: request.resource_names_unsubscribe,
            nonce: request.response_nonce,
            held: request.initial_resource_versions.into_iter().collect(),
            error: request.error_detail.map(|error| error.message),
            node: request.node.map(|node| node.id),
            ..Asked::default()
        });
    }

    fn ask_sotw(&mut self, stream: u64, request: DiscoveryRequest) {
        if let Some(node) = &request.node {
            self.node.clone_from(&node.id);
        }
        let kind = self.kinds.entry(request.type_url.clone()).or_default();
        kind.names = request.resource_names.iter().cloned().collect();
        // What was given up is sent again when it is wanted again.
        if !matches!(request.type_url.as_str(), CLUSTER | LISTENER) {
            kind.sent.retain(|name, _| kind.names.contains(name));
        }
        self.state.note(Asked {
            stream,
            type_url: request.type_url,
            names: request.resource_names,
            nonce: request.response_nonce,
            version: request.version_info,
            error: request.error_detail.map(|error| error.message),
            node: request.node.map(|node| node.id),
            ..Asked::default()
        });
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.state.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = mpsc::channel(16);
        let told = Told::new(self.state.clone());
        tokio::spawn(serve(
            told,
            request.into_inner(),
            sender,
            move |told, request| told.ask_sotw(stream, request),
            Told::sotws,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = mpsc::channel(16);
        let told = Told::new(self.state.clone());
        tokio::spawn(serve(
            told,
            request.into_inner(),
            sender,
            move |told, request| told.ask_delta(stream, request),
            Told::deltas,
        ));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Answers until the client leaves. `None` among the answers ends the stream.
async fn serve<Req, Res>(
    mut told: Told,
    mut requests: Streaming<Req>,
    responses: mpsc::Sender<Result<Res, Status>>,
    ask: impl Fn(&mut Told, Req),
    answers: impl Fn(&mut Told) -> Vec<Option<Res>>,
) {
    let mut changes = told.state.changes();
    loop {
        let deaf = told.state.lock().deaf;
        tokio::select! {
            request = requests.message(), if !deaf => match request {
                Ok(Some(request)) => ask(&mut told, request),
                _ => return,
            },
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
        for answer in answers(&mut told) {
            let Some(answer) = answer else { return };
            if responses.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }
}
