//! What a request is counted by.

use std::net::IpAddr;

use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as pb;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{
    Entry, RateLimitOverride,
};
use envoy_types::pb::google::protobuf::UInt64Value;
use ipnet::IpNet;
use serde_json::Value;

use crate::config::model::rate_limit::{Action, HostLimits, LimitOverride, MetadataKey, RateLimit};
use crate::config::model::route::RouteAction;
use crate::proxy::http::message::{Request, text};
use crate::proxy::http::router::{self, header_matches};

use super::Call;

/// Units by name, as metadata says them.
const UNITS: [(&str, i32); 6] = [
    ("SECOND", 1),
    ("MINUTE", 2),
    ("HOUR", 3),
    ("DAY", 4),
    ("MONTH", 5),
    ("YEAR", 6),
];

/// Which limits count: `own` of the filter alone, if it has any; otherwise the route's with the
/// virtual host's (Envoy: `Filter::initiateCall`). A filter's own limits have no stages.
pub(super) fn of(
    call: &Call<'_>,
    request: &Request,
    own: &[RateLimit],
    host_limits: HostLimits,
    stage: u32,
) -> Vec<pb::RateLimitDescriptor> {
    let mut made = Vec::new();
    let mut add = |limits: &[RateLimit], own: bool| {
        let limits = limits.iter().filter(|limit| own || limit.stage == stage);
        made.extend(limits.filter_map(|limit| {
            let mut made = descriptor(call, request, limit)?;
            made.hits_addend = limit
                .hits
                .filter(|_| own)
                .map(|value| UInt64Value { value });
            Some(made)
        }));
    };
    if !own.is_empty() {
        add(own, true);
        return made;
    }
    let Some((host, route)) = call.matched.get() else {
        return made;
    };
    let RouteAction::Forward(forward) = &route.action else {
        return made;
    };
    // Envoy 1.40: `hits_addend` of routes and virtual hosts is not told.
    add(&forward.rate_limits, false);
    let with_host = forward.include_host_rate_limits
        || match host_limits {
            HostLimits::Include => true,
            HostLimits::Override => forward.rate_limits.is_empty(),
            HostLimits::Ignore => false,
        };
    if with_host {
        add(&host.rate_limits, false);
    }
    made
}

/// `None`: one of the actions has nothing to say.
fn descriptor(
    call: &Call<'_>,
    request: &Request,
    limit: &RateLimit,
) -> Option<pb::RateLimitDescriptor> {
    let mut entries = Vec::with_capacity(limit.actions.len());
    for action in &limit.actions {
        match entry(call, request, action) {
            Said::Entry(key, value) => entries.push(Entry {
                key: key.to_owned(),
                value,
            }),
            Said::Skip => {}
            Said::Nothing => return None,
        }
    }
    if entries.is_empty() {
        return None;
    }
    let limit_override = match &limit.limit {
        None => None,
        Some(LimitOverride::Fixed {
            requests_per_unit,
            unit,
        }) => Some(RateLimitOverride {
            requests_per_unit: *requests_per_unit,
            unit: *unit,
        }),
        Some(LimitOverride::Metadata(key)) => found(request, key).and_then(told_limit),
    };
    Some(pb::RateLimitDescriptor {
        entries,
        limit: limit_override,
        ..Default::default()
    })
}

enum Said<'a> {
    Entry(&'a str, String),
    Skip,
    Nothing,
}

impl<'a> Said<'a> {
    fn of(key: &'a str, value: Option<String>, skip: bool) -> Self {
        match value {
            Some(value) => Self::Entry(key, value),
            None if skip => Self::Skip,
            None => Self::Nothing,
        }
    }

    fn when(holds: bool, key: &'a str, value: &str) -> Self {
        Self::of(key, holds.then(|| value.to_owned()), false)
    }
}

fn entry<'a>(call: &Call<'_>, request: &Request, action: &'a Action) -> Said<'a> {
    match action {
        Action::SourceCluster => {
            let workload = &call.connection.caught.pod.workload;
            let name = format!("{}.{}", workload.name, workload.namespace);
            Said::Entry("source_cluster", name)
        }
        Action::DestinationCluster => {
            let name = call.cluster().unwrap_or_default().to_owned();
            Said::Entry("destination_cluster", name)
        }
        Action::RemoteAddress => Said::Entry("remote_address", call.remote.to_string()),
        Action::MaskedRemoteAddress { v4, v6 } => {
            let bits = match call.remote {
                IpAddr::V4(_) => *v4,
                IpAddr::V6(_) => *v6,
            };
            let net = IpNet::new(call.remote, bits).ok();
            let net = net.map(|net| net.trunc().to_string());
            Said::of("masked_remote_address", net, false)
        }
        Action::Header {
            name,
            key,
            skip_if_absent,
        } => {
            let value = request
                .headers
                .get(name)
                .map(|value| text(value).to_owned());
            Said::of(key, value, *skip_if_absent)
        }
        Action::Query {
            name,
            key,
            skip_if_absent,
        } => {
            let query = request.path.query().unwrap_or_default();
            let value = query.split('&').find_map(|pair| {
                let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
                (found == &**name).then(|| value.to_owned())
            });
            Said::of(key, value, *skip_if_absent)
        }
        Action::Fixed { key, value } => Said::Entry(key, value.to_string()),
        Action::HeaderMatch {
            key,
            value,
            expected,
            headers,
        } => {
            let matched = headers.iter().all(|header| header_matches(header, request));
            Said::when(matched == *expected, key, value)
        }
        Action::QueryMatch {
            key,
            value,
            expected,
            parameters,
        } => {
            let matched = router::query_matches(parameters, request);
            Said::when(matched == *expected, key, value)
        }
        Action::AddressMatch {
            key,
            value,
            ranges,
            invert,
        } => {
            let within = ranges.iter().any(|range| range.contains(&call.remote));
            Said::when(within != *invert, key, value)
        }
        Action::Metadata {
            key,
            source,
            default,
            skip_if_absent,
        } => {
            let value = found(request, source).and_then(Value::as_str);
            let value = value.filter(|value| !value.is_empty());
            let value = value.or((!default.is_empty()).then_some(&**default));
            Said::of(key, value.map(str::to_owned), *skip_if_absent)
        }
    }
}

fn found<'r>(request: &'r Request, key: &MetadataKey) -> Option<&'r Value> {
    let whole = request.metadata.get(&key.filter)?;
    key.path
        .iter()
        .try_fold(whole, |value, key| value.get(&**key))
}

fn told_limit(value: &Value) -> Option<RateLimitOverride> {
    let requests = value.get("requests_per_unit")?.as_f64()?;
    let unit = value.get("unit")?.as_str()?;
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some(RateLimitOverride {
        requests_per_unit: requests as u32,
        unit: *unit,
    })
}
