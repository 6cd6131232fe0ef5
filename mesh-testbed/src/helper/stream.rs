//! `stream`: sends numbered bytes to a server that echoes, small messages first, and looks at every
//! byte that comes back.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use mesh_testbed::wire::Streamed;

use super::listen::print_line;

/// Bytes repeat after so many, which no buffer's size is a multiple of.
const PERIOD: usize = 65_521;
const LARGE: usize = 48 << 10;
/// A stream that stands still for so long is broken.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// The server.
    to: SocketAddr,
    /// How many bytes.
    #[arg(long)]
    bytes: u64,
    /// How many of them in small messages.
    #[arg(long, default_value_t = u64::MAX)]
    small: u64,
    /// How many connections at once.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Connections one after the other in each of them.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Pause after each small message, in microseconds.
    #[arg(long, default_value_t = 0)]
    pause_us: u64,
    /// Wait for the echo of each small message.
    #[arg(long)]
    turns: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let pattern: Vec<u8> = (0..PERIOD + LARGE).map(byte).collect();
    let mut streamed = Streamed::default();
    let results: Vec<Result<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.connections)
            .map(|_| {
                scope
                    .spawn(|| (0..args.rounds).try_fold(0, |sum, _| Ok(sum + one(args, &pattern)?)))
            })
            .collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .map(|result| result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
            .collect()
    });
    for result in results {
        match result {
            Ok(bytes) => streamed.bytes += bytes,
            Err(error) => streamed.failures.push(format!("{error:#}")),
        }
    }
    print_line(&streamed)
}

/// The byte at a place of the stream.
fn byte(at: usize) -> u8 {
    ((at % PERIOD) as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()[0]
}

fn one(args: &Args, pattern: &[u8]) -> Result<u64> {
    let stream = TcpStream::connect(args.to).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let small = args.small.min(args.bytes);
    let mut at = 0;
    if args.turns {
        while at < small {
            let message = next(at, small, pattern);
            (&stream).write_all(message).context("write")?;
            let end = at + message.len() as u64;
            check(&stream, at..end, pattern)?;
            at = end;
            std::thread::sleep(Duration::from_micros(args.pause_us));
        }
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&stream, at, small, args, pattern));
        check(&stream, at..args.bytes, pattern)?;
        writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let end = read(&stream, &mut [0]).context("the end")?;
        ensure!(end == 0, "bytes after the end");
        Ok(args.bytes)
    })
}

fn write(
    mut stream: &TcpStream,
    mut at: u64,
    small: u64,
    args: &Args,
    pattern: &[u8],
) -> Result<()> {
    while at < args.bytes {
        let message = if at < small {
            std::thread::sleep(Duration::from_micros(args.pause_us));
            next(at, small, pattern)
        } else {
            let size = (args.bytes - at).min(LARGE as u64) as usize;
            let from = (at % PERIOD as u64) as usize;
            &pattern[from..from + size]
        };
        stream
            .write_all(message)
            .with_context(|| format!("write at {at}"))?;
        at += message.len() as u64;
    }
    stream.shutdown(Shutdown::Write).context("shutdown")
}

/// A small message of a size that depends on its place.
fn next(at: u64, end: u64, pattern: &[u8]) -> &[u8] {
    let size = (2 + at % 401).min(end - at) as usize;
    let from = (at % PERIOD as u64) as usize;
    &pattern[from..from + size]
}

/// Sockets in a sockmap wake for nothing, and read(2) returns EAGAIN before its time.
fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match stream.read(buffer) {
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

fn check(stream: &TcpStream, range: std::ops::Range<u64>, pattern: &[u8]) -> Result<()> {
    let mut buffer = vec![0; LARGE];
    let mut at = range.start;
    while at < range.end {
        let room = (range.end - at).min(LARGE as u64) as usize;
        let read = read(stream, &mut buffer[..room]).with_context(|| format!("read at {at}"))?;
        ensure!(read > 0, "the stream ends at {at} of {}", range.end);
        let from = (at % PERIOD as u64) as usize;
        ensure!(
            buffer[..read] == pattern[from..from + read],
            "bytes {at} to {} are not those that were sent",
            at + read as u64
        );
        at += read as u64;
    }
    Ok(())
}
