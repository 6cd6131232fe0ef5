//! Conversions of single resources: typed protobuf messages into the model.
//!
//! They serve the file source and the xDS client alike.

mod access_log;
mod address;
mod alpn;
mod client_weights;
mod cluster;
mod endpoint;
mod filter;
mod hash;
mod hbone;
mod hcm;
mod headers;
mod health_check;
mod inspectors;
mod internal_redirect;
mod listener;
mod local_reply;
mod matcher;
mod mirror;
mod network_rbac;
mod outlier;
mod path_template;
mod rate_limit;
mod retry;
mod route;
mod secret;
mod service;
mod slow_start;
mod subset;
mod tls;
mod typed;

#[cfg(test)]
mod ignored_tests;

use std::time::Duration;

use envoy_types::pb::google::protobuf::{self, Any};
use prost::Message;
use prost::bytes::Bytes;

use super::error::Problem;
use super::support;

pub use cluster::cluster;
pub use endpoint::load_assignment;
pub use listener::listener;
pub use route::route_configuration;
pub use secret::secret;
pub(crate) use typed::typed_struct;

/// Network filters of listeners and clusters accepted without effect: they only feed Istio's own
/// telemetry.
const IGNORED_NETWORK_FILTERS: &[&str] = &[
    "istio.metadata_exchange",
    "istio.peer_metadata",
    "istio.stats",
    "envoy.filters.network.metadata_exchange",
    "envoy.filters.network.upstream.peer_metadata",
];

/// A value, or everything that is wrong with its message.
pub type Converted<T> = Result<T, Vec<Problem>>;

/// Collects problems while a conversion goes on as far as it can.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// A collector that starts with the fields that are not understood.
    fn of(name: &str, message: &impl Message) -> Self {
        let mut problems = Self::default();
        problems.check(name, message);
        problems
    }

    /// Adds the fields that are not understood.
    fn check(&mut self, name: &str, message: &impl Message) {
        support::check(name, Bytes::from(message.encode_to_vec()), &mut self.0);
    }

    fn push(&mut self, path: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Problem::new(path, reason));
    }

    fn hint(
        &mut self,
        path: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(Problem::new(path, reason).remedy(remedy));
    }

    fn finish<T>(self, value: impl FnOnce() -> T) -> Converted<T> {
        if self.0.is_empty() {
            Ok(value())
        } else {
            Err(self.0)
        }
    }
}

/// Decodes what an `Any` holds.
fn decode<M: Message + Default>(any: &Any, path: &str, problems: &mut Problems) -> Option<M> {
    match M::decode(any.value.as_slice()) {
        Ok(message) => Some(message),
        Err(error) => {
            problems.push(path, format!("malformed {}: {error}", type_name(any)));
            None
        }
    }
}

/// The full name of the message an `Any` holds.
fn type_name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether a filter is one of `known`, by the type of its configuration or by its name. A name
/// never speaks for a filter whose type is one of Envoy's: an access check called
/// `istio.stats` stays an access check.
fn is_one_of(known: &[&str], name: &str, type_name: &str) -> bool {
    known.contains(&type_name) || (!type_name.starts_with("envoy.") && known.contains(&name))
}

/// A duration that must not be negative.
fn duration(value: &protobuf::Duration, path: &str, problems: &mut Problems) -> Duration {
    if value.seconds < 0 || value.nanos < 0 || value.nanos >= 1_000_000_000 {
        problems.push(path, "must not be negative");
        return Duration::ZERO;
    }
    Duration::new(value.seconds as u64, value.nanos as u32)
}

/// A timeout whose absence means a default and whose zero means never.
fn timeout(
    value: Option<&protobuf::Duration>,
    default: Option<Duration>,
    path: &str,
    problems: &mut Problems,
) -> Option<Duration> {
    match value {
        None => default,
        Some(value) => Some(duration(value, path, problems)).filter(|value| !value.is_zero()),
    }
}
