//! Access logs: what is written of a request or a connection, when, and where to.
//!
//! Formats are compiled once, with the configuration: a line is a walk along a list of pieces.

use std::path::Path;
use std::sync::Arc;

use http::HeaderName;

use super::Fraction;
use super::headers::{HeaderMutations, HeaderTemplate};
use super::matcher::{HeaderKey, HeaderMatcher, MetadataMatcher};
use super::response_flag::ResponseFlags;

/// The access logs of a connection manager, a TCP proxy or a listener.
#[derive(Debug, Clone, Default)]
pub struct AccessLogs {
    /// In order of the configuration.
    pub logs: Vec<AccessLog>,
    /// Headers that formats and filters look at: what must be kept of a request until its end.
    pub wanted: WantedHeaders,
}

impl AccessLogs {
    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Whether heads of requests are kept.
    pub fn keeps(&self) -> bool {
        !self.is_empty() || self.wanted.always
    }

    /// Keeps what the values of headers are made of.
    pub fn keep_for_headers(&mut self, headers: &HeaderMutations) {
        for addition in &headers.add {
            if let HeaderTemplate::Format(pieces) = &addition.value {
                self.wanted.of_pieces(pieces);
            }
        }
    }

    /// Keeps what a format and a filter look at that are no log's: those of local replies.
    pub fn keep_for(&mut self, format: Option<&Format>, filter: Option<&Filter>) {
        self.wanted.always = true;
        if let Some(format) = format {
            self.wanted.of_format(format);
        }
        if let Some(filter) = filter {
            self.wanted.of_filter(filter);
        }
    }
}

/// What must be kept, or looked up, for the entries of access logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedHeaders {
    /// Of requests.
    pub request: Vec<HeaderName>,
    /// Of responses.
    pub response: Vec<HeaderName>,
    /// Of responses' trailers.
    pub trailers: Vec<HeaderName>,
    /// Whether something is told of who is at the other end.
    pub peers: bool,
    /// Whether something else than logs looks at them.
    pub always: bool,
}

/// One access log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// What is written; `None`: everything.
    pub filter: Option<Filter>,
    /// How it is written.
    pub format: Format,
    /// Where to.
    pub sink: Sink,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Sink {
    /// A file, appended to.
    File(Arc<Path>),
    /// The agent's standard output.
    Stdout,
    /// The agent's standard error.
    Stderr,
}

/// How an entry is written.
#[derive(Debug, Clone)]
pub enum Format {
    /// Text with operators.
    Text {
        /// In order.
        pieces: Vec<Piece>,
        /// What has no value is left out instead of written as `-`.
        omit_empty: bool,
    },
    /// A JSON object a line.
    Json {
        /// The object.
        root: Json,
        /// What has no value is left out instead of written as `null`.
        omit_empty: bool,
    },
}

/// A part of a JSON line.
#[derive(Debug, Clone)]
pub enum Json {
    /// Keys, as they are written, in order.
    Object(Vec<(String, Json)>),
    /// Values in order.
    List(Vec<Json>),
    /// A number, truth or null, as it is written.
    Literal(String),
    /// A text: of one operator alone its own type, otherwise a string.
    Text(Vec<Piece>),
}

/// A piece of a text.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Written as it is.
    Text(Arc<str>),
    /// `%OPERATOR%`
    Operator {
        /// What is written.
        operator: Operator,
        /// The value is cut to that many bytes.
        max_length: Option<usize>,
    },
}

/// Envoy's command operators.
#[derive(Debug, Clone)]
pub enum Operator {
    /// `START_TIME`
    StartTime(TimeFormat),
    /// `DURATION` and its parts, in milliseconds.
    Duration(Span),
    /// `BYTES_RECEIVED`: of the request's body, or of the connection.
    BytesReceived,
    /// `BYTES_SENT`: of the response's body, or of the connection.
    BytesSent,
    /// `PROTOCOL`
    Protocol,
    /// `RESPONSE_CODE`
    ResponseCode,
    /// `RESPONSE_CODE_DETAILS`
    ResponseCodeDetails,
    /// `CONNECTION_TERMINATION_DETAILS`
    ConnectionTerminationDetails,
    /// `RESPONSE_FLAGS`, `RESPONSE_FLAGS_LONG`
    ResponseFlags {
        /// In words.
        long: bool,
    },
    /// `UPSTREAM_REQUEST_ATTEMPT_COUNT`
    Attempts,
    /// `ROUTE_NAME`
    RouteName,
    /// `FILTER_CHAIN_NAME`
    FilterChainName,
    /// `UPSTREAM_CLUSTER`, `UPSTREAM_CLUSTER_RAW`
    UpstreamCluster,
    /// `UPSTREAM_TRANSPORT_FAILURE_REASON`
    UpstreamTransportFailure,
    /// An address, or a part of it.
    Address(Whose, Part),
    /// `REQ(A?B)`
    Request {
        /// The header.
        header: HeaderKey,
        /// The one in its stead if it is not there.
        instead: Option<HeaderKey>,
        /// Cut off from the question mark on (`REQ_WITHOUT_QUERY`).
        without_query: bool,
    },
    /// `RESP(A?B)`
    Response {
        /// The header.
        header: HeaderKey,
        /// The one in its stead if it is not there.
        instead: Option<HeaderKey>,
    },
    /// `TRAILER(A?B)`
    Trailer {
        /// The trailer.
        header: HeaderKey,
        /// The one in its stead if it is not there.
        instead: Option<HeaderKey>,
    },
    /// `DYNAMIC_METADATA(filter:key:...)`
    DynamicMetadata {
        /// The filter's name.
        filter: Arc<str>,
        /// Keys from the outside in.
        path: Vec<Arc<str>>,
    },
    /// `GRPC_STATUS`
    GrpcStatus(GrpcForm),
    /// `REQUESTED_SERVER_NAME`
    RequestedServerName,
    /// `DOWNSTREAM_PEER_URI_SAN`
    PeerUriSan,
    /// `DOWNSTREAM_PEER_SUBJECT`
    PeerSubject,
    /// `DOWNSTREAM_PEER_FINGERPRINT_256`
    PeerFingerprint,
    /// `DOWNSTREAM_LOCAL_URI_SAN`
    LocalUriSan,
    /// `CONNECTION_ID`
    ConnectionId,
    /// `ACCESS_LOG_TYPE`
    LogType,
    /// `HOSTNAME`, `ENVIRONMENT(X)`: known with the configuration.
    Fixed(Option<Arc<str>>),
    /// `LOCAL_REPLY_BODY`: what an answer of our own says.
    LocalReplyBody,
    /// `FILTER_STATE(upstream_peer...)`, `FILTER_STATE(downstream_peer...)`: who Istio says is at
    /// the other end.
    Peer {
        /// The upstream's end, not the client's.
        upstream: bool,
        /// One property of it.
        field: PeerField,
    },
}

/// From when to when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// From the first byte to the last one.
    Whole,
    /// From the first byte to the request's last one.
    Request,
    /// From the first byte to the response's first one.
    Response,
    /// From the response's first byte to the last one.
    ResponseTx,
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The client, as trusted proxies say.
    DownstreamRemote,
    /// Whoever is connected.
    DownstreamDirectRemote,
    /// Where the client wanted to go.
    DownstreamLocal,
    /// The endpoint, whether it was reached or not.
    UpstreamHost,
    /// The other end of the connection to it.
    UpstreamRemote,
    /// Our end of the connection to the endpoint.
    UpstreamLocal,
}

/// What of an address is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// With the port.
    Whole,
    /// Without.
    Ip,
    /// The port alone.
    Port,
}

/// How a gRPC status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcForm {
    /// `NotFound`
    Camel,
    /// `NOT_FOUND`
    Snake,
    /// `5`
    Number,
}

/// What Istio tells of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerField {
    /// `name`: the pod or workload.
    Name,
    /// `namespace`
    Namespace,
    /// `workload`
    Workload,
    /// `service`: its canonical name.
    Service,
    /// `revision`: its canonical revision.
    Revision,
    /// `app`
    App,
    /// `version`
    Version,
    /// `identity`: its principal.
    Identity,
}

/// How a moment is written, in UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeFormat {
    /// `2016-12-15T16:07:14.123Z`
    Iso,
    /// By parts.
    Parts(Vec<TimePart>),
}

/// A part of a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimePart {
    /// As it is.
    Text(String),
    /// A conversion of strftime(3).
    Strftime(char),
    /// `%3f`: so many digits of the second's fraction.
    Fraction(u8),
    /// `%E3S`: the second with so many digits.
    Seconds(u8),
}

/// Which entries are written.
#[derive(Debug, Clone)]
pub enum Filter {
    /// By the status.
    Status(Comparison),
    /// By the duration in milliseconds.
    Duration(Comparison),
    /// Not those of health checks.
    NotHealthCheck,
    /// A share of them.
    Share(Fraction),
    /// All hold.
    All(Vec<Filter>),
    /// One holds.
    Any(Vec<Filter>),
    /// A header of the request.
    Header(HeaderMatcher),
    /// One of these flags; `None`: any flag.
    Flags(Option<ResponseFlags>),
    /// The gRPC status.
    Grpc {
        /// A bit for each status.
        statuses: u32,
        /// Those others.
        exclude: bool,
    },
    /// Dynamic metadata.
    Metadata {
        /// What it must be.
        matcher: MetadataMatcher,
        /// What holds if it is not there.
        missing: bool,
    },
    /// Kinds of entries; ours are written at the end.
    Kinds {
        /// Requests' ends.
        requests: bool,
        /// Connections' ends.
        connections: bool,
    },
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    /// How.
    pub op: Compare,
    /// With what.
    pub value: u32,
}

/// How numbers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Equal,
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
    /// `!=`
    NotEqual,
}

impl Comparison {
    /// Whether it holds for a number.
    pub fn holds(self, number: u64) -> bool {
        let value = u64::from(self.value);
        match self.op {
            Compare::Equal => number == value,
            Compare::AtLeast => number >= value,
            Compare::AtMost => number <= value,
            Compare::NotEqual => number != value,
        }
    }
}

impl AccessLogs {
    /// Gathers what formats and filters look at.
    pub fn new(logs: Vec<AccessLog>) -> Self {
        let mut wanted = WantedHeaders::default();
        for log in &logs {
            wanted.of_format(&log.format);
            if let Some(filter) = &log.filter {
                wanted.of_filter(filter);
            }
        }
        Self { logs, wanted }
    }
}

impl WantedHeaders {
    fn of_format(&mut self, format: &Format) {
        match format {
            Format::Text { pieces, .. } => self.of_pieces(pieces),
            Format::Json { root, .. } => self.of_json(root),
        }
    }

    /// Of the pieces of a text.
    pub fn of_pieces(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let Piece::Operator { operator, .. } = piece else {
                continue;
            };
            let (list, header, instead) = match operator {
                Operator::Request {
                    header, instead, ..
                } => (&mut self.request, header, instead),
                Operator::Response { header, instead } => (&mut self.response, header, instead),
                Operator::Trailer { header, instead } => (&mut self.trailers, header, instead),
                Operator::Peer { .. } => {
                    self.peers = true;
                    continue;
                }
                _ => continue,
            };
            for key in std::iter::once(header).chain(instead) {
                want(list, key);
            }
        }
    }

    fn of_json(&mut self, json: &Json) {
        match json {
            Json::Object(fields) => fields.iter().for_each(|(_, value)| self.of_json(value)),
            Json::List(values) => values.iter().for_each(|value| self.of_json(value)),
            Json::Text(pieces) => self.of_pieces(pieces),
            Json::Literal(_) => {}
        }
    }

    fn of_filter(&mut self, filter: &Filter) {
        match filter {
            Filter::Header(matcher) => want(&mut self.request, &matcher.name),
            Filter::All(filters) | Filter::Any(filters) => {
                filters.iter().for_each(|filter| self.of_filter(filter));
            }
            _ => {}
        }
    }
}

fn want(list: &mut Vec<HeaderName>, key: &HeaderKey) {
    if let HeaderKey::Header(name) = key
        && !list.contains(name)
    {
        list.push(name.clone());
    }
}
