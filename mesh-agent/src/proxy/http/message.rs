//! A request on its way through, whichever protocol it came by.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use crate::config::model::response_flag::{ResponseFlag, ResponseFlags};
use crate::telemetry::access_log::{Fields, Head};

use super::body::ProxyBody;
use super::early::Early;
use super::h1::client::Tunnel;
use super::internal_redirect::{Again, Redirects};

/// A request without its body. The authority is no header here: `host` is not in `headers`.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: Path,
    /// Empty if the client named none.
    pub(super) authority: HeaderValue,
    pub(super) scheme: &'static str,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    /// What filters found out, by filter.
    pub(super) metadata: Metadata,
    /// The endpoint it belongs to.
    pub(super) pinned: Option<Pinned>,
    /// How it came here, if no client sent it.
    pub(super) redirects: Option<Box<Redirects>>,
    /// Where responses go that come before the response.
    pub(super) early: Option<Rc<Early>>,
}

impl Request {
    /// The head as formats read it, with headers that may have been taken out.
    pub(super) fn head<'r>(&'r self, headers: &'r HeaderMap) -> Head<'r> {
        Head {
            method: &self.method,
            path: self.path.as_str().as_bytes(),
            authority: self.authority.as_bytes(),
            scheme: self.scheme,
            headers: Fields::All(headers),
        }
    }
}

/// An endpoint that a request belongs to.
#[derive(Debug, Clone)]
pub(super) struct Pinned {
    /// Where it is; `None`: any will do.
    pub(super) address: Option<SocketAddr>,
    /// The answer if it is not there; `None`: another will do.
    pub(super) strict: Option<StatusCode>,
    /// Where the request went.
    pub(super) used: Rc<Cell<Option<SocketAddr>>>,
}

/// Dynamic metadata; empty for nearly every request.
pub(super) type Metadata = BTreeMap<Arc<str>, serde_json::Value>;

/// A response on its way to the client.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ProxyBody,
    /// What a gRPC client is told, where it does not follow from the status.
    pub(super) grpc_status: Option<u16>,
    /// The upstream's side of an upgraded connection.
    pub(super) tunnel: Option<Box<Tunnel>>,
    /// Why it is what it is.
    pub(super) why: Why,
    /// The request that is served in its stead.
    pub(super) again: Option<Box<Again>>,
}

impl Reply {
    /// With Envoy's response code details, as in `route_not_found`.
    #[must_use]
    pub(super) fn because(mut self, details: impl Into<Cow<'static, str>>) -> Self {
        self.why.details = details.into();
        self
    }

    /// With a response flag.
    #[must_use]
    pub(super) fn flagged(mut self, flag: ResponseFlag) -> Self {
        self.why.flags.set(flag);
        self
    }
}

/// Why a response is what it is, in Envoy's words, for the access log and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Why {
    /// `%RESPONSE_FLAGS%`
    pub(super) flags: ResponseFlags,
    /// `%RESPONSE_CODE_DETAILS%`
    pub(super) details: Cow<'static, str>,
}

/// A path with its query, as it stood on the wire: visible ASCII. CONNECT's is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    bytes: Bytes,
    /// Where the path ends and the query, if any, begins.
    end: usize,
}

impl Path {
    /// `None`: it holds something else than visible ASCII, or a fragment.
    pub(super) fn new(bytes: Bytes) -> Option<Self> {
        if bytes
            .iter()
            .any(|byte| !(0x21..0x7f).contains(byte) || *byte == b'#')
        {
            return None;
        }
        let end = memchr::memchr(b'?', &bytes).unwrap_or(bytes.len());
        Some(Self { bytes, end })
    }

    /// The empty path.
    pub(super) const fn empty() -> Self {
        Self {
            bytes: Bytes::new(),
            end: 0,
        }
    }

    /// `/`
    pub(super) const fn root() -> Self {
        Self {
            bytes: Bytes::from_static(b"/"),
            end: 1,
        }
    }

    /// Path and query.
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap_or_default()
    }

    /// Without the query.
    pub(super) fn path(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.end]).unwrap_or_default()
    }

    /// Without the question mark.
    pub(super) fn query(&self) -> Option<&str> {
        let query = self.bytes.get(self.end + 1..)?;
        std::str::from_utf8(query).ok()
    }

    /// As a header's value.
    pub(super) fn to_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(self.bytes.clone()).ok()
    }
}

/// A header's text; one that is not visible ASCII is as if it were empty.
pub(super) fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_are_told_apart() {
        let path = Path::new(Bytes::from_static(b"/a?b?c")).unwrap();
        assert_eq!((path.path(), path.query()), ("/a", Some("b?c")));
        let path = Path::new(Bytes::from_static(b"/a?")).unwrap();
        assert_eq!((path.path(), path.query()), ("/a", Some("")));
        let path = Path::new(Bytes::from_static(b"/a")).unwrap();
        assert_eq!((path.path(), path.query()), ("/a", None));
        assert_eq!(Path::new(Bytes::from_static(b"/a#b")), None);
        assert_eq!(Path::new(Bytes::from_static(b"/a b")), None);
    }
}
