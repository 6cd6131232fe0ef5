//! Bodies as they come: of a length, in chunks (RFC 9112, 7.1), or until the connection ends.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fields::{Framing, Malformed};

/// Longest line with a chunk's size and extensions.
const MAX_LINE: usize = 4 << 10;
/// Most bytes of trailers.
const MAX_TRAILERS: usize = 16 << 10;

/// Takes a body out of a connection's bytes.
#[derive(Debug)]
pub(super) enum Decoder {
    /// Nothing is left.
    Done,
    Length(u64),
    Close,
    /// A line with a size comes next.
    Size,
    /// So many bytes are left of a chunk.
    Data(u64),
    /// The end of a chunk's last line.
    DataEnd,
    /// Trailer lines: how many bytes of them were seen, and what they say.
    Trailers(usize, Option<Box<HeaderMap>>),
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Data(Bytes),
    /// The body has ended with these.
    Trailers(Box<HeaderMap>),
    End,
    /// More bytes are needed.
    More,
}

impl From<Framing> for Decoder {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Size,
            Framing::Close => Self::Close,
        }
    }
}

impl Decoder {
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Whether the body may end with the connection.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Self::Close)
    }

    /// How much is left, when that is known.
    pub(super) fn remaining(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }

    /// Takes the next piece of the body from the buffer.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            match self {
                Self::Done => return Ok(Decoded::End),
                Self::Close | Self::Length(_) | Self::Data(_) if buffer.is_empty() => {
                    return Ok(Decoded::More);
                }
                Self::Close => return Ok(Decoded::Data(buffer.split().freeze())),
                Self::Length(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        *self = Self::Done;
                    }
                    return Ok(Decoded::Data(data));
                }
                Self::Data(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Ok(Decoded::Data(data));
                }
                Self::DataEnd => match buffer.get(..2) {
                    None if buffer.first().is_some_and(|byte| *byte != b'\r') => {
                        return Err(Malformed::Syntax);
                    }
                    None => return Ok(Decoded::More),
                    Some(b"\r\n") => {
                        let _ = buffer.split_to(2);
                        *self = Self::Size;
                    }
                    Some(_) => return Err(Malformed::Syntax),
                },
                Self::Size => match line(buffer, MAX_LINE)? {
                    None => return Ok(Decoded::More),
                    Some(line) => {
                        *self = match size(&line)? {
                            0 => Self::Trailers(0, None),
                            size => Self::Data(size),
                        };
                    }
                },
                Self::Trailers(seen, trailers) => match line(buffer, MAX_TRAILERS)? {
                    None => return Ok(Decoded::More),
                    Some(line) if line.is_empty() => {
                        let trailers = trailers.take();
                        *self = Self::Done;
                        return Ok(trailers.map_or(Decoded::End, Decoded::Trailers));
                    }
                    Some(line) => {
                        *seen += line.len() + 2;
                        if *seen > MAX_TRAILERS {
                            return Err(Malformed::TooLarge);
                        }
                        // A trailer is a field; what is none is an attempt at something else.
                        let colon = memchr::memchr(b':', &line).filter(|colon| *colon > 0);
                        let (name, value) = line.split_at(colon.ok_or(Malformed::Syntax)?);
                        let name = HeaderName::from_bytes(name).map_err(|_| Malformed::Syntax)?;
                        let value = HeaderValue::from_bytes(value[1..].trim_ascii())
                            .map_err(|_| Malformed::Syntax)?;
                        trailers
                            .get_or_insert_default()
                            .try_append(name, value)
                            .map_err(|_| Malformed::TooLarge)?;
                    }
                },
            }
        }
    }
}

fn take(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= length as u64;
    buffer.split_to(length).freeze()
}

/// A line without its CRLF.
fn line(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, Malformed> {
    match memchr::memchr(b'\n', buffer) {
        Some(end) if end > max => Err(Malformed::TooLarge),
        Some(end) => {
            let line = buffer.split_to(end + 1).freeze();
            match line.get(..end.wrapping_sub(1)) {
                Some(_) if line[end - 1] == b'\r' => Ok(Some(line.slice(..end - 1))),
                _ => Err(Malformed::Syntax),
            }
        }
        None if buffer.len() > max => Err(Malformed::TooLarge),
        None => Ok(None),
    }
}

/// Hexadecimal digits, then blanks or an extension.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line
        .iter()
        .position(|byte| !byte.is_ascii_hexdigit())
        .unwrap_or(line.len());
    if !(1..=16).contains(&digits) {
        return Err(Malformed::Syntax);
    }
    let rest = line[digits..].trim_ascii_start();
    if !matches!(rest.first(), None | Some(b';')) || rest.contains(&b'\r') {
        return Err(Malformed::Syntax);
    }
    std::str::from_utf8(&line[..digits])
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(Malformed::Syntax)
}
