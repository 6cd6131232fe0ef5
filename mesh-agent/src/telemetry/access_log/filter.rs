//! Whether an entry is written.

use http::HeaderName;

use crate::config::model::access_log::Filter;
use crate::config::model::matcher::{HeaderKey, HeaderMatcher, MetadataMatcher};
use crate::config::model::response_flag::ResponseFlag;

use super::entry::{Entry, Kind};

/// Istio's and Envoy's health checks call themselves so.
const HEALTH_CHECKER: &[u8] = b"Envoy/HC";

impl Filter {
    pub(crate) fn holds(&self, entry: &Entry<'_>) -> bool {
        match self {
            Self::Status(comparison) => comparison.holds(u64::from(entry.status.unwrap_or(0))),
            Self::Duration(comparison) => comparison.holds(entry.spans.whole.as_millis() as u64),
            Self::NotHealthCheck => !is_health_check(entry),
            Self::Share(share) => share.holds(fastrand::u64(..)),
            Self::All(filters) => filters.iter().all(|filter| filter.holds(entry)),
            Self::Any(filters) => filters.iter().any(|filter| filter.holds(entry)),
            Self::Header(matcher) => header(matcher, entry),
            Self::Flags(None) => !entry.flags.is_empty(),
            Self::Flags(Some(flags)) => entry.flags.meets(*flags),
            Self::Grpc { statuses, exclude } => {
                let status = entry
                    .grpc_status
                    .unwrap_or_else(|| http_to_grpc(entry.status.unwrap_or(0)));
                (status < 32 && statuses & (1 << status) != 0) != *exclude
            }
            Self::Metadata { matcher, missing } => metadata(matcher, *missing, entry),
            Self::Kinds {
                requests,
                connections,
            } => match entry.kind {
                Kind::Request => *requests,
                Kind::Connection => *connections,
            },
        }
    }
}

fn is_health_check(entry: &Entry<'_>) -> bool {
    const USER_AGENT: HeaderName = http::header::USER_AGENT;
    entry.flags.has(ResponseFlag::FailedLocalHealthCheck)
        || entry
            .request
            .and_then(|head| head.get(&HeaderKey::Header(USER_AGENT)))
            .is_some_and(|agent| agent.starts_with(HEALTH_CHECKER))
}

fn header(matcher: &HeaderMatcher, entry: &Entry<'_>) -> bool {
    let Some(head) = entry.request else {
        return matcher.matches(std::iter::empty());
    };
    match &matcher.name {
        HeaderKey::Header(name) => {
            let values = head.headers.values(name);
            matcher.matches(values.into_iter().map(String::from_utf8_lossy))
        }
        key => matcher.matches(head.get(key).into_iter().map(String::from_utf8_lossy)),
    }
}

fn metadata(matcher: &MetadataMatcher, missing: bool, entry: &Entry<'_>) -> bool {
    let mut found = entry.metadata.get(&matcher.filter);
    for key in &matcher.path {
        found = found.and_then(|value| value.get(&**key));
    }
    if found.is_none() {
        return missing;
    }
    matcher.matches(entry.metadata.get(&matcher.filter))
}

/// Envoy: `Grpc::Utility::httpToGrpcStatus`.
pub(super) fn http_to_grpc(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
