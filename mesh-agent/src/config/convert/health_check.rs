//! Active health checks.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::health_check as pb;
use envoy_types::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use http::{HeaderName, HeaderValue, Method};

use crate::config::model::health_check::{
    EndpointCheck, GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe,
};

use super::{Problems, duration};

/// Envoy's interval while nobody uses a cluster.
const NO_TRAFFIC: Duration = Duration::from_secs(60);

/// The health check of a cluster.
pub(super) fn convert(
    messages: &[core::HealthCheck],
    problems: &mut Problems,
) -> Option<HealthCheck> {
    let [message, rest @ ..] = messages else {
        return None;
    };
    if !rest.is_empty() {
        problems.push("health_checks", "a cluster has one health check at most");
    }
    let path = "health_checks[0]";
    let time = |value: &Option<_>, field: &str, problems: &mut Problems| {
        value
            .as_ref()
            .map(|value| duration(value, &format!("{path}.{field}"), problems))
    };
    let needed = |value: &Option<_>, field: &str, problems: &mut Problems| {
        let time = time(value, field, problems).unwrap_or_default();
        if time.is_zero() {
            problems.push(format!("{path}.{field}"), "must be more than 0");
        }
        time
    };
    let interval = needed(&message.interval, "interval", problems);
    let mut or_interval =
        |value: &Option<_>, field: &str| time(value, field, problems).unwrap_or(interval);
    let unhealthy_interval = or_interval(&message.unhealthy_interval, "unhealthy_interval");
    let healthy_edge_interval =
        or_interval(&message.healthy_edge_interval, "healthy_edge_interval");
    let unhealthy_edge_interval = time(
        &message.unhealthy_edge_interval,
        "unhealthy_edge_interval",
        problems,
    )
    .unwrap_or(unhealthy_interval);
    let no_traffic_interval = time(
        &message.no_traffic_interval,
        "no_traffic_interval",
        problems,
    )
    .unwrap_or(NO_TRAFFIC);
    let no_traffic_healthy_interval = time(
        &message.no_traffic_healthy_interval,
        "no_traffic_healthy_interval",
        problems,
    )
    .unwrap_or(no_traffic_interval);
    let threshold = |value: &Option<envoy_types::pb::google::protobuf::UInt32Value>,
                     field: &str,
                     problems: &mut Problems| match value {
        Some(value) => value.value.max(1),
        None => {
            problems.push(format!("{path}.{field}"), "is missing");
            1
        }
    };
    let probe = probe(message.health_checker.as_ref(), path, problems)?;
    Some(HealthCheck {
        timeout: needed(&message.timeout, "timeout", problems),
        interval,
        initial_jitter: time(&message.initial_jitter, "initial_jitter", problems)
            .unwrap_or_default(),
        interval_jitter: time(&message.interval_jitter, "interval_jitter", problems)
            .unwrap_or_default(),
        interval_jitter_percent: message.interval_jitter_percent,
        unhealthy_threshold: threshold(
            &message.unhealthy_threshold,
            "unhealthy_threshold",
            problems,
        ),
        healthy_threshold: threshold(&message.healthy_threshold, "healthy_threshold", problems),
        reuse_connection: message
            .reuse_connection
            .as_ref()
            .is_none_or(|value| value.value),
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        probe,
    })
}

fn probe(
    message: Option<&pb::HealthChecker>,
    path: &str,
    problems: &mut Problems,
) -> Option<Probe> {
    match message {
        Some(pb::HealthChecker::HttpHealthCheck(message)) => {
            http(message, &format!("{path}.http_health_check"), problems).map(Probe::Http)
        }
        Some(pb::HealthChecker::TcpHealthCheck(message)) => {
            tcp(message, &format!("{path}.tcp_health_check"), problems).map(Probe::Tcp)
        }
        Some(pb::HealthChecker::GrpcHealthCheck(message)) => {
            let path = format!("{path}.grpc_health_check");
            Some(Probe::Grpc(GrpcProbe {
                service: message.service_name.as_str().into(),
                authority: (!message.authority.is_empty())
                    .then(|| message.authority.as_str().into()),
                headers: headers(
                    &message.initial_metadata,
                    &format!("{path}.initial_metadata"),
                    problems,
                ),
            }))
        }
        Some(pb::HealthChecker::CustomHealthCheck(custom)) => {
            problems.hint(
                format!("{path}.custom_health_check"),
                format!("{} is not supported", custom.name),
                "use http_health_check, tcp_health_check or grpc_health_check",
            );
            None
        }
        None => {
            problems.push(path, "what is checked is missing: http_health_check, tcp_health_check or grpc_health_check");
            None
        }
    }
}

fn http(message: &pb::HttpHealthCheck, path: &str, problems: &mut Problems) -> Option<HttpProbe> {
    if !message.path.starts_with('/') {
        problems.push(format!("{path}.path"), "must begin with /");
    }
    let method = match core::RequestMethod::try_from(message.method) {
        Ok(core::RequestMethod::MethodUnspecified) | Err(_) => Method::GET,
        Ok(method) => Method::try_from(method.as_str_name()).unwrap_or(Method::GET),
    };
    let expected = ranges(
        &message.expected_statuses,
        &format!("{path}.expected_statuses"),
        problems,
    );
    let remove = message.request_headers_to_remove.iter().enumerate();
    Some(HttpProbe {
        host: (!message.host.is_empty()).then(|| message.host.as_str().into()),
        path: message.path.as_str().into(),
        method,
        headers: headers(
            &message.request_headers_to_add,
            &format!("{path}.request_headers_to_add"),
            problems,
        ),
        remove: remove
            .filter_map(|(i, name)| {
                let name = HeaderName::try_from(name.as_str()).ok();
                if name.is_none() {
                    let path = format!("{path}.request_headers_to_remove[{i}]");
                    problems.push(path, "is not a header name");
                }
                name
            })
            .collect(),
        expected: if expected.is_empty() {
            std::iter::once(200..201).collect()
        } else {
            expected
        },
        retriable: ranges(
            &message.retriable_statuses,
            &format!("{path}.retriable_statuses"),
            problems,
        ),
        http2: match CodecClientType::try_from(message.codec_client_type) {
            Ok(CodecClientType::Http2) => true,
            Ok(CodecClientType::Http3) => {
                problems.push(
                    format!("{path}.codec_client_type"),
                    "HTTP/3 is not supported",
                );
                return None;
            }
            _ => false,
        },
    })
}

fn ranges(messages: &[Int64Range], path: &str, problems: &mut Problems) -> Vec<Range<u16>> {
    messages
        .iter()
        .enumerate()
        .filter_map(|(i, range)| {
            let start = u16::try_from(range.start).ok();
            let end = u16::try_from(range.end).ok();
            match (start, end) {
                (Some(start @ 100..), Some(end @ ..=600)) if start < end => Some(start..end),
                _ => {
                    problems.push(
                        format!("{path}[{i}]"),
                        "must be a range within 100 to 600, whose end is left out",
                    );
                    None
                }
            }
        })
        .collect()
}

/// Values are taken as they stand: a check has no request to read from.
fn headers(
    messages: &[core::HeaderValueOption],
    path: &str,
    problems: &mut Problems,
) -> Vec<(HeaderName, HeaderValue)> {
    messages
        .iter()
        .enumerate()
        .filter_map(|(i, option)| {
            let header = option.header.as_ref()?;
            let name = HeaderName::try_from(header.key.as_str()).ok();
            let value = HeaderValue::from_str(&header.value).ok();
            let plain = !header.value.contains('%');
            let pair = name.zip(value).filter(|_| plain);
            if pair.is_none() {
                problems.push(
                    format!("{path}[{i}].header"),
                    "is not a header of a health check: operators are not supported there",
                );
            }
            pair
        })
        .collect()
}

fn tcp(message: &pb::TcpHealthCheck, path: &str, problems: &mut Problems) -> Option<TcpProbe> {
    let send = match &message.send {
        Some(payload) => bytes(payload, &format!("{path}.send"), problems)?,
        None => Bytes::new(),
    };
    let receive = message.receive.iter().enumerate();
    Some(TcpProbe {
        send,
        receive: receive
            .map(|(i, payload)| bytes(payload, &format!("{path}.receive[{i}]"), problems))
            .collect::<Option<_>>()?,
    })
}

fn bytes(message: &pb::Payload, path: &str, problems: &mut Problems) -> Option<Bytes> {
    match &message.payload {
        Some(pb::payload::Payload::Binary(bytes)) => Some(bytes.clone().into()),
        Some(pb::payload::Payload::Text(hex)) => {
            let digits = hex.as_bytes();
            let byte = |pair: &[u8]| {
                let pair = std::str::from_utf8(pair).ok()?;
                u8::from_str_radix(pair, 16).ok()
            };
            let bytes: Option<Vec<u8>> = digits.chunks(2).map(byte).collect();
            match bytes {
                Some(bytes) if digits.len().is_multiple_of(2) && !bytes.is_empty() => {
                    Some(bytes.into())
                }
                _ => {
                    problems.push(format!("{path}.text"), "must be bytes in hexadecimal");
                    None
                }
            }
        }
        None => {
            problems.push(path, "bytes are missing: text or binary");
            None
        }
    }
}

/// What an endpoint says of its checks.
pub(super) fn endpoint(
    message: Option<&HealthCheckConfig>,
    path: &str,
    problems: &mut Problems,
) -> EndpointCheck {
    let Some(message) = message else {
        return EndpointCheck::default();
    };
    let port = u16::try_from(message.port_value).ok();
    if port.is_none() {
        problems.push(format!("{path}.port_value"), "is not a port");
    }
    EndpointCheck {
        port: port.filter(|port| *port > 0),
        hostname: message.hostname.as_str().into(),
        disabled: message.disable_active_health_check,
    }
}
