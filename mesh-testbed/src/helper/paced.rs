//! `paced`: requests at a steady rate on connections that stay open. A latency is counted from
//! when the request was due, so that a stall counts for every request it held up.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::{Args as ClapArgs, ValueEnum};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_testbed::wire::Pace;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::listen::print_line;

/// How long an answer may take before the request has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A gRPC message: not compressed, 32 bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x20thirty-two bytes are one message";

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Args {
    /// Where to.
    to: SocketAddr,
    /// What to speak.
    #[arg(long, value_enum, default_value_t = Protocol::Http1)]
    protocol: Protocol,
    /// The body that answers shall have; gRPC: the message comes back.
    #[arg(long, default_value = "")]
    expect: String,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Requests a second, on each of them.
    #[arg(long, default_value_t = 100)]
    rate: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Http1,
    Http2,
    Grpc,
}

/// What happened since somebody asked.
#[derive(Debug, Default)]
struct Seen {
    latencies_us: Vec<u64>,
    failed: u64,
    failure: Option<String>,
}

/// A connection of either version.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let interval = Duration::from_secs(1) / args.rate.max(1);
    for number in 0..args.connections {
        let (seen, args) = (seen.clone(), args.clone());
        // Spread over the interval, so that they are not due all at once.
        let offset = interval * number / args.connections;
        let runtime = crate::runtime()?;
        std::thread::spawn(move || send(&args, &runtime, interval, offset, &seen));
    }
    for line in std::io::stdin().lock().lines() {
        line?;
        let taken = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        print_line(&summary(taken))?;
    }
    Ok(())
}

fn summary(mut seen: Seen) -> Pace {
    seen.latencies_us.sort_unstable();
    let at = |per_mille: usize| {
        let index = (seen.latencies_us.len() * per_mille).div_ceil(1000);
        let value = seen.latencies_us.get(index.saturating_sub(1));
        value.copied().unwrap_or_default()
    };
    Pace {
        answered: seen.latencies_us.len() as u64,
        failed: seen.failed,
        failure: seen.failure,
        p50_us: at(500),
        p99_us: at(990),
        p999_us: at(999),
        max_us: at(1000),
    }
}

/// One connection's requests, one after the other. The thread sleeps by itself: a runtime's timer
/// is as coarse as a millisecond.
fn send(args: &Args, runtime: &Runtime, interval: Duration, offset: Duration, seen: &Mutex<Seen>) {
    // SAFETY: PR_SET_TIMERSLACK takes a number of nanoseconds.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_usize) };
    let mut sender = None;
    let mut due = Instant::now() + offset;
    loop {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let exchange = async {
            tokio::time::timeout(PATIENCE, exchange(args, &mut sender))
                .await
                .context("no answer in time")?
        };
        let result = runtime.block_on(exchange);
        let latency = due.elapsed();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => seen.latencies_us.push(latency.as_micros() as u64),
            Err(error) => {
                sender = None;
                seen.failed += 1;
                seen.failure.get_or_insert_with(|| format!("{error:#}"));
            }
        }
        due += interval;
    }
}

async fn exchange(args: &Args, sender: &mut Option<Sender>) -> Result<()> {
    let sender = match sender {
        Some(sender) => sender,
        None => sender.insert(connect(args).await?),
    };
    let grpc = args.protocol == Protocol::Grpc;
    let target = match sender {
        Sender::Http1(_) => "/".to_owned(),
        Sender::Http2(_) => format!("http://{}/", args.to),
    };
    let mut request = Request::builder().uri(target);
    let mut body = Full::default();
    if grpc {
        request = request
            .method("POST")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        body = Full::from(MESSAGE);
    } else if matches!(sender, Sender::Http1(_)) {
        request = request.header("host", args.to.to_string());
    }
    let request = request.body(body)?;
    let response = match sender {
        Sender::Http1(sender) => {
            sender.ready().await?;
            sender.send_request(request).await?
        }
        Sender::Http2(sender) => sender.send_request(request).await?,
    };
    let status = response.status();
    // A proxy that answers a gRPC call itself has no trailers and no body.
    if let Some(status) = response.headers().get("grpc-status") {
        let message = response.headers().get("grpc-message");
        bail!("answered with grpc-status {status:?}, message {message:?}");
    }
    let body = response.into_body().collect().await?;
    let ended_well = body
        .trailers()
        .and_then(|trailers| trailers.get("grpc-status"))
        .is_some_and(|status| status == "0");
    let body = body.to_bytes();
    ensure!(status == StatusCode::OK, "status {status}");
    let expected = if grpc {
        MESSAGE
    } else {
        args.expect.as_bytes()
    };
    ensure!(body.trim_ascii_end() == expected, "the body is {body:?}");
    ensure!(!grpc || ended_well, "no grpc-status of 0");
    Ok(())
}

async fn connect(args: &Args) -> Result<Sender> {
    let stream = TcpStream::connect(args.to).await?;
    stream.set_nodelay(true)?;
    let stream = TokioIo::new(stream);
    Ok(if args.protocol == Protocol::Http1 {
        let (sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        Sender::Http1(sender)
    } else {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Sender::Http2(sender)
    })
}
