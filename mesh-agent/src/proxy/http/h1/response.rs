//! Response heads.

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode, Version, header};

use super::fields::{Framing, Malformed, fields, first_line, framing, has_token, head_end};

/// Largest head of a response, as Envoy's default.
const MAX_BYTES: usize = 60 << 10;
/// Most fields of a response, as Envoy's default.
const MAX_FIELDS: usize = 100;

/// A response whose head was read.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// The connection may serve another request afterwards.
    pub(super) keep_alive: bool,
}

/// Takes the head of a response to a request of this method; `None`: more bytes are needed.
pub(super) fn parse(
    buffer: &mut BytesMut,
    scanned: &mut usize,
    method: &Method,
) -> Result<Option<Head>, Malformed> {
    let Some(end) = head_end(buffer, scanned, MAX_BYTES)? else {
        return Ok(None);
    };
    *scanned = 0;
    let head = buffer.split_to(end).freeze();
    let (line, lines) = first_line(&head)?;
    let (version, status) = status_line(&line)?;
    let headers = fields(&lines, MAX_FIELDS)?;
    let bodyless = status.is_informational()
        || *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || (*method == Method::CONNECT && status.is_success());
    let framing = if bodyless {
        Framing::None
    } else {
        framing(&headers, Framing::Close)?
    };
    let keep_alive = match version {
        Version::HTTP_10 => has_token(&headers, &header::CONNECTION, "keep-alive"),
        _ => !has_token(&headers, &header::CONNECTION, "close"),
    };
    Ok(Some(Head {
        status,
        headers,
        framing,
        keep_alive: keep_alive && framing != Framing::Close,
    }))
}

/// `HTTP/1.1 200 OK`; the reason may be missing.
fn status_line(line: &[u8]) -> Result<(Version, StatusCode), Malformed> {
    let version = match line.get(..9) {
        Some(b"HTTP/1.1 ") => Version::HTTP_11,
        Some(b"HTTP/1.0 ") => Version::HTTP_10,
        _ => return Err(Malformed::Syntax),
    };
    let code = line.get(9..12).ok_or(Malformed::Syntax)?;
    if !matches!(line.get(12), None | Some(b' ')) {
        return Err(Malformed::Syntax);
    }
    let status = StatusCode::from_bytes(code).map_err(|_| Malformed::Syntax)?;
    Ok((version, status))
}
