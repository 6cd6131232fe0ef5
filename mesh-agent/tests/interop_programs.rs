//! Programs that nobody of this project wrote, through the running agent: gRPC's own library,
//! WebSocket, HTTP/2 and load generators.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Curl, MeshAgent, Nginx, Pod, Python, Server, Testbed, needs_root};
use serde_json::{Value, json};

use common::Config;

const HTTP2: &str = ", typed_extension_protocol_options: \
    {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
    type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
    explicit_http_config: {http2_protocol_options: {}}}}";

/// Whether the Python libraries are here; says so if not.
fn python() -> bool {
    let here = Python::libraries().is_some();
    if !here {
        mesh_testbed::skipped("needs grpcio and websockets (MESH_PYTHON)");
    }
    here
}

struct Scene {
    testbed: Testbed,
    client: Pod,
    server: Pod,
}

impl Scene {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        Ok(Self {
            testbed,
            client,
            server,
        })
    }

    fn vip(&self, number: u8) -> SocketAddr {
        SocketAddr::new(self.testbed.vip4(number).into(), 80)
    }

    fn upstream(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.ip4().into(), port)
    }
}

const ALL: &str = "{match: {prefix: /}, route: {cluster: app, timeout: 0s}}";

#[test]
fn grpc_of_every_kind_passes_with_trailers() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_server, port) = Python::grpc_server(&scene.server)?;
    let config = Config::default()
        .enrol(&scene.client, "")
        .http("grpc", scene.vip(1), "OUTBOUND", ALL)
        .cluster_with("app", &[scene.upstream(port)], HTTP2)
        .http(
            "dead",
            scene.vip(2),
            "OUTBOUND",
            "{match: {prefix: /}, route: {cluster: dead}}",
        )
        .cluster_with("dead", &[scene.upstream(9)], HTTP2);
    let agent = MeshAgent::start(&scene.testbed, &config.yaml())?;
    let told: Value = Python::grpc_client(&scene.client, &scene.vip(1).to_string())?;
    let is = |what: &str, expected: Value| {
        assert_eq!(told[what], expected, "{what} of {told:#}");
    };
    is("unary", json!("cba"));
    is("initial", json!("i"));
    is("trailing", json!(["t", "00ff"]));
    is("big", json!(true));
    is("count", json!(1000));
    is("collect", json!(500_000));
    is("echo", json!(true));
    assert_eq!(told["fail"]["code"], "FAILED_PRECONDITION");
    assert_eq!(told["fail"]["details"], "not now: 100% \u{fc}");
    assert_eq!(told["fail"]["trailers"]["x-why"], "because");
    is("before_break", json!("one"));
    assert_eq!(told["break_off"]["code"], "DATA_LOSS");
    assert_eq!(told["slow"]["code"], "DEADLINE_EXCEEDED");
    assert_eq!(told["unknown"]["code"], "UNIMPLEMENTED");
    assert_eq!(told["metadata"]["x-mine"], "m");
    ensure!(
        told["metadata"]["x-request-id"].is_string(),
        "it did not pass the agent: {told:#}"
    );
    // As Istio counts: by gRPC's status, and every message of the calls that went well.
    let page = agent.get("/stats/prometheus")?.body;
    let sum = |metric: &str, status: u32| -> u64 {
        let label = format!("grpc_response_status=\"{status}\"");
        page.lines()
            .filter(|line| line.starts_with(metric) && line.contains(&label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    };
    assert_eq!(sum("istio_requests_total{", 9), 1, "{page}");
    assert_eq!(sum("istio_request_messages_total{", 0), 704, "{page}");
    assert_eq!(sum("istio_response_messages_total{", 0), 1204, "{page}");
    // Nobody there: what a gRPC client understands.
    let dead = Curl::get(
        &scene.client,
        &format!("http://{}/mesh.Test/Unary", scene.vip(2)),
    )
    .arg("--http2-prior-knowledge")
    .header("content-type: application/grpc")
    .header("te: trailers")
    .arg("--data-binary")
    .arg("x")
    .send()?;
    assert_eq!(
        (dead.status, dead.header("grpc-status")),
        (200, Some("14")),
        "{dead:?}"
    );
    Ok(())
}

#[test]
fn websocket_passes_and_is_refused_where_it_is_off() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Scene::new()?;
    let (_server, port) = Python::websocket_server(&scene.server)?;
    let off = "{match: {prefix: /off}, route: {cluster: app, upgrade_configs: [{upgrade_type: websocket, enabled: false}]}}";
    let config = Config::default()
        .enrol(&scene.client, "")
        .http("web", scene.vip(1), "OUTBOUND", &format!("{off}, {ALL}"))
        .cluster("app", &[scene.upstream(port)]);
    let _agent = MeshAgent::start(&scene.testbed, &config.yaml())?;
    let told: Value = Python::websocket_client(&scene.client, &format!("ws://{}/", scene.vip(1)))?;
    let expected =
        json!({ "text": "hello", "binary": true, "ping": true, "close": [4001, "as you wish"] });
    assert_eq!(told, expected);
    let told: Value =
        Python::websocket_client(&scene.client, &format!("ws://{}/off", scene.vip(1)))?;
    assert_eq!(told, json!({ "refused": 403 }));
    Ok(())
}

#[test]
fn either_version_of_http_reaches_either() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::new()?;
    let app = Server::http(&scene.server, "app", "v1", 0)?;
    let config = Config::default()
        .enrol(&scene.client, "")
        .http(
            "one",
            scene.vip(1),
            "OUTBOUND",
            "{match: {prefix: /}, route: {cluster: one}}",
        )
        .http(
            "two",
            scene.vip(2),
            "OUTBOUND",
            "{match: {prefix: /}, route: {cluster: two}}",
        )
        .cluster("one", &[app.addr4()])
        .cluster_with("two", &[app.addr4()], HTTP2);
    let _agent = MeshAgent::start(&scene.testbed, &config.yaml())?;
    for (client, flag) in [("1.1", "--http1.1"), ("2", "--http2-prior-knowledge")] {
        for (vip, upstream) in [(1, "HTTP/1.1"), (2, "HTTP/2.0")] {
            let url = format!("http://{}/a?b=c", scene.vip(vip));
            let body = "x".repeat(200_000);
            let response = Curl::get(&scene.client, &url)
                .arg(flag)
                .arg("--data-raw")
                .arg(&body[..100_000])
                .send()?;
            let echo = response.echo()?;
            assert_eq!(response.version, client, "{response:?}");
            assert_eq!(echo.protocol, upstream);
            assert_eq!((echo.path.as_str(), echo.body_length), ("/a?b=c", 100_000));
            assert_eq!(
                echo.authority.as_deref(),
                Some(scene.vip(vip).ip().to_string().as_str())
            );
        }
    }
    Ok(())
}

#[test]
fn load_generators_see_no_failed_request() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::new()?;
    let _nginx = Nginx::start(&scene.server, "nginx", 8080)?;
    let config = Config::default()
        .enrol(&scene.client, "")
        .http("web", scene.vip(1), "OUTBOUND", ALL)
        .cluster("app", &[scene.upstream(8080)]);
    let agent = MeshAgent::start(&scene.testbed, &config.yaml())?;
    let url = format!("http://{}/", scene.vip(1));
    for args in [
        &["--h1", "-n", "4000", "-c", "16"][..],
        &["-n", "4000", "-c", "4", "-m", "10"],
    ] {
        let output = scene.client.command("h2load").args(args).arg(&url).output();
        let output = output.context("h2load is missing; type: apt-get install nghttp2-client")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains("4000 succeeded, 0 failed, 0 errored"),
            "{args:?}: {text}"
        );
    }
    let output = scene
        .client
        .command("wrk")
        .args(["-c", "16", "-t", "1", "-d", "1", &url])
        .output();
    let output = output.context("wrk is missing; type: apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("Requests/sec")
            && !text.contains("Non-2xx")
            && !text.contains("Socket errors"),
        "{text}"
    );
    // Connections to the upstream were kept: no more than there were requests at a time, on each
    // worker.
    let metrics = agent.get("/stats/prometheus")?.body;
    let connections: u64 = metrics
        .lines()
        .filter(|line| line.contains("upstream_cx_total") && line.contains("app"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    ensure!(
        (1..400).contains(&connections),
        "{connections} upstream connections"
    );
    Ok(())
}
