//! `raw-http`: answers with the bytes that a request asks for, right or wrong.
//!
//! `x-reply` holds them, percent-encoded. `x-end` says what comes next: `close` (the default),
//! `reset`, `keep` (another request may follow), `hang` (nothing more is said). `x-reply-2` and
//! `x-end-2` are for a proxy's second attempt, by `x-envoy-attempt-count`, and so on.

use anyhow::Result;
use clap::Args as ClapArgs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::listen::Listen;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
}

pub(crate) async fn serve(args: Args) -> Result<()> {
    let listener = args.listen.start()?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A client that went away ends its own connection only.
        tokio::spawn(async move { answer(stream).await });
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        let attempt = header("x-envoy-attempt-count").unwrap_or_default();
        let header = |name: &str| header(&format!("{name}-{attempt}")).or_else(|| header(name));
        let mut body: usize = header("content-length")
            .and_then(|length| length.parse().ok())
            .unwrap_or(0);
        while body > buffer.len() {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        buffer.drain(..std::mem::take(&mut body));
        stream
            .write_all(&decoded(&header("x-reply").unwrap_or_default()))
            .await?;
        match header("x-end").as_deref() {
            Some("keep") => {}
            Some("hang") => {
                while stream.read_buf(&mut buffer).await? != 0 {
                    buffer.clear();
                }
                return Ok(());
            }
            Some("reset") => {
                socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
                return Ok(());
            }
            _ => return stream.shutdown().await,
        }
    }
}

fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
        let digits = String::from_utf8_lossy(&digits).into_owned();
        out.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
    }
    out
}
