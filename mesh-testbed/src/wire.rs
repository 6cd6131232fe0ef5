//! What the helper program prints and answers: JSON, one object a line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The first line of a server: it now accepts connections.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Where it listens.
    pub listening: SocketAddr,
}

/// What `echo-http` answers unless the request asks for something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// `--name` of the server.
    pub name: String,
    /// `--version` of the server.
    pub version: String,
    /// Method of the request.
    pub method: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The authority: of the URI in HTTP/2, else the Host header.
    pub authority: Option<String>,
    /// Path and query.
    pub path: String,
    /// Headers in order of arrival; values that are not UTF-8 are escaped.
    pub headers: Vec<(String, String)>,
    /// Length of the request's body.
    pub body_length: u64,
    /// Who connected, v4-mapped addresses as IPv4.
    pub peer: SocketAddr,
    /// `getsockname()` of the server's socket.
    pub local: SocketAddr,
}

impl Echo {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// The line with which `echo-tcp` greets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banner {
    /// `--name` of the server.
    pub name: String,
    /// Who connected, v4-mapped addresses as IPv4.
    pub peer: SocketAddr,
    /// `getsockname()` of the server's socket.
    pub local: SocketAddr,
}

/// What became of the streams of `stream`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    /// Bytes that came back as they were sent.
    pub bytes: u64,
    /// One line for each stream that broke.
    pub failures: Vec<String>,
}

/// What became of one connection of `connect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The error number of the connect(2) or of the exchange that followed, 0 if all went well.
    pub errno: i32,
    /// Whether connect(2) itself succeeded.
    pub connected: bool,
    /// `getsockname()`.
    pub local: Option<SocketAddr>,
    /// `getpeername()`, as the kernel says it: v4-mapped addresses stay so.
    pub peer: Option<SocketAddr>,
    /// What arrived, as text.
    pub received: String,
    /// Whether the peer closed its side.
    pub closed: bool,
    /// How long connect(2) took, until the connection stood or failed.
    pub connect_us: u64,
}

impl Connection {
    /// The greeting, if an `echo-tcp` answered.
    pub fn banner(&self) -> Option<Banner> {
        serde_json::from_str(self.received.lines().next()?).ok()
    }
}

/// What `connect --hold` says of its connections when asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Connections over which a message came back.
    pub alive: usize,
    /// The others.
    pub dead: usize,
}

/// How the connections of `churn` end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Ending {
    /// The client sends RST.
    Reset,
    /// The client closes first, perhaps before it read what the server sent.
    Close,
    /// The client closes its side, and the rest when the server did so, too.
    HalfClose,
    /// The client closes while it still connects.
    Abandon,
    /// The client dissolves the connection (AF_UNSPEC) and uses the socket for another one.
    Dissolve,
    /// The client connects the same socket again if it failed at first.
    Retry,
    /// Two descriptors are closed, one after the other.
    Duplicate,
    /// Connected by sending.
    FastOpen,
}

/// What became of the connections of `churn`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Churned {
    /// Those that went as they should.
    pub made: usize,
    /// Those that did not, by error number.
    pub failed: std::collections::BTreeMap<i32, usize>,
    /// How long the slowest of those took.
    pub slowest_failure_us: u64,
    /// How long all took.
    pub took_ms: u64,
}

/// What `talk` is told on a line of standard input. Bytes are text here: a character for each,
/// U+0000 to U+00FF.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Say {
    /// Where to connect to.
    pub to: SocketAddr,
    /// What to send, each part by a write of its own once the one before is acknowledged.
    pub parts: Vec<String>,
    /// Methods of the requests sent, to know which responses have no body.
    pub methods: Vec<String>,
    /// How long to wait for bytes that do not come.
    pub patience_ms: u64,
}

/// What `talk` heard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heard {
    /// Bytes, as in [`Say`].
    pub received: String,
    /// How it ended.
    pub end: End,
}

/// How a talk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Every request has its response; the connection was open.
    Answered,
    /// The peer closed.
    Closed,
    /// The peer reset the connection, or refused it.
    Reset,
    /// Nothing came for the whole patience.
    Silent,
}

/// What `paced` says when asked: of the requests since it was asked last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Answered as expected.
    pub answered: u64,
    /// The others.
    pub failed: u64,
    /// What was wrong with the first of those.
    pub failure: Option<String>,
    /// The median of how long answers took, from when the request was due.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// One in a thousand took longer.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// Text of bytes, as in [`Say`].
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Bytes of such a text; characters beyond U+00FF are cut down.
pub fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u32 as u8).collect()
}
