//! Command operators.

use std::sync::Arc;

use crate::config::convert::{Problems, matcher};
use crate::config::model::access_log::{
    GrpcForm, Operator, Part, PeerField, Span, TimeFormat, Whose,
};
use crate::config::model::matcher::HeaderKey;

use super::time;

/// Those without an argument.
fn plain(name: &str) -> Option<Operator> {
    use Operator as O;
    let address = |whose, part| O::Address(whose, part);
    Some(match name {
        "START_TIME" => O::StartTime(TimeFormat::Iso),
        "DURATION" => O::Duration(Span::Whole),
        "REQUEST_DURATION" => O::Duration(Span::Request),
        "RESPONSE_DURATION" => O::Duration(Span::Response),
        "RESPONSE_TX_DURATION" => O::Duration(Span::ResponseTx),
        "BYTES_RECEIVED" => O::BytesReceived,
        "BYTES_SENT" => O::BytesSent,
        "PROTOCOL" => O::Protocol,
        "RESPONSE_CODE" => O::ResponseCode,
        "RESPONSE_CODE_DETAILS" => O::ResponseCodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => O::ConnectionTerminationDetails,
        "RESPONSE_FLAGS" => O::ResponseFlags { long: false },
        "RESPONSE_FLAGS_LONG" => O::ResponseFlags { long: true },
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => O::Attempts,
        "ROUTE_NAME" => O::RouteName,
        "FILTER_CHAIN_NAME" => O::FilterChainName,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => O::UpstreamCluster,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => O::UpstreamTransportFailure,
        "UPSTREAM_HOST" => address(Whose::UpstreamHost, Part::Whole),
        "UPSTREAM_REMOTE_ADDRESS" => address(Whose::UpstreamRemote, Part::Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address(Whose::UpstreamRemote, Part::Ip),
        "UPSTREAM_REMOTE_PORT" => address(Whose::UpstreamRemote, Part::Port),
        "UPSTREAM_LOCAL_ADDRESS" => address(Whose::UpstreamLocal, Part::Whole),
        "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address(Whose::UpstreamLocal, Part::Ip),
        "UPSTREAM_LOCAL_PORT" => address(Whose::UpstreamLocal, Part::Port),
        "DOWNSTREAM_REMOTE_ADDRESS" => address(Whose::DownstreamRemote, Part::Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => address(Whose::DownstreamRemote, Part::Ip),
        "DOWNSTREAM_REMOTE_PORT" => address(Whose::DownstreamRemote, Part::Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => address(Whose::DownstreamDirectRemote, Part::Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => {
            address(Whose::DownstreamDirectRemote, Part::Ip)
        }
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => address(Whose::DownstreamDirectRemote, Part::Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => address(Whose::DownstreamLocal, Part::Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => address(Whose::DownstreamLocal, Part::Ip),
        "DOWNSTREAM_LOCAL_PORT" => address(Whose::DownstreamLocal, Part::Port),
        "GRPC_STATUS" => O::GrpcStatus(GrpcForm::Camel),
        "GRPC_STATUS_NUMBER" => O::GrpcStatus(GrpcForm::Number),
        "REQUESTED_SERVER_NAME" => O::RequestedServerName,
        "DOWNSTREAM_PEER_URI_SAN" => O::PeerUriSan,
        "DOWNSTREAM_PEER_SUBJECT" => O::PeerSubject,
        "DOWNSTREAM_PEER_FINGERPRINT_256" => O::PeerFingerprint,
        "DOWNSTREAM_LOCAL_URI_SAN" => O::LocalUriSan,
        "CONNECTION_ID" => O::ConnectionId,
        "ACCESS_LOG_TYPE" => O::LogType,
        "LOCAL_REPLY_BODY" => O::LocalReplyBody,
        "HOSTNAME" => O::Fixed(
            nix::unistd::gethostname()
                .ok()
                .map(|name| name.to_string_lossy().into()),
        ),
        _ => return None,
    })
}

/// Those with one, as they are listed in errors.
const WITH_ARGUMENT: [&str; 10] = [
    "START_TIME(format)",
    "REQ(header?instead)",
    "REQ_WITHOUT_QUERY(header?instead)",
    "RESP(header?instead)",
    "TRAILER(header?instead)",
    "DYNAMIC_METADATA(filter:key)",
    "METADATA(DYNAMIC:filter:key)",
    "GRPC_STATUS(SNAKE_STRING)",
    "ENVIRONMENT(name)",
    "FILTER_STATE(upstream_peer:FIELD:workload)",
];

pub(super) fn convert(
    name: &str,
    argument: Option<&str>,
    path: &str,
    problems: &mut Problems,
) -> Option<Operator> {
    let Some(argument) = argument else {
        let known = plain(name);
        if known.is_none() {
            unknown(name, path, problems);
        }
        return known;
    };
    match name {
        "START_TIME" => match time::parse(argument) {
            Ok(format) => Some(Operator::StartTime(format)),
            Err(reason) => {
                problems.push(path, format!("%START_TIME({argument})%: {reason}"));
                None
            }
        },
        "REQ" | "REQ_WITHOUT_QUERY" => {
            let (header, instead) = headers(argument, path, problems)?;
            Some(Operator::Request {
                header,
                instead,
                without_query: name != "REQ",
            })
        }
        "RESP" => {
            let (header, instead) = headers(argument, path, problems)?;
            Some(Operator::Response { header, instead })
        }
        "TRAILER" => {
            let (header, instead) = headers(argument, path, problems)?;
            Some(Operator::Trailer { header, instead })
        }
        "DYNAMIC_METADATA" => Some(metadata(argument)),
        "METADATA" => match argument.strip_prefix("DYNAMIC:") {
            Some(rest) => Some(metadata(rest)),
            None => {
                problems.push(
                    path,
                    format!("%METADATA({argument})%: only DYNAMIC metadata is supported"),
                );
                None
            }
        },
        "GRPC_STATUS" => match argument {
            "" | "CAMEL_STRING" => Some(Operator::GrpcStatus(GrpcForm::Camel)),
            "SNAKE_STRING" => Some(Operator::GrpcStatus(GrpcForm::Snake)),
            "NUMBER" => Some(Operator::GrpcStatus(GrpcForm::Number)),
            _ => {
                problems.push(
                    path,
                    format!(
                        "%GRPC_STATUS({argument})%: known are CAMEL_STRING, SNAKE_STRING, NUMBER"
                    ),
                );
                None
            }
        },
        // What is not set is written as such wherever it stands.
        "ENVIRONMENT" => Some(Operator::Fixed(Some(
            std::env::var(argument).map_or_else(|_| "-".into(), Into::into),
        ))),
        "FILTER_STATE" => peer(argument, path, problems),
        _ => {
            unknown(name, path, problems);
            None
        }
    }
}

fn unknown(name: &str, path: &str, problems: &mut Problems) {
    problems.hint(
        path,
        format!("%{name}% is not supported yet"),
        format!(
            "known with an argument are {}; without, see docs/configuration.md",
            WITH_ARGUMENT.join(", ")
        ),
    );
}

fn headers(
    argument: &str,
    path: &str,
    problems: &mut Problems,
) -> Option<(HeaderKey, Option<HeaderKey>)> {
    let (first, second) = match argument.split_once('?') {
        Some((first, second)) => (first, Some(second)),
        None => (argument, None),
    };
    let mut key = |name: &str| matcher::header_key(&name.to_ascii_lowercase(), path, problems);
    let header = key(first)?;
    let instead = match second {
        Some(name) => Some(key(name)?),
        None => None,
    };
    Some((header, instead))
}

fn metadata(argument: &str) -> Operator {
    let mut parts = argument.split(':').map(Arc::from);
    Operator::DynamicMetadata {
        filter: parts.next().unwrap_or_default(),
        path: parts.collect(),
    }
}

/// What Istio keeps of peers, under the names of its filters.
fn peer(argument: &str, path: &str, problems: &mut Problems) -> Option<Operator> {
    let (key, rest) = argument.split_once(':').unwrap_or((argument, ""));
    let upstream = match key {
        "upstream_peer" => true,
        "downstream_peer" => false,
        _ => {
            problems.hint(
                path,
                format!("%FILTER_STATE({argument})% is not supported"),
                "known are upstream_peer:FIELD:name and downstream_peer:FIELD:name",
            );
            return None;
        }
    };
    let field = match rest.strip_prefix("FIELD:").unwrap_or(rest) {
        "name" => PeerField::Name,
        "namespace" => PeerField::Namespace,
        "workload" => PeerField::Workload,
        "service" => PeerField::Service,
        "revision" => PeerField::Revision,
        "app" => PeerField::App,
        "version" => PeerField::Version,
        "identity" => PeerField::Identity,
        other => {
            problems.hint(
                path,
                format!("%FILTER_STATE({argument})%: field {other:?} is not supported"),
                "known are name, namespace, workload, service, revision, app, version, identity",
            );
            return None;
        }
    };
    Some(Operator::Peer { upstream, field })
}
