//! Admin pages of the agent and of Envoy.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The answer of an admin page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Status of the response.
    pub status: u16,
    /// Its body.
    pub body: String,
}

/// One request, over a connection of its own. HTTP/1.1, because Envoy speaks nothing older.
pub(crate) fn request(to: SocketAddr, method: &str, path: &str) -> Result<Page> {
    send(to, method, path, "")
}

/// As [`request`], with a body.
pub(crate) fn send(to: SocketAddr, method: &str, path: &str, body: &str) -> Result<Page> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .with_context(|| format!("{method} {path}"))?;
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no end of the headers")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = &bytes[end + 4..];
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .with_context(|| format!("no status in {head:?}"))?;
    let body = match head.contains("\r\ntransfer-encoding: chunked") {
        true => unchunk(body).with_context(|| format!("{method} {path}: bad chunks"))?,
        false => body.to_vec(),
    };
    Ok(Page {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// The bytes of a chunked body; `None` if it is cut short.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let chunk = rest.get(line + 2..)?;
        body.extend_from_slice(chunk.get(..size)?);
        rest = chunk.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::unchunk;

    #[test]
    fn chunks_are_joined_and_a_cut_is_noticed() {
        let whole = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(unchunk(whole).as_deref(), Some(b"abcde".as_slice()));
        assert_eq!(unchunk(&whole[..10]), None);
    }
}
