//! Lines and header fields (RFC 9112, 2 and 5), read strictly: what two parsers could read
//! differently is refused.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// A message that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// It breaks the protocol.
    Syntax,
    /// More header bytes or fields than allowed.
    TooLarge,
    /// A transfer coding other than chunked.
    Coding,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// As its chunks say.
    Chunked,
    /// Until the connection ends; responses only.
    Close,
}

/// Where the head of a message ends, if all of it is here. `scanned` remembers how far an
/// earlier look came.
pub(super) fn head_end(
    buffer: &BytesMut,
    scanned: &mut usize,
    max: usize,
) -> Result<Option<usize>, Malformed> {
    let mut line = *scanned;
    while let Some(length) = memchr::memchr(b'\n', &buffer[line..]) {
        let end = line + length;
        if end == 0 || buffer[end - 1] != b'\r' {
            return Err(Malformed::Syntax);
        }
        if end + 1 > max {
            return Err(Malformed::TooLarge);
        }
        if end - line == 1 {
            return Ok(Some(end + 1));
        }
        line = end + 1;
        *scanned = line;
    }
    if buffer.len() > max {
        return Err(Malformed::TooLarge);
    }
    Ok(None)
}

/// The first line of a head, and the rest.
pub(super) fn first_line(head: &Bytes) -> Result<(Bytes, Bytes), Malformed> {
    let end = memchr::memchr(b'\r', head).ok_or(Malformed::Syntax)?;
    // A CR alone ends no line.
    match head.get(end + 1) {
        Some(b'\n') => Ok((head.slice(..end), head.slice(end + 2..))),
        _ => Err(Malformed::Syntax),
    }
}

/// Reads fields up to the empty line. Every line is known to end with CRLF.
pub(super) fn fields(lines: &Bytes, max: usize) -> Result<HeaderMap, Malformed> {
    let count = memchr::memchr_iter(b'\n', lines).count().saturating_sub(1);
    if count > max {
        return Err(Malformed::TooLarge);
    }
    let mut headers = HeaderMap::with_capacity(count + 8);
    let mut at = 0;
    loop {
        let end = at + memchr::memchr(b'\n', &lines[at..]).ok_or(Malformed::Syntax)?;
        let line = &lines[at..end - 1];
        if line.is_empty() {
            return Ok(headers);
        }
        let colon = memchr::memchr(b':', line).ok_or(Malformed::Syntax)?;
        // A name takes no space, so a folded line and a space before the colon end here too.
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| Malformed::Syntax)?;
        let value = trim(line, colon + 1);
        let value = lines.slice(at + value.start..at + value.end);
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| Malformed::Syntax)?;
        headers
            .try_append(name, value)
            .map_err(|_| Malformed::TooLarge)?;
        at = end + 1;
    }
}

/// Where the value lies in its line.
fn trim(line: &[u8], from: usize) -> std::ops::Range<usize> {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let value = &line[from..];
    match value.iter().position(|byte| !blank(byte)) {
        None => from..from,
        Some(start) => {
            let end = value.iter().rposition(|byte| !blank(byte)).unwrap_or(start);
            from + start..from + end + 1
        }
    }
}

/// The length that the headers announce, `otherwise` if they are silent.
pub(super) fn framing(headers: &HeaderMap, otherwise: Framing) -> Result<Framing, Malformed> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(otherwise),
        (Some(_), Some(_)) => Err(Malformed::Syntax),
        (Some(length), None) if lengths.next().is_none() => {
            number(length.as_bytes()).map(Framing::Length)
        }
        (None, Some(coding)) if codings.next().is_none() => {
            if coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                Ok(Framing::Chunked)
            } else {
                Err(Malformed::Coding)
            }
        }
        (Some(_), None) => Err(Malformed::Syntax),
        (None, Some(_)) => Err(Malformed::Coding),
    }
}

/// Digits only: no sign, no list, no blanks.
fn number(digits: &[u8]) -> Result<u64, Malformed> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed::Syntax);
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(Malformed::Syntax)
}

/// Whether a comma-separated header names a token.
pub(in crate::proxy::http) fn has_token(
    headers: &HeaderMap,
    name: &HeaderName,
    token: &str,
) -> bool {
    headers.get_all(name).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}
