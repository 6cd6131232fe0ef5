//! Load generators that other people wrote, and what they say.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use mesh_testbed::{Pod, Protocol};

/// Connections at once, of every load.
const CONNECTIONS: u32 = 32;
/// Requests at once on each connection of HTTP/2.
const STREAMS: u32 = 10;

/// What a load found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    pub(super) requests: f64,
    pub(super) per_second: f64,
}

/// As many requests as go through; an answer other than 2xx is an error.
pub(super) fn requests(
    pod: &Pod,
    to: SocketAddr,
    protocol: Protocol,
    seconds: u32,
) -> Result<Load> {
    match protocol {
        Protocol::Http1 => wrk(pod, to, seconds, &[]),
        Protocol::Http2 => h2load(pod, to, seconds, None),
        Protocol::Grpc => h2load(pod, to, seconds, Some(b"\0\0\0\0\x04ping")),
    }
}

/// A connection for each request.
pub(super) fn connects(pod: &Pod, to: SocketAddr, seconds: u32) -> Result<Load> {
    wrk(pod, to, seconds, &["-H", "Connection: close"])
}

fn wrk(pod: &Pod, to: SocketAddr, seconds: u32, more: &[&str]) -> Result<Load> {
    let text = output(
        pod,
        "wrk",
        &[
            "-t1",
            &format!("-c{CONNECTIONS}"),
            &format!("-d{seconds}s"),
            &format!("http://{to}/"),
        ],
        more,
    )?;
    wrk_said(&text).with_context(|| format!("wrk said: {text}"))
}

fn wrk_said(text: &str) -> Result<Load> {
    ensure!(!text.contains("Non-2xx"), "an answer was not 2xx");
    ensure!(!text.contains("Socket errors"), "a connection failed");
    let per_second = after(text, "Requests/sec:")?;
    let (before, _) = text
        .split_once(" requests in ")
        .context("no number of requests")?;
    let requests = before.split_whitespace().last().unwrap_or_default();
    Ok(Load {
        requests: requests.parse().context("no number of requests")?,
        per_second,
    })
}

fn h2load(pod: &Pod, to: SocketAddr, seconds: u32, message: Option<&[u8]>) -> Result<Load> {
    let file = tempfile::NamedTempFile::new().context("cannot make a file for a message")?;
    let mut more = Vec::new();
    if let Some(message) = message {
        std::fs::write(&file, message).context("cannot write a message")?;
        more.extend(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
        more.extend(["-d", path(file.path())?]);
    }
    let text = output(
        pod,
        "h2load",
        &[
            &format!("-c{CONNECTIONS}"),
            &format!("-m{STREAMS}"),
            &format!("-D{seconds}"),
            &format!("http://{to}/"),
        ],
        &more,
    )?;
    h2load_said(&text).with_context(|| format!("h2load said: {text}"))
}

fn h2load_said(text: &str) -> Result<Load> {
    for what in [" failed", " errored", " timeout", " 3xx", " 4xx", " 5xx"] {
        let (before, _) = text
            .split_once(what)
            .with_context(|| format!("nothing of{what}"))?;
        let count = before.rsplit([' ', ',']).next().unwrap_or_default();
        ensure!(count == "0", "{count}{what}");
    }
    let (before, _) = text.split_once(" req/s").context("no rate")?;
    let per_second = before.split(", ").last().unwrap_or_default();
    let (before, _) = text.split_once(" succeeded").context("no count")?;
    let requests = before.rsplit(' ').next().unwrap_or_default();
    Ok(Load {
        requests: requests.parse().context("no count")?,
        per_second: per_second.parse().context("no rate")?,
    })
}

/// The median round trip of 64 bytes over one connection, in microseconds.
pub(super) fn round_trip(pod: &Pod, to: SocketAddr, seconds: u32) -> Result<f64> {
    let text = output(
        pod,
        "sockperf",
        &[
            "ping-pong",
            "--tcp",
            "--full-rtt",
            "--msg-size=64",
            &format!("--time={seconds}"),
            &format!("-i{}", to.ip()),
            &format!("-p{}", to.port()),
        ],
        &[],
    )?;
    after(&text, "percentile 50.000 =").with_context(|| format!("sockperf said: {text}"))
}

/// Bytes through one connection, in Gbit/s as the server received them.
pub(super) fn throughput(pod: &Pod, to: SocketAddr, seconds: u32) -> Result<f64> {
    let text = output(
        pod,
        "iperf3",
        &[
            "--json",
            &format!("--time={seconds}"),
            &format!("--client={}", to.ip()),
            &format!("--port={}", to.port()),
        ],
        &[],
    )?;
    let json: serde_json::Value = serde_json::from_str(&text).context("iperf3 speaks JSON")?;
    let bits = json["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("iperf3 said: {text}"))? / 1e9)
}

fn output(pod: &Pod, program: &str, args: &[&str], more: &[&str]) -> Result<String> {
    let output = pod
        .command(program)
        .args(more)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {program}; is it installed?"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{program} {}: {}\n{text}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

/// The number behind a word.
fn after(text: &str, word: &str) -> Result<f64> {
    let (_, rest) = text
        .split_once(word)
        .with_context(|| format!("nothing of {word:?}"))?;
    let number = rest.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("{word:?} is followed by {number:?}"))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let text = "Running 1s test @ http://10.96.0.12:80/\n  1 threads and 32 connections\n  \
                    31570 requests in 1.00s, 5.21MB read\nRequests/sec:  31468.72\n";
        let load = wrk_said(text).unwrap();
        assert_eq!((load.requests, load.per_second), (31570.0, 31468.72));
        let wrong = text.replace(
            "Requests/sec",
            "  Non-2xx or 3xx responses: 2\nRequests/sec",
        );
        assert!(wrk_said(&wrong).is_err());
    }

    #[test]
    fn h2load_is_understood() {
        let text = "finished in 1.00s, 41234.00 req/s, 1.2MB/s\nrequests: 41300 total, 41334 \
                    started, 41234 done, 41234 succeeded, 0 failed, 0 errored, 0 timeout\n\
                    status codes: 41240 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        let load = h2load_said(text).unwrap();
        assert_eq!((load.requests, load.per_second), (41234.0, 41234.0));
        assert!(h2load_said(&text.replace("0 5xx", "3 5xx")).is_err());
        assert!(h2load_said(&text.replace("0 failed", "1 failed")).is_err());
    }
}
