//! Services that filters ask.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use http::{HeaderName, HeaderValue, Uri};

use crate::config::convert::{Problems, duration, timeout};
use crate::config::model::filter::service::{GrpcService, HttpUri};

/// Envoy's `GrpcService`. Zero or no timeout is none.
pub(super) fn grpc(
    message: &core::GrpcService,
    path: &str,
    problems: &mut Problems,
) -> Option<GrpcService> {
    let target = match &message.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) if !target.cluster_name.is_empty() => target,
        Some(TargetSpecifier::EnvoyGrpc(_)) => {
            problems.push(
                format!("{path}.envoy_grpc.cluster_name"),
                "a name is missing",
            );
            return None;
        }
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            problems.hint(
                format!("{path}.google_grpc"),
                "google_grpc is not supported",
                "use envoy_grpc with a cluster",
            );
            return None;
        }
        None => {
            problems.push(path, "a target is missing: envoy_grpc");
            return None;
        }
    };
    let authority = match target.authority.as_str() {
        "" => &target.cluster_name,
        authority => authority,
    };
    let Ok(authority) = HeaderValue::from_str(authority) else {
        let field = format!("{path}.envoy_grpc.authority");
        problems.push(field, "is not a header's value");
        return None;
    };
    Some(GrpcService {
        cluster: target.cluster_name.as_str().into(),
        authority,
        timeout: timeout(
            message.timeout.as_ref(),
            None,
            &format!("{path}.timeout"),
            problems,
        ),
        metadata: plain_headers(
            &message.initial_metadata,
            &format!("{path}.initial_metadata"),
            problems,
        ),
    })
}

/// Headers with fixed values.
pub(super) fn plain_headers(
    list: &[core::HeaderValue],
    path: &str,
    problems: &mut Problems,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (i, header) in list.iter().enumerate() {
        let name = HeaderName::try_from(header.key.as_str());
        let value = match header.raw_value.as_slice() {
            [] => HeaderValue::from_str(&header.value),
            raw => HeaderValue::from_bytes(raw),
        };
        match (name, value) {
            (Ok(_), Ok(_)) if header.value.contains('%') => problems.hint(
                format!("{path}[{i}]"),
                "command operators are not supported here",
                "write a fixed value",
            ),
            (Ok(name), Ok(value)) => headers.push((name, value)),
            _ => problems.push(format!("{path}[{i}]"), "is not a header"),
        }
    }
    headers
}

/// Envoy's `HttpUri`.
pub(super) fn http_uri(
    message: Option<&core::HttpUri>,
    path: &str,
    problems: &mut Problems,
) -> Option<HttpUri> {
    let Some(message) = message else {
        problems.push(path, "is missing");
        return None;
    };
    let cluster = match &message.http_upstream_type {
        Some(HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => cluster.as_str().into(),
        _ => {
            problems.push(format!("{path}.cluster"), "a name is missing");
            return None;
        }
    };
    // Envoy takes an address without a scheme, too.
    let text = match message.uri.split_once("://") {
        Some(_) => message.uri.clone(),
        None => format!("http://{}", message.uri),
    };
    let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    let Some(uri) = uri else {
        problems.push(format!("{path}.uri"), "is not a URI with a host");
        return None;
    };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    Some(HttpUri {
        cluster,
        scheme: match uri.scheme_str() {
            Some("https") => "https",
            _ => "http",
        },
        authority: HeaderValue::from_str(authority).ok()?,
        path: uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .into(),
        timeout: message
            .timeout
            .as_ref()
            .map(|time| duration(time, &format!("{path}.timeout"), problems))
            .filter(|time| !time.is_zero()),
    })
}
