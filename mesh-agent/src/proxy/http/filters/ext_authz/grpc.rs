//! A check by gRPC (`envoy.service.auth.v3.Authorization`).

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::service::auth::v3::attribute_context as context;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::google::protobuf::Timestamp;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::config::model::filter::service::GrpcService;
use crate::config::model::headers::AppendAction;
use crate::proxy::http::call::{self, CallError};
use crate::proxy::http::filters::structure;
use crate::proxy::http::headers;
use crate::proxy::http::message::{Request, text};

use crate::proxy::http::filters::mutation::{Mutation, Target};

use super::decision::{Changes, Decision, Denial};
use super::shown::{self, Body, Over};
use super::{Asking, Error};

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Asks.
pub(super) async fn ask(
    asking: &Asking<'_, '_>,
    service: &GrpcService,
    request: &Request,
    body: Option<Body>,
) -> Result<Decision, Error> {
    let check = check(asking, request, body);
    let call = asking.call;
    let sender = call::sender(call.connection, call.hcm);
    let response: CheckResponse = call::unary(sender, call.view, service, METHOD, &check).await?;
    decision(response)
}

fn check(asking: &Asking<'_, '_>, request: &Request, body: Option<Body>) -> CheckRequest {
    let call = asking.call;
    let connection = call.connection;
    let peer = connection.peer();
    let headers = shown::headers(asking.config, Over::Grpc, request, body.as_ref());
    let id = request.headers.get(headers::REQUEST_ID);
    let size = body.as_ref().map_or(0, |body| body.received);
    let (text_body, raw_body) = match body {
        None => (String::new(), Vec::new()),
        Some(body) if body.as_bytes => (String::new(), body.bytes),
        Some(body) => (
            String::from_utf8_lossy(&body.bytes).into_owned(),
            Vec::new(),
        ),
    };
    let http = context::HttpRequest {
        id: id.map_or("", text).to_owned(),
        method: request.method.as_str().to_owned(),
        headers,
        path: request.path.as_str().to_owned(),
        host: text(&request.authority).to_owned(),
        scheme: request.scheme.to_owned(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        protocol: shown::protocol(request.version).to_owned(),
        body: text_body,
        raw_body,
        ..Default::default()
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let downstream = request.headers.get("x-envoy-downstream-service-cluster");
    let source = context::Peer {
        address: Some(address(connection.caught.peer)),
        service: downstream.map_or("", text).to_owned(),
        principal: name(
            connection
                .peer_names()
                .and_then(|all| all.first().map(|one| &**one)),
        ),
        ..Default::default()
    };
    let destination = context::Peer {
        address: Some(address(connection.caught.destination)),
        principal: name(peer.local.as_ref().map(|local| local.as_str())),
        ..Default::default()
    };
    let namespaces = asking.config.metadata_namespaces.iter();
    let metadata = namespaces.filter_map(|name| {
        let value = request.metadata.get(name)?;
        Some((name.to_string(), structure::of_json(value)))
    });
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(context::Request {
                time: Some(Timestamp {
                    seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
                    nanos: i32::try_from(now.subsec_nanos()).unwrap_or(0),
                }),
                http: Some(http),
            }),
            context_extensions: asking.extensions.clone().into_iter().collect(),
            metadata_context: Some(core::Metadata {
                filter_metadata: metadata.collect(),
                ..Default::default()
            }),
            tls_session: asking
                .config
                .include_tls_session
                .then(|| context::TlsSession {
                    sni: connection.server_name().to_owned(),
                }),
            ..Default::default()
        }),
    }
}

fn address(at: SocketAddr) -> core::Address {
    use core::address::Address;
    use core::socket_address::PortSpecifier;
    core::Address {
        address: Some(Address::SocketAddress(core::SocketAddress {
            address: at.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
            ..Default::default()
        })),
    }
}

fn decision(response: CheckResponse) -> Result<Decision, Error> {
    let status = response.status.map_or(0, |status| status.code);
    let outer = response.dynamic_metadata;
    if status == 0 {
        let mut changes = match response.http_response {
            Some(HttpResponse::OkResponse(ok)) => changes(ok, outer),
            _ => Changes {
                metadata: outer.map(structure::to_json),
                ..Changes::default()
            },
        };
        changes.metadata = changes.metadata.filter(|value| {
            let fields = value.as_object();
            fields.is_some_and(|fields| !fields.is_empty())
        });
        return Ok(Decision::Allowed(changes));
    }
    let metadata = outer.map(structure::to_json);
    match response.http_response {
        Some(HttpResponse::ErrorResponse(error)) => {
            let mut denial = denial(error, None);
            denial.metadata = metadata;
            Err(Error::Told(Box::new(denial)))
        }
        Some(HttpResponse::DeniedResponse(denied)) => {
            let mut denial = denial(denied, Some(StatusCode::FORBIDDEN));
            denial.metadata = metadata;
            Ok(Decision::Denied(denial))
        }
        _ => Ok(Decision::Denied(Denial {
            status: StatusCode::FORBIDDEN,
            body: Bytes::new(),
            headers: Vec::new(),
            metadata,
        })),
    }
}

fn changes(
    ok: OkHttpResponse,
    outer: Option<envoy_types::pb::google::protobuf::Struct>,
) -> Changes {
    let mut changes = Changes::default();
    (changes.request, changes.invalid) = mutations(&ok.headers, For::Request);
    let (response, invalid) = mutations(&ok.response_headers_to_add, For::Response);
    changes.response = response;
    changes.invalid |= invalid;
    for name in &ok.headers_to_remove {
        match HeaderName::try_from(name.as_str()) {
            // A request without a host is none.
            Ok(http::header::HOST) => {}
            Ok(name) => changes.remove.push(name),
            Err(_) => changes.invalid |= !name.starts_with(':'),
        }
    }
    let set = ok.query_parameters_to_set.into_iter();
    changes.set_query = set.map(|one| (one.key, one.value)).collect();
    changes.remove_query = ok.query_parameters_to_remove;
    #[expect(deprecated, reason = "it wins while services still write it")]
    let inner = ok.dynamic_metadata;
    changes.metadata = inner.or(outer).map(structure::to_json);
    changes
}

/// Zero: no status is told.
fn denial(message: DeniedHttpResponse, default: Option<StatusCode>) -> Denial {
    let code = message.status.map_or(0, |status| status.code);
    let told = u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok());
    Denial {
        status: told.or(default).unwrap_or(super::UNTOLD),
        body: message.body.into(),
        headers: mutations(&message.headers, For::Denial).0,
        metadata: None,
    }
}

/// What headers are for: each kind is appended in its own way (Envoy 1.40).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// `append` adds to the value that is there, or does nothing; everything else replaces it.
    Request,
    /// As `append` and `append_action` say.
    Response,
    /// All of them are set, but those that ask for `append`.
    Denial,
}

fn mutations(options: &[core::HeaderValueOption], kind: For) -> (Vec<Mutation>, bool) {
    let mut mutations = Vec::with_capacity(options.len());
    let mut invalid = false;
    for option in options {
        let Some(header) = &option.header else {
            continue;
        };
        let value = match header.raw_value.as_slice() {
            [] => HeaderValue::from_str(&header.value),
            raw => HeaderValue::from_bytes(raw),
        };
        let (Some(target), Ok(value)) = (Target::named(&header.key), value) else {
            invalid = true;
            continue;
        };
        #[expect(deprecated, reason = "older services write it")]
        let old = option.append.as_ref().map(|append| append.value);
        if kind == For::Denial && old == Some(true) {
            continue;
        }
        let new = HeaderAppendAction::try_from(option.append_action);
        let append = match (kind, old, new) {
            (For::Denial, ..)
            | (_, Some(true), _)
            | (For::Response, None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => {
                AppendAction::AppendIfExistsOrAdd
            }
            (For::Response, None, Ok(HeaderAppendAction::AddIfAbsent)) => AppendAction::AddIfAbsent,
            (For::Response, None, Ok(HeaderAppendAction::OverwriteIfExists)) => {
                AppendAction::OverwriteIfExists
            }
            _ => AppendAction::OverwriteIfExistsOrAdd,
        };
        mutations.push(Mutation {
            target,
            value,
            append,
            joined: kind == For::Request && old == Some(true),
        });
    }
    (mutations, invalid)
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}
