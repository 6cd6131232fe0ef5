//! The client's side of aggregated discovery, without I/O: what is received goes in, what is to
//! be sent comes out, and time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc::Status;
use prost::Message as _;

use crate::store::ResourceSet;

use super::cache::{Cache, Change, Key, cut};
use super::decode::{Interner, name_of};
use super::delta::Delta;
use super::publish::{Holds, publish, publish_endpoints};
use super::shared::PublishedSums;
use super::sotw::Sotw;
use super::status::XdsStatus;
use super::types::{PerType, ResourceType};

/// How long the server may say nothing of a resource before it is taken not to exist
/// (Envoy: `initial_fetch_timeout`; xDS: 15 s).
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// gRPC's code for what a NACK says.
const INVALID_ARGUMENT: i32 = 3;
/// Longest text of a NACK.
const MAX_NACK: usize = 4096;
/// Some servers wrap resources in it in both variants.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// How updates are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Changes only.
    #[default]
    Delta,
    /// Everything of a kind, or what was asked for.
    Sotw,
}

/// A message to the server.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    Delta(DeltaDiscoveryRequest),
    Sotw(DiscoveryRequest),
}

/// A message to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outgoing {
    pub(super) request: Request,
    /// What it asks for and nothing is known of; waited for from when it is
    /// [sent](Session::sent).
    pub(super) expects: Vec<Key>,
}

impl Outgoing {
    /// Whether a server that gets this one does not need the older one: of one kind, and all that
    /// the older one says is an answer, or said again.
    pub(super) fn supersedes(&self, older: &Self) -> bool {
        match (&self.request, &older.request) {
            (Request::Delta(new), Request::Delta(old)) => {
                new.type_url == old.type_url
                    && !new.response_nonce.is_empty()
                    && !old.response_nonce.is_empty()
                    && old.resource_names_subscribe.is_empty()
                    && old.resource_names_unsubscribe.is_empty()
            }
            // Each names all that is wanted.
            (Request::Sotw(new), Request::Sotw(old)) => {
                new.type_url == old.type_url && old.node.is_none()
            }
            _ => false,
        }
    }

    /// One that nothing is waited for after.
    fn answer(request: Request) -> Self {
        Self {
            request,
            expects: Vec::new(),
        }
    }
}

/// A message from the server.
#[derive(Debug, Clone)]
pub(super) enum Response {
    Delta(DeltaDiscoveryResponse),
    Sotw(DiscoveryResponse),
}

#[derive(Debug)]
enum Stream {
    Delta(Delta),
    Sotw(Sotw),
}

/// Everything a view knows. It outlives streams.
#[derive(Debug)]
pub(super) struct Session {
    mode: Mode,
    node: Node,
    interner: Arc<Interner>,
    stream: Option<Stream>,
    cache: Cache,
    /// Which version of what is wanted this stream was asked for.
    asked: PerType<Option<u64>>,
    /// What was asked for and did not come, and when it is taken not to exist; `None`: the
    /// request is not on its way yet.
    expected: BTreeMap<Key, Option<Instant>>,
    /// Kinds of which a response came, on any stream.
    heard: PerType<bool>,
    holds: Holds,
    published: Arc<ResourceSet>,
    sums: PublishedSums,
    fingerprint: u128,
    status: XdsStatus,
}

impl Session {
    pub(super) fn new(mode: Mode, node: Node, server: String, interner: Arc<Interner>) -> Self {
        let node_shown = Arc::new(node.clone());
        Self {
            mode,
            node,
            interner,
            stream: None,
            cache: Cache::default(),
            asked: PerType::default(),
            expected: BTreeMap::new(),
            heard: PerType::default(),
            holds: Holds::default(),
            published: Arc::default(),
            sums: PublishedSums::default(),
            fingerprint: 0,
            status: XdsStatus {
                server,
                node: node_shown,
                ..XdsStatus::default()
            },
        }
    }

    pub(super) fn status(&mut self) -> &XdsStatus {
        self.status.trouble = self.cache.trouble().clone();
        if self.status.requested.len() != self.expected.len()
            || !self
                .status
                .requested
                .iter()
                .all(|key| self.expected.contains_key(key))
        {
            self.status.requested = Arc::new(self.expected.keys().cloned().collect());
        }
        &self.status
    }

    /// A stream was opened; returns what to send.
    pub(super) fn opened(&mut self) -> Vec<Outgoing> {
        let node = self.node.clone();
        self.stream = Some(match self.mode {
            Mode::Delta => Stream::Delta(Delta::new(node)),
            Mode::Sotw => Stream::Sotw(Sotw::new(node)),
        });
        self.asked = PerType::default();
        self.status.connected = true;
        self.status.since = Some(SystemTime::now());
        self.status.streams += 1;
        self.ask()
    }

    /// A message went out: the server is given [`PATIENCE`] from now on.
    pub(super) fn sent(&mut self, expects: &[Key], now: Instant) {
        for key in expects {
            if let Some(deadline) = self.expected.get_mut(key) {
                deadline.get_or_insert(now + PATIENCE);
            }
        }
    }

    /// The stream ended. Everything it delivered stays in use.
    pub(super) fn closed(&mut self, reason: String) {
        self.stream = None;
        self.expected.clear();
        self.status.connected = false;
        self.status.since = Some(SystemTime::now());
        self.status.error = Some(reason);
    }

    /// Asks for what is wanted and was not asked for.
    fn ask(&mut self) -> Vec<Outgoing> {
        let mut requests = Vec::new();
        let Some(stream) = &mut self.stream else {
            return requests;
        };
        for kind in ResourceType::ALL {
            let version = self.cache.wanted_version(kind);
            if *self.asked.get(kind) == Some(version) {
                continue;
            }
            *self.asked.get_mut(kind) = Some(version);
            let wanted = self.cache.wanted(kind).clone();
            if !kind.is_wildcard() {
                self.cache.forget_unwanted(kind);
                self.expected
                    .retain(|(of, name), _| *of != kind || wanted.contains_key(name.as_str()));
            }
            let asked = match stream {
                Stream::Delta(delta) => {
                    let held = || self.cache.versions(kind);
                    let asked = delta.ask(kind, &wanted, held);
                    asked.map(|(request, names)| (Request::Delta(request), names))
                }
                Stream::Sotw(sotw) => {
                    let version = &self.status.types.get(kind).version;
                    let asked = sotw.ask(kind, &wanted, version);
                    asked.map(|(request, names)| (Request::Sotw(request), names))
                }
            };
            let Some((request, names)) = asked else {
                continue;
            };
            let unknown = |name: &String| {
                let entry = self.cache.get(kind, name);
                entry.is_none_or(|entry| entry.good.is_none())
            };
            let expects: Vec<Key> = names
                .into_iter()
                .filter(unknown)
                .map(|name| (kind, name))
                .collect();
            for key in &expects {
                self.expected.insert(key.clone(), None);
            }
            requests.push(Outgoing { request, expects });
        }
        requests
    }

    /// A response came; returns what to send.
    pub(super) fn received(&mut self, response: Response) -> Vec<Outgoing> {
        let answer = match response {
            Response::Delta(response) => self.delta(&response),
            Response::Sotw(response) => self.sotw(&response),
        };
        let mut requests: Vec<Outgoing> = answer.map(Outgoing::answer).into_iter().collect();
        requests.extend(self.ask());
        requests
    }

    fn delta(&mut self, response: &DeltaDiscoveryResponse) -> Option<Request> {
        let asked = |kind| matches!(&self.stream, Some(Stream::Delta(delta)) if delta.asked(kind));
        let Some(kind) = ResourceType::of(&response.type_url).filter(|kind| asked(*kind)) else {
            tracing::warn!(kind = %response.type_url, "the server sent what it was not asked for");
            return None;
        };
        let mut errors = Vec::new();
        for resource in &response.resources {
            let taken = match &resource.resource {
                // The type of a bare resource lies where the version of a wrapped one does.
                _ if resource.name.is_empty() && resource.version.contains('/') => Err(
                    "the server answers a delta request with the state of the world: \
                     --xds-mode sotw"
                        .into(),
                ),
                Some(any) => self.take(kind, &resource.name, &resource.version, any),
                None => Err("the resource is empty".into()),
            };
            if let Err(reason) = taken {
                self.refuse(kind, &resource.name, &resource.version, &reason);
                errors.push(format!("{}: {reason}", resource.name));
            }
        }
        for name in &response.removed_resources {
            if self.cache.is_wanted(kind, name) {
                self.expected.remove(&(kind, name.clone()));
                self.cache.remove(kind, name);
            }
        }
        self.note(kind, &response.system_version_info, &errors);
        Some(Request::Delta(Delta::answer(response, nack(&errors))))
    }

    fn sotw(&mut self, response: &DiscoveryResponse) -> Option<Request> {
        let asked = |kind| matches!(&self.stream, Some(Stream::Sotw(sotw)) if sotw.asked(kind));
        let Some(kind) = ResourceType::of(&response.type_url).filter(|kind| asked(*kind)) else {
            tracing::warn!(kind = %response.type_url, "the server sent what it was not asked for");
            return None;
        };
        let version = &response.version_info;
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        for any in &response.resources {
            let unwrapped = unwrap(any);
            let (name, any) = match &unwrapped {
                Ok(Some(wrapped)) => match &wrapped.resource {
                    Some(inner) if !wrapped.name.is_empty() => (Ok(wrapped.name.clone()), inner),
                    Some(inner) => (name_of(kind, inner), inner),
                    None => (Err("the resource is empty".to_owned()), any),
                },
                Ok(None) => (name_of(kind, any), any),
                Err(reason) => (Err(reason.clone()), any),
            };
            let name = match name {
                Ok(name) => name,
                Err(reason) => {
                    errors.push(reason);
                    continue;
                }
            };
            if let Err(reason) = self.take(kind, &name, version, any) {
                self.refuse(kind, &name, version, &reason);
                errors.push(format!("{name}: {reason}"));
            }
            seen.insert(name);
        }
        // A response with the whole world also says what is not in it. What could not even be
        // named may be any of what is missing, so then nothing is taken for removed.
        if kind.is_wildcard() && seen.len() == response.resources.len() {
            let gone: Vec<String> = self
                .cache
                .of(kind)
                .keys()
                .filter(|name| !seen.contains(&***name))
                .map(ToString::to_string)
                .collect();
            for name in gone {
                self.cache.remove(kind, &name);
            }
        }
        self.note(kind, version, &errors);
        let accepted = self.status.types.get(kind).version.clone();
        match &mut self.stream {
            Some(Stream::Sotw(sotw)) => {
                let error = nack(&errors);
                Some(Request::Sotw(sotw.answer(kind, response, &accepted, error)))
            }
            _ => None,
        }
    }

    fn take(
        &mut self,
        kind: ResourceType,
        name: &str,
        version: &str,
        any: &Any,
    ) -> Result<(), String> {
        // Nobody asked for it: there are servers that send all they have.
        if !self.cache.is_wanted(kind, name) {
            return Ok(());
        }
        self.expected.remove(&(kind, name.to_owned()));
        let decoded = self.interner.decode(kind, name, any)?;
        self.cache.accept(kind, name, version, decoded);
        Ok(())
    }

    fn refuse(&mut self, kind: ResourceType, name: &str, version: &str, reason: &str) {
        tracing::warn!(%kind, name, version, reason, "a resource was refused; what it replaces stays in use");
        self.cache.reject(kind, name, version, reason);
    }

    fn note(&mut self, kind: ResourceType, version: &str, errors: &[String]) {
        *self.heard.get_mut(kind) = true;
        let now = SystemTime::now();
        let status = self.status.types.get_mut(kind);
        status.responses += 1;
        status.updated = Some(now);
        if errors.is_empty() {
            version.clone_into(&mut status.version);
            status.error = None;
            self.status.updated = Some(now);
        } else {
            status.rejected += 1;
            status.error = Some(cut(&errors.join("; "), MAX_NACK));
        }
    }

    /// When [`Self::expire`] or [`Self::publish`] has something to do without a response.
    pub(super) fn next_timer(&self, now: Instant) -> Option<Instant> {
        let expected = self.expected.values().flatten().min().copied();
        expected.into_iter().chain(self.holds.next(now)).min()
    }

    /// Gives up waiting for what did not come in time.
    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<(ResourceType, String)> = self
            .expected
            .iter()
            .filter(|(_, deadline)| deadline.is_some_and(|deadline| deadline <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for (kind, name) in late {
            tracing::warn!(%kind, name, seconds = PATIENCE.as_secs(), "the server did not send a resource; it is taken not to exist");
            self.cache.expire(kind, &name);
            self.expected.remove(&(kind, name));
        }
    }

    /// Forgets what was decoded and nobody uses any more.
    pub(super) fn tidy(&self) {
        self.interner.tidy();
    }

    /// What may be used by now.
    pub(super) fn publish(&mut self, now: Instant) -> Arc<ResourceSet> {
        self.share();
        let mut next = match self.cache.take_change() {
            Change::None if self.holds.is_empty() => return self.published.clone(),
            Change::Endpoints(services) if self.holds.is_empty() => {
                publish_endpoints(&self.cache, &self.published, &services)
            }
            _ => publish(&self.cache, &self.published, &mut self.holds, now),
        };
        for kind in ResourceType::ALL {
            self.status.types.get_mut(kind).resources = match kind {
                ResourceType::Cluster => next.clusters.len(),
                ResourceType::Endpoint => next.endpoints.len(),
                ResourceType::Listener => next.listeners.len(),
                ResourceType::Route => next.routes.len(),
                ResourceType::Secret => next.secrets.len(),
            };
        }
        if let Some(mut commons) = self.interner.commons() {
            self.fingerprint = commons.share_set(&mut next, &self.published, &mut self.sums);
        }
        self.published = Arc::new(next);
        self.published.clone()
    }

    /// The same for streams that published equal values; 0 for a single stream.
    pub(super) fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Keeps nothing for itself that another stream has, too.
    fn share(&mut self) {
        let Some(mut commons) = self.interner.commons() else {
            return;
        };
        self.cache.share(&mut commons);
        for kind in ResourceType::ALL {
            // Only if all that is wanted was asked for.
            if *self.asked.get(kind) != Some(self.cache.wanted_version(kind)) {
                continue;
            }
            let wanted = self.cache.wanted(kind);
            match &mut self.stream {
                Some(Stream::Delta(delta)) => delta.asked_as(kind, wanted),
                Some(Stream::Sotw(sotw)) => sotw.asked_as(kind, wanted),
                None => {}
            }
        }
    }

    /// Whether the first configuration is complete: listeners and clusters came, and nothing
    /// they refer to is waited for.
    pub(super) fn complete(&self) -> bool {
        let heard = |kind| *self.heard.get(kind);
        heard(ResourceType::Cluster)
            && heard(ResourceType::Listener)
            && self.expected.is_empty()
            && self.holds.is_empty()
    }
}

#[cfg(test)]
impl Session {
    /// Whether endpoints are known not to exist; `None`: nothing is known.
    pub(super) fn cache_says_absent(&self, name: &str) -> Option<bool> {
        let entry = self.cache.get(ResourceType::Endpoint, name)?;
        Some(entry.absent)
    }

    /// How many maps of two sessions are one in memory: what is held and what is wanted.
    pub(super) fn shared_with(&self, other: &Self) -> usize {
        let kinds = ResourceType::ALL.into_iter();
        let held = |kind| std::ptr::eq(self.cache.of(kind), other.cache.of(kind));
        let wanted = |kind| Arc::ptr_eq(self.cache.wanted(kind), other.cache.wanted(kind));
        let empty = |kind| self.cache.of(kind).is_empty() && other.cache.of(kind).is_empty();
        let none = |kind| {
            let (one, other) = (self.cache.wanted(kind), other.cache.wanted(kind));
            one.is_empty() && other.is_empty()
        };
        let shared =
            |kind| usize::from(held(kind) || empty(kind)) + usize::from(wanted(kind) || none(kind));
        kinds.map(shared).sum()
    }
}

/// A rejection that names every resource, cut to a bearable length.
fn nack(errors: &[String]) -> Option<Status> {
    if errors.is_empty() {
        return None;
    }
    let message = cut(&errors.join("\n"), MAX_NACK);
    Some(Status {
        code: INVALID_ARGUMENT,
        message,
        ..Status::default()
    })
}

fn unwrap(any: &Any) -> Result<Option<Resource>, String> {
    if any.type_url != WRAPPER {
        return Ok(None);
    }
    Resource::decode(any.value.as_slice())
        .map(Some)
        .map_err(|error| format!("malformed Resource: {error}"))
}
