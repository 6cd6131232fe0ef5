//! HTTP/2 as h2spec asks for it, gRPC as its interop programs do, and clients that mean harm.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::protocols::{self, GRPC_CASES, GrpcServer};
use mesh_testbed::{Curl, MeshAgent, Server, Talk, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, metric};

const TO_APP: &str = "{match: {prefix: /}, route: {cluster: app, timeout: 0s}}";

/// Cases that are answered otherwise: where both protocols are spoken, as Envoy's `AUTO` does,
/// what does not begin as HTTP/2 is an HTTP/1 request, and gets a 400.
const DEVIATIONS: [&str; 1] = ["http2/3.5/2 "];

fn programs() -> bool {
    let here = protocols::program().is_some();
    if !here {
        mesh_testbed::skipped("needs h2spec and gRPC's interop programs (MESH_PROTOCOLS)");
    }
    here
}

#[test]
fn http2_is_spoken_as_h2spec_asks() -> Result<()> {
    needs_root!(Ok(()));
    if !programs() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&pod, "app", "v1", 0)?;
    let at: SocketAddr = (testbed.vip4(1), 80).into();
    let config = Config::default()
        .enrol(&client, "")
        .http("web", at, "OUTBOUND", TO_APP)
        .cluster("app", &[app.addr4()]);
    let _agent = MeshAgent::start(&testbed, &config.yaml())?;
    let told = protocols::h2spec(&client, at)?;
    let unexpected: Vec<String> = told
        .failed
        .iter()
        .filter(|one| !DEVIATIONS.iter().any(|known| one.case.starts_with(known)))
        .map(|one| format!("{}: {}", one.case, one.error))
        .collect();
    ensure!(
        unexpected.is_empty(),
        "{} passed, these did not:\n{}",
        told.passed,
        unexpected.join("\n")
    );
    ensure!(told.passed > 140, "only {} cases were asked", told.passed);
    Ok(())
}

/// Client, agent of the client, agent of the server, server: every kind of call, and both
/// programs are grpc-go's.
#[test]
fn grpc_calls_pass_both_sides() -> Result<()> {
    needs_root!(Ok(()));
    if !programs() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let server = GrpcServer::start(&pod)?;
    let at: SocketAddr = (testbed.vip4(1), 80).into();
    let http2 = ", http2_protocol_options: {}";
    let port = server.address().port();
    let inbound: SocketAddr = ([0, 0, 0, 0], 15006).into();
    let own = SocketAddr::from(([127, 0, 0, 1], port));
    let config = Config::default()
        .enrol(&client, "")
        .enrol(&pod, "")
        .http("out", at, "OUTBOUND", TO_APP)
        .http(
            "in",
            inbound,
            "INBOUND",
            "{match: {prefix: /}, route: {cluster: own, timeout: 0s}}",
        )
        .cluster_with("app", &[server.address()], http2)
        .cluster_with("own", &[own], http2);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let failed: Vec<String> = GRPC_CASES
        .iter()
        .filter_map(|case| protocols::grpc_case(&client, at, case).err())
        .map(|error| format!("{error:#}"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    let requests = |cluster: &str| common::cluster_stat(&agent, cluster, "upstream_rq_total");
    ensure!(requests("app")? > 0 && requests("own")? > 0);
    Ok(())
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

/// `GET / http a`, by the static table and a literal.
const GET: [u8; 6] = [0x82, 0x84, 0x86, 0x41, 0x01, b'a'];

fn flood(frames: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    frames.for_each(|frame| bytes.extend(frame));
    bytes
}

/// Streams opened and reset, headers without end, empty frames without end: the connection ends,
/// the agent does not, and its memory stays as it was.
#[test]
fn floods_cost_little_and_harm_nobody_else() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&pod, "app", "v1", 0)?;
    let at: SocketAddr = (testbed.vip4(1), 80).into();
    let config = Config::default()
        .enrol(&client, "")
        .http("web", at, "OUTBOUND", TO_APP)
        .cluster("app", &[app.addr4()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let ask = || Curl::get(&client, &format!("http://{at}/")).send();
    ensure!(ask()?.status == 200);
    let before = agent.memory()?;
    let mut talk = Talk::start(&client)?;
    talk.set_patience(Duration::from_millis(500));
    let stream = |number: u32| 2 * number + 1;
    let resets = flood((0..20_000).flat_map(|number| {
        [
            frame(HEADERS, 0x5, stream(number), &GET),
            frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes()),
        ]
    }));
    let endless = flood(
        std::iter::once(frame(HEADERS, 0x1, 1, &GET)).chain((0..4000).map(|_| {
            frame(
                CONTINUATION,
                0,
                1,
                &[0x40, 0x01, b'x', 0x01, b'y'].repeat(200),
            )
        })),
    );
    let empty = flood(
        std::iter::once(frame(HEADERS, 0x4, 1, &GET))
            .chain((0..50_000).map(|_| frame(DATA, 0, 1, &[]))),
    );
    let pings = flood((0..20_000).map(|_| frame(PING, 0, 0, &[0; 8])));
    let settings = flood((0..20_000).map(|_| frame(SETTINGS, 0, 0, &[])));
    for (name, bytes) in [
        ("resets", resets),
        ("endless headers", endless),
        ("empty frames", empty),
        ("pings", pings),
        ("settings", settings),
    ] {
        for _ in 0..3 {
            talk.say(at, &[&bytes], &["GET"])?;
        }
        ensure!(ask()?.status == 200, "after {name}");
    }
    eventually("no connection is left", PATIENCE, || {
        metric(&agent, "envoy_listener_downstream_cx_active").is_ok_and(|open| open == 0)
    })?;
    ensure!(metric(&agent, "mesh_proxy_panics_total")? == 0);
    let after = agent.memory()?;
    let grown = after.saturating_sub(before);
    println!("floods: {} KiB more memory", grown >> 10);
    ensure!(grown < 64 << 20, "memory grew by {grown} bytes");
    Ok(())
}

/// Connections that serve nothing hold little.
#[test]
fn thousands_of_idle_connections_hold_little_memory() -> Result<()> {
    const MANY: usize = 10_000;
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&pod, "app", "v1", 0)?;
    let at: SocketAddr = (testbed.vip4(1), 80).into();
    let config = Config::default()
        .enrol(&client, "")
        .http("web", at, "OUTBOUND", TO_APP)
        .cluster("app", &[app.addr4()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    ensure!(Curl::get(&client, &format!("http://{at}/")).send()?.status == 200);
    let before = agent.memory()?;
    let held = mesh_testbed::Connect::to(at)
        .times(MANY)
        .flag("--no-read")
        .hold(&client)?;
    let connected = held.connections.iter().filter(|one| one.connected).count();
    ensure!(connected == MANY, "{connected} connections stand");
    eventually("the agent has accepted all", PATIENCE, || {
        agent.open_files().is_ok_and(|files| files >= MANY)
    })?;
    let each = agent.memory()?.saturating_sub(before) / MANY as u64;
    println!("{MANY} idle connections: {each} bytes each");
    ensure!(each < 16 << 10, "an idle connection holds {each} bytes");
    ensure!(Curl::get(&client, &format!("http://{at}/")).send()?.status == 200);
    Ok(())
}
