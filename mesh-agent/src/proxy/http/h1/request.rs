//! Request heads.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, Version, header};

use crate::config::model::listener::HttpConnectionManager;
use crate::proxy::http::message::{Metadata, Path, Request};
use crate::proxy::http::reply::Refusal;

use super::fields::{Framing, Malformed, fields, first_line, framing, has_token, head_end};

/// A request whose head was read.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) request: Request,
    pub(super) framing: Framing,
    /// The client wants the connection to go on.
    pub(super) keep_alive: bool,
    /// The client waits for leave to send the body.
    pub(super) expects_continue: bool,
}

/// What a head may be.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) max_bytes: usize,
    pub(super) max_fields: usize,
    pub(super) accept_http_10: bool,
    pub(super) default_host: Option<HeaderValue>,
}

impl From<&HttpConnectionManager> for Limits {
    fn from(hcm: &HttpConnectionManager) -> Self {
        let default_host = hcm.default_host_for_http_10.as_deref();
        Self {
            max_bytes: (hcm.max_request_headers_kib as usize) << 10,
            max_fields: hcm.max_headers_count as usize,
            accept_http_10: hcm.accept_http_10,
            default_host: default_host.and_then(|host| HeaderValue::from_str(host).ok()),
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Syntax => Self::MALFORMED,
            Malformed::TooLarge => Self::codec(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "Request Header Fields Too Large",
            )
            .because("http1.headers_too_large"),
            Malformed::Coding => Self::codec(StatusCode::NOT_IMPLEMENTED, "Not Implemented")
                .because("http1.invalid_transfer_encoding"),
        }
    }
}

const UPGRADE_REQUIRED: Refusal =
    Refusal::codec(StatusCode::UPGRADE_REQUIRED, "Upgrade Required").because("low_version");

/// Takes a request's head from the buffer; `None`: more bytes are needed.
pub(super) fn parse(
    buffer: &mut BytesMut,
    scanned: &mut usize,
    limits: &Limits,
) -> Result<Option<Head>, Refusal> {
    // Empty lines before a request are an old client's habit (RFC 9112, 2.2).
    while *scanned == 0 && buffer.starts_with(b"\r\n") {
        let _ = buffer.split_to(2);
    }
    let Some(end) = head_end(buffer, scanned, limits.max_bytes)? else {
        // A request line can be told wrong before the head ends: HTTP/0.9 sends nothing else.
        if *scanned > 0 {
            let line = &buffer[..memchr::memchr(b'\r', buffer).unwrap_or(0)];
            request_line(line, limits)?;
        } else if let Some(first) = buffer.first()
            && !is_token(*first)
            && *first != b'\r'
        {
            return Err(Refusal::MALFORMED);
        }
        return Ok(None);
    };
    *scanned = 0;
    let head = buffer.split_to(end).freeze();
    let (line, lines) = first_line(&head)?;
    let Line {
        method,
        target,
        version,
    } = request_line(&line, limits)?;
    let target = line.slice(target);
    let mut headers = fields(&lines, limits.max_fields)?;
    let framing = framing(&headers, Framing::None)?;
    if framing == Framing::Chunked && version == Version::HTTP_10 {
        return Err(Refusal::MALFORMED);
    }
    let keep_alive = match version {
        Version::HTTP_10 => has_token(&headers, &header::CONNECTION, "keep-alive"),
        _ => !has_token(&headers, &header::CONNECTION, "close"),
    };
    let expects_continue = headers
        .remove(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let host = match headers.remove_entry_single(header::HOST) {
        Ok(host) => host,
        Err(Malformed::TooLarge | Malformed::Coding | Malformed::Syntax) => {
            return Err(Refusal::MALFORMED);
        }
    };
    let (authority, path) = resolve(&method, &target)?;
    let authority = match (authority, host) {
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) if version == Version::HTTP_10 => limits
            .default_host
            .clone()
            .unwrap_or_else(|| HeaderValue::from_static("")),
        (None, None) => return Err(Refusal::request(StatusCode::BAD_REQUEST)),
    };
    if !authority.as_bytes().iter().all(|byte| is_authority(*byte)) {
        return Err(Refusal::MALFORMED);
    }
    Ok(Some(Head {
        request: Request {
            method,
            path,
            authority,
            scheme: "http",
            version,
            headers,
            metadata: Metadata::default(),
            pinned: None,
            redirects: None,
            early: None,
        },
        framing,
        keep_alive,
        expects_continue,
    }))
}

/// Removes a header that may come once.
trait RemoveSingle {
    fn remove_entry_single(
        &mut self,
        name: header::HeaderName,
    ) -> Result<Option<HeaderValue>, Malformed>;
}

impl RemoveSingle for http::HeaderMap {
    fn remove_entry_single(
        &mut self,
        name: header::HeaderName,
    ) -> Result<Option<HeaderValue>, Malformed> {
        if self.get_all(&name).iter().nth(1).is_some() {
            return Err(Malformed::Syntax);
        }
        Ok(self.remove(name))
    }
}

struct Line {
    method: Method,
    target: std::ops::Range<usize>,
    version: Version,
}

/// `GET /path HTTP/1.1`, with one space between.
fn request_line(line: &[u8], limits: &Limits) -> Result<Line, Refusal> {
    let first = memchr::memchr(b' ', line).ok_or(Refusal::MALFORMED)?;
    let method = method(&line[..first])?;
    let target = first + 1;
    let Some(second) = memchr::memchr(b' ', &line[target..]) else {
        // HTTP/0.9 named no version.
        let old = line.get(target) == Some(&b'/');
        return Err(if old {
            UPGRADE_REQUIRED
        } else {
            Refusal::MALFORMED
        });
    };
    let end = target + second;
    let version = match &line[end + 1..] {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" if limits.accept_http_10 => Version::HTTP_10,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(UPGRADE_REQUIRED);
        }
        _ => return Err(Refusal::MALFORMED),
    };
    if end == target {
        return Err(Refusal::MALFORMED);
    }
    Ok(Line {
        method,
        target: target..end,
        version,
    })
}

/// What Envoy takes unless it is told to allow custom methods.
const METHODS: [&str; 25] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "COPY",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

fn method(name: &[u8]) -> Result<Method, Refusal> {
    Ok(match name {
        b"GET" => Method::GET,
        b"POST" => Method::POST,
        b"PUT" => Method::PUT,
        b"DELETE" => Method::DELETE,
        b"PATCH" => Method::PATCH,
        b"HEAD" => Method::HEAD,
        b"OPTIONS" => Method::OPTIONS,
        b"CONNECT" => Method::CONNECT,
        b"TRACE" => Method::TRACE,
        other if METHODS.iter().any(|known| known.as_bytes() == other) => {
            Method::from_bytes(other).map_err(|_| Refusal::MALFORMED)?
        }
        _ => return Err(Refusal::MALFORMED),
    })
}

/// The authority, if the target names one, and the path (RFC 9112, 3.2).
fn resolve(method: &Method, target: &Bytes) -> Result<(Option<HeaderValue>, Path), Refusal> {
    if *method == Method::CONNECT {
        let authority = HeaderValue::from_maybe_shared(target.clone());
        return Ok((authority.ok(), Path::empty()));
    }
    if target[0] == b'/' || (target[..] == b"*"[..] && *method == Method::OPTIONS) {
        return Ok((None, path(target.clone())?));
    }
    const SCHEMES: [&[u8]; 2] = [b"http://", b"https://"];
    let scheme = SCHEMES
        .iter()
        .find(|scheme| {
            target
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
        .ok_or(Refusal::MALFORMED)?;
    let rest = target.slice(scheme.len()..);
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    if end == 0 {
        return Err(Refusal::MALFORMED);
    }
    let authority =
        HeaderValue::from_maybe_shared(rest.slice(..end)).map_err(|_| Refusal::MALFORMED)?;
    let path = match rest.get(end) {
        None => Path::root(),
        Some(b'/') => path(rest.slice(end..))?,
        Some(_) => path([b"/", &rest[end..]].concat().into())?,
    };
    Ok((Some(authority), path))
}

fn path(bytes: Bytes) -> Result<Path, Refusal> {
    let fragment = memchr::memchr(b'#', &bytes).is_some();
    Path::new(bytes).ok_or(if fragment {
        Refusal::request(StatusCode::BAD_REQUEST)
    } else {
        Refusal::MALFORMED
    })
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 3986, 3.2, with a user as Envoy allows.
fn is_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]@%".contains(&byte)
}
