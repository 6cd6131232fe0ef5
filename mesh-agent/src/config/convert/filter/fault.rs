//! `envoy.filters.http.fault`

use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use http::StatusCode;

use crate::config::convert::{Problems, duration, matcher};
use crate::config::model::filter::fault::{Abort, AbortWith, Delay, Fault};

use super::fraction;

pub(super) fn convert(message: &pb::HttpFault, path: &str, problems: &mut Problems) -> Fault {
    let delay = message.delay.as_ref().and_then(|delay| {
        let fixed = match &delay.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(fixed)) => Some(duration(
                fixed,
                &format!("{path}.delay.fixed_delay"),
                problems,
            )),
            Some(FaultDelaySecifier::HeaderDelay(_)) => None,
            None => {
                problems.push(
                    format!("{path}.delay"),
                    "how long is missing: fixed_delay or header_delay",
                );
                return None;
            }
        };
        Some(Delay {
            fraction: fraction(delay.percentage.as_ref()),
            fixed,
        })
    });
    let abort = message.abort.as_ref().and_then(|abort| {
        let with = match &abort.error_type {
            Some(ErrorType::HttpStatus(status)) => {
                let status = u16::try_from(*status)
                    .ok()
                    .filter(|status| (200..600).contains(status))
                    .and_then(|status| StatusCode::from_u16(status).ok());
                let Some(status) = status else {
                    problems.push(
                        format!("{path}.abort.http_status"),
                        "must be from 200 to 599",
                    );
                    return None;
                };
                AbortWith::Http(status)
            }
            Some(ErrorType::GrpcStatus(status)) => {
                AbortWith::Grpc(u16::try_from(*status).unwrap_or(2))
            }
            Some(ErrorType::HeaderAbort(_)) => AbortWith::Header,
            None => {
                problems.push(
                    format!("{path}.abort"),
                    "the answer is missing: http_status, grpc_status or header_abort",
                );
                return None;
            }
        };
        Some(Abort {
            fraction: fraction(abort.percentage.as_ref()),
            with,
        })
    });
    Fault {
        delay,
        abort,
        upstream_cluster: (!message.upstream_cluster.is_empty())
            .then(|| message.upstream_cluster.as_str().into()),
        headers: message
            .headers
            .iter()
            .enumerate()
            .filter_map(|(i, header)| {
                matcher::header(header, &format!("{path}.headers[{i}]"), problems)
            })
            .collect(),
        downstream_nodes: message
            .downstream_nodes
            .iter()
            .map(|node| node.as_str().into())
            .collect(),
        max_active: message.max_active_faults.as_ref().map(|max| max.value),
        active: std::sync::Arc::default(),
    }
}
