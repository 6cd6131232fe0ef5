//! Copies of requests for other clusters.

use std::sync::Arc;

use http::HeaderName;

use super::{Fraction, Name};

/// Envoy's `RequestMirrorPolicy`.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Who gets the copies.
    pub cluster: MirrorCluster,
    /// The share of requests that is copied.
    pub fraction: Fraction,
    /// `-shadow` is appended to the host (`disable_shadow_host_suffix_append`).
    pub host_suffix: bool,
    /// The host of the copies, instead of the request's own.
    pub host_rewrite: Option<Arc<str>>,
}

/// How the cluster of a copy is found.
#[derive(Debug, Clone)]
pub enum MirrorCluster {
    /// Always this one.
    Cluster(Name),
    /// The one a request header names.
    Header(HeaderName),
}

/// Every cluster that mirrors of a route action at `at` name, with the place that names it.
pub(super) fn names<'m>(
    mirrors: &'m [Mirror],
    at: &str,
) -> impl Iterator<Item = (String, &'m Name)> {
    mirrors
        .iter()
        .enumerate()
        .filter_map(move |(i, mirror)| match &mirror.cluster {
            MirrorCluster::Cluster(name) => {
                Some((format!("{at}.request_mirror_policies[{i}].cluster"), name))
            }
            MirrorCluster::Header(_) => None,
        })
}
