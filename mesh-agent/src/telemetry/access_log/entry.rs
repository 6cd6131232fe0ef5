//! What is known of a request or a connection at its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use smallvec::SmallVec;

use crate::config::model::matcher::HeaderKey;
use crate::config::model::response_flag::ResponseFlags;
use crate::proxy::Certificate;

use super::super::peer::Peer;

/// Headers that were kept, in their order.
pub(crate) type Kept = SmallVec<[(HeaderName, HeaderValue); 4]>;

/// A request or a connection.
pub(crate) struct Entry<'a> {
    /// Which of both.
    pub kind: Kind,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub spans: Spans,
    /// From the client.
    pub bytes_received: u64,
    /// To the client.
    pub bytes_sent: u64,
    /// `HTTP/1.1`
    pub protocol: Option<&'static str>,
    /// The response's status; `None`: there was no response.
    pub status: Option<u16>,
    /// Why the response is what it is.
    pub details: &'a str,
    /// Why the connection was closed.
    pub termination: &'a str,
    /// What was special.
    pub flags: ResponseFlags,
    /// How often an upstream was asked.
    pub attempts: u32,
    /// The route's name.
    pub route: &'a str,
    /// The filter chain's name.
    pub chain: &'a str,
    /// The cluster's name.
    pub cluster: Option<&'a str>,
    /// Why no connection to the upstream could be made.
    pub transport_failure: Option<&'a str>,
    /// Who speaks to whom.
    pub addresses: Addresses,
    /// The request's head.
    pub request: Option<Head<'a>>,
    /// The response's headers.
    pub response: Fields<'a>,
    /// The response's trailers.
    pub trailers: Fields<'a>,
    /// The body of an answer of our own, before it is put into its format.
    pub local_reply: &'a [u8],
    /// The status of a gRPC call; `None`: it is none.
    pub grpc_status: Option<u16>,
    /// What filters found out.
    pub metadata: &'a BTreeMap<Arc<str>, serde_json::Value>,
    /// The name asked for in the TLS handshake.
    pub server_name: Option<&'a str>,
    /// The client's certificate.
    pub certificate: Option<&'a Certificate>,
    /// Who we were to the client.
    pub local_identity: Option<&'a str>,
    /// The connection's number.
    pub connection_id: u64,
    /// Who is at the other end: the client's and the upstream's.
    pub peers: [Option<&'a Peer>; 2],
}

/// What an entry is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request.
    Request,
    /// A connection.
    Connection,
}

/// Spans of time, each from the first byte on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spans {
    /// To the last byte.
    pub whole: Duration,
    /// To the last byte of the request.
    pub request: Option<Duration>,
    /// To the first byte of the response.
    pub response: Option<Duration>,
    /// Whether the last byte was the response's.
    pub complete: bool,
}

/// Ends of connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    /// The client, as trusted proxies say.
    pub remote: SocketAddr,
    /// Who is connected.
    pub direct_remote: SocketAddr,
    /// Where the client wanted to go.
    pub local: SocketAddr,
    /// The endpoint.
    pub upstream: Option<SocketAddr>,
    /// Our end of the connection to it.
    pub upstream_local: Option<SocketAddr>,
}

/// A request's head, as far as it is written.
#[derive(Debug, Clone)]
pub(crate) struct RequestHead {
    /// The method.
    pub method: Method,
    /// The path with its query.
    pub path: HeaderValue,
    /// The authority; may be empty.
    pub authority: HeaderValue,
    /// `http` or `https`
    pub scheme: &'static str,
    /// Headers that were kept.
    pub headers: Kept,
}

impl RequestHead {
    /// As it is read.
    pub(crate) fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            path: self.path.as_bytes(),
            authority: self.authority.as_bytes(),
            scheme: self.scheme,
            headers: Fields::Kept(&self.headers),
        }
    }
}

/// A request's head as it is read: one that was kept, or one that is on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path with its query.
    pub path: &'a [u8],
    /// The authority; may be empty.
    pub authority: &'a [u8],
    /// `http` or `https`
    pub scheme: &'static str,
    /// The headers.
    pub headers: Fields<'a>,
}

impl<'a> Head<'a> {
    /// A header's first value.
    pub(super) fn get(&self, key: &HeaderKey) -> Option<&'a [u8]> {
        let value = match key {
            HeaderKey::Method => self.method.as_str().as_bytes(),
            HeaderKey::Path => self.path,
            HeaderKey::Authority => self.authority,
            HeaderKey::Scheme => self.scheme.as_bytes(),
            HeaderKey::Status => return None,
            HeaderKey::Header(name) => return self.headers.get(name),
        };
        (!value.is_empty()).then_some(value)
    }
}

/// Header fields.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fields<'a> {
    /// As far as they were kept.
    Kept(&'a [(HeaderName, HeaderValue)]),
    /// Of a message that is on its way.
    All(&'a HeaderMap),
}

impl<'a> Fields<'a> {
    /// None.
    pub(crate) const NONE: Self = Self::Kept(&[]);

    /// The first value of a name.
    pub(super) fn get(self, name: &HeaderName) -> Option<&'a [u8]> {
        match self {
            Self::Kept(kept) => kept
                .iter()
                .find_map(|(known, value)| (known == name).then(|| value.as_bytes())),
            Self::All(headers) => headers.get(name).map(HeaderValue::as_bytes),
        }
    }

    /// Every value of a name, in order.
    pub(super) fn values(self, name: &HeaderName) -> SmallVec<[&'a [u8]; 2]> {
        match self {
            Self::Kept(kept) => kept
                .iter()
                .filter(|(known, _)| known == name)
                .map(|(_, value)| value.as_bytes())
                .collect(),
            Self::All(headers) => {
                let values = headers.get_all(name).iter();
                values.map(HeaderValue::as_bytes).collect()
            }
        }
    }
}

/// Those of a message's headers that are wanted.
pub(crate) fn keep(headers: &HeaderMap, wanted: &[HeaderName]) -> Kept {
    let mut kept = Kept::new();
    for name in wanted {
        for value in headers.get_all(name) {
            kept.push((name.clone(), value.clone()));
        }
    }
    kept
}
