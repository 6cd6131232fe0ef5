//! Entries as lines.

use std::fmt::Display;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::config::model::access_log::{
    Format, GrpcForm, Json, Operator, Part, PeerField, Piece, Span, Whose,
};
use crate::config::model::matcher::HeaderKey;
use crate::config::model::response_flag::ResponseFlags;
use crate::config::model::tls::NameKind;

use super::entry::{Entry, Fields, Kind};
use super::time;

/// An operator's value.
enum Value<'a> {
    /// There is none.
    Missing,
    Number(u64),
    Bytes(&'a [u8]),
    Address(SocketAddr),
    Ip(IpAddr),
    Flags(ResponseFlags, bool),
    /// Several texts, separated by commas.
    List(Vec<&'a str>),
    Time,
    Json(&'a serde_json::Value),
}

impl Format {
    /// Writes an entry. A JSON object's line ends with it, a text's as the text says.
    pub(crate) fn write(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Text { pieces, omit_empty } => text(pieces, entry, *omit_empty, out),
            Self::Json { root, omit_empty } => {
                json(root, entry, *omit_empty, out);
                out.push(b'\n');
            }
        }
    }
}

/// Writes a text. What has no value is left out, or written as `-`.
pub(crate) fn text(pieces: &[Piece], entry: &Entry<'_>, omit_empty: bool, out: &mut Vec<u8>) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Operator {
                operator,
                max_length,
            } => match value(operator, entry) {
                Value::Missing if omit_empty => {}
                Value::Missing => out.push(b'-'),
                found => {
                    let start = out.len();
                    plain(&found, operator, entry, out);
                    cut(out, start, *max_length);
                }
            },
        }
    }
}

/// Shortens what was written from `start` on.
fn cut(out: &mut Vec<u8>, start: usize, max_length: Option<usize>) {
    if let Some(max) = max_length {
        out.truncate(out.len().min(start + max));
    }
}

/// Writes a value as text. Writing to a vector cannot fail.
fn plain(value: &Value<'_>, operator: &Operator, entry: &Entry<'_>, out: &mut Vec<u8>) {
    let shown = |value: &dyn Display, out: &mut Vec<u8>| {
        let _ = write!(out, "{value}");
    };
    match value {
        Value::Missing => {}
        Value::Number(number) => shown(number, out),
        Value::Bytes(bytes) => out.extend_from_slice(bytes),
        Value::Address(address) => shown(address, out),
        Value::Ip(ip) => shown(ip, out),
        Value::Flags(flags, _) if flags.is_empty() => out.push(b'-'),
        Value::Flags(flags, false) => shown(flags, out),
        Value::Flags(flags, true) => {
            for (i, flag) in flags.iter().enumerate() {
                let separator = if i == 0 { "" } else { "," };
                let _ = write!(out, "{separator}{}", flag.long());
            }
        }
        Value::List(texts) => {
            for (i, text) in texts.iter().enumerate() {
                let separator = if i == 0 { "" } else { "," };
                let _ = write!(out, "{separator}{text}");
            }
        }
        Value::Time => {
            if let Operator::StartTime(format) = operator {
                time::write(entry.started, format, out);
            }
        }
        // Envoy writes a text without its quotes.
        Value::Json(serde_json::Value::String(text)) => out.extend_from_slice(text.as_bytes()),
        Value::Json(value) => shown(value, out),
    }
}

fn json(node: &Json, entry: &Entry<'_>, omit_empty: bool, out: &mut Vec<u8>) {
    match node {
        Json::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
        Json::List(values) => {
            out.push(b'[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                json(value, entry, omit_empty, out);
            }
            out.push(b']');
        }
        Json::Object(fields) => {
            out.push(b'{');
            let mut first = true;
            for (key, value) in fields {
                let start = out.len();
                if !first {
                    out.push(b',');
                }
                out.extend_from_slice(key.as_bytes());
                out.push(b':');
                let written = out.len();
                json(value, entry, omit_empty, out);
                if omit_empty && &out[written..] == b"null" {
                    out.truncate(start);
                } else {
                    first = false;
                }
            }
            out.push(b'}');
        }
        Json::Text(pieces) => match &pieces[..] {
            [
                Piece::Operator {
                    operator,
                    max_length,
                },
            ] => typed(operator, *max_length, entry, out),
            pieces => {
                let mut whole = Vec::new();
                text(pieces, entry, omit_empty, &mut whole);
                quoted(&whole, out);
            }
        },
    }
}

/// A value in its own type.
fn typed(operator: &Operator, max_length: Option<usize>, entry: &Entry<'_>, out: &mut Vec<u8>) {
    match value(operator, entry) {
        Value::Missing => out.extend_from_slice(b"null"),
        Value::Number(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Json(value) => {
            let _ = write!(out, "{value}");
        }
        value => {
            let mut text = Vec::new();
            plain(&value, operator, entry, &mut text);
            cut(&mut text, 0, max_length);
            quoted(&text, out);
        }
    }
}

fn quoted(text: &[u8], out: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(text);
    // A vector takes everything.
    let _ = serde_json::to_writer(out, &*text);
}

fn non_empty(text: &str) -> Value<'_> {
    if text.is_empty() {
        Value::Missing
    } else {
        Value::Bytes(text.as_bytes())
    }
}

fn optional(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Missing, non_empty)
}

fn value<'a>(operator: &'a Operator, entry: &'a Entry<'_>) -> Value<'a> {
    match operator {
        Operator::StartTime(_) => Value::Time,
        Operator::Duration(span) => span_of(*span, entry),
        Operator::BytesReceived => Value::Number(entry.bytes_received),
        Operator::BytesSent => Value::Number(entry.bytes_sent),
        Operator::Protocol => optional(entry.protocol),
        Operator::ResponseCode => Value::Number(entry.status.unwrap_or(0).into()),
        Operator::ResponseCodeDetails => non_empty(entry.details),
        Operator::ConnectionTerminationDetails => non_empty(entry.termination),
        Operator::ResponseFlags { long } => Value::Flags(entry.flags, *long),
        Operator::Attempts => Value::Number(entry.attempts.into()),
        Operator::RouteName => non_empty(entry.route),
        Operator::FilterChainName => non_empty(entry.chain),
        Operator::UpstreamCluster => optional(entry.cluster),
        Operator::UpstreamTransportFailure => optional(entry.transport_failure),
        Operator::Address(whose, part) => address(*whose, *part, entry),
        Operator::Request {
            header,
            instead,
            without_query,
        } => {
            let head = entry.request;
            let get = |key: &HeaderKey| head?.get(key);
            let found = get(header).or_else(|| get(instead.as_ref()?));
            let found = found.map(|value| match without_query {
                true => value.split(|byte| *byte == b'?').next().unwrap_or(value),
                false => value,
            });
            found.map_or(Value::Missing, Value::Bytes)
        }
        Operator::Response {
            header: HeaderKey::Status,
            ..
        } => entry
            .status
            .map_or(Value::Missing, |status| Value::Number(status.into())),
        Operator::Response { header, instead } => kept(entry.response, header, instead.as_ref()),
        Operator::Trailer { header, instead } => kept(entry.trailers, header, instead.as_ref()),
        Operator::DynamicMetadata { filter, path } => {
            let mut found = entry.metadata.get(filter);
            for key in path {
                found = found.and_then(|value| value.get(&**key));
            }
            found.map_or(Value::Missing, Value::Json)
        }
        Operator::GrpcStatus(form) => grpc(entry, *form),
        Operator::RequestedServerName => optional(entry.server_name),
        Operator::PeerUriSan => {
            let names = entry.certificate.map_or(&[][..], |known| &known.names);
            let uris: Vec<&str> = names
                .iter()
                .filter(|(kind, _)| *kind == NameKind::Uri)
                .map(|(_, name)| &**name)
                .collect();
            if uris.is_empty() {
                Value::Missing
            } else {
                Value::List(uris)
            }
        }
        Operator::PeerSubject => optional(entry.certificate.map(|known| known.subject.as_str())),
        Operator::PeerFingerprint => optional(entry.certificate.map(|known| known.hash.as_str())),
        Operator::LocalUriSan => optional(entry.local_identity),
        Operator::ConnectionId => Value::Number(entry.connection_id),
        Operator::LogType => Value::Bytes(match entry.kind {
            Kind::Request => b"DownstreamEnd",
            Kind::Connection => b"TcpConnectionEnd",
        }),
        Operator::Fixed(text) => optional(text.as_deref()),
        Operator::LocalReplyBody => Value::Bytes(entry.local_reply),
        Operator::Peer { upstream, field } => peer(entry, *upstream, *field),
    }
}

fn span_of(span: Span, entry: &Entry<'_>) -> Value<'static> {
    let spans = &entry.spans;
    let duration = match span {
        Span::Whole => Some(spans.whole),
        Span::Request => spans.request,
        Span::Response => spans.response,
        Span::ResponseTx => spans
            .response
            .filter(|_| spans.complete)
            .map(|response| spans.whole.saturating_sub(response)),
    };
    duration.map_or(Value::Missing, |duration| {
        Value::Number(duration.as_millis() as u64)
    })
}

fn address(whose: Whose, part: Part, entry: &Entry<'_>) -> Value<'static> {
    let addresses = &entry.addresses;
    let address = match whose {
        Whose::DownstreamRemote => Some(addresses.remote),
        Whose::DownstreamDirectRemote => Some(addresses.direct_remote),
        Whose::DownstreamLocal => Some(addresses.local),
        Whose::UpstreamHost => addresses.upstream,
        Whose::UpstreamRemote => addresses
            .upstream
            .filter(|_| addresses.upstream_local.is_some()),
        Whose::UpstreamLocal => addresses.upstream_local,
    };
    let Some(address) = address else {
        return Value::Missing;
    };
    match part {
        Part::Whole => Value::Address(address),
        Part::Ip => Value::Ip(address.ip()),
        Part::Port => Value::Number(address.port().into()),
    }
}

fn kept<'a>(kept: Fields<'a>, header: &HeaderKey, instead: Option<&HeaderKey>) -> Value<'a> {
    let of = |key: &HeaderKey| match key {
        HeaderKey::Header(name) => kept.get(name),
        _ => None,
    };
    of(header)
        .or_else(|| of(instead?))
        .map_or(Value::Missing, Value::Bytes)
}

/// gRPC's statuses in words.
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

fn grpc<'a>(entry: &'a Entry<'_>, form: GrpcForm) -> Value<'a> {
    let Some(status) = entry.grpc_status else {
        return Value::Missing;
    };
    let words = GRPC.get(usize::from(status));
    match (form, words) {
        (GrpcForm::Camel, Some((camel, _))) => Value::Bytes(camel.as_bytes()),
        (GrpcForm::Snake, Some((_, snake))) => Value::Bytes(snake.as_bytes()),
        _ => Value::Number(status.into()),
    }
}

fn peer<'a>(entry: &'a Entry<'_>, upstream: bool, field: PeerField) -> Value<'a> {
    let Some(peer) = entry.peers[usize::from(upstream)] else {
        return Value::Missing;
    };
    optional(match field {
        PeerField::Name => peer.name.as_deref(),
        PeerField::Workload => peer.workload.as_deref(),
        PeerField::Namespace => peer.namespace.as_deref(),
        PeerField::Service => peer.service.as_deref(),
        PeerField::Revision => peer.revision.as_deref(),
        PeerField::App => peer.app.as_deref(),
        PeerField::Version => peer.version.as_deref(),
        PeerField::Identity => peer.principal.as_deref(),
    })
}
