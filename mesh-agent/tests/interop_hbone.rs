//! HBONE with strangers: a client and a server on Python's ssl and h2, which nobody of this
//! project wrote.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::{
    Connect, Curl, MeshAgent, Pod, Python, Server, Testbed, eventually, needs_root,
};
use serde_json::{Value, json};

use common::hbone::{
    CLIENT, Certificates, WEB, allow, hcm, inbound, outbound, tcp, vip, with, workload,
};
use common::{cluster_stat, metric};

const PATIENCE: Duration = Duration::from_secs(20);
const ELSEWHERE: &str = "spiffe://elsewhere.test/ns/shop/sa/client";

/// Whether the Python libraries are here; says so if not.
fn python() -> bool {
    let here = Python::libraries().is_some_and(|path| path.join("h2").is_dir());
    if !here {
        mesh_testbed::skipped("needs h2 (MESH_PYTHON)");
    }
    here
}

/// A pod of the agent with two applications, and a stranger beside it.
struct Served {
    agent: MeshAgent,
    stranger: Pod,
    pod: Pod,
    web: Server,
    raw: Server,
    ca: Certificates,
    _testbed: Testbed,
}

fn served_config(pod: &Pod, web: u16, rules: &[Value]) -> String {
    let (listener, cluster) = inbound(web, rules);
    let config = json!({
        "workloads": [workload(pod, "web")],
        "static_resources": { "listeners": [listener], "clusters": [cluster] },
    });
    config.to_string()
}

impl Served {
    fn start(flags: &[&str]) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (stranger, pod) = (testbed.pod("stranger")?, testbed.pod("web")?);
        let web = Server::http(&pod, "web", "v1", 0)?;
        let raw = Server::with_args(&pod, &["echo-tcp", "--no-banner", "--port", "0"])?;
        let ca = Certificates::new()?;
        let mut builder = MeshAgent::builder(&testbed)?.arg("--ca").arg(ca.flag());
        for flag in flags {
            builder = builder.arg(flag);
        }
        let agent = builder.start(&served_config(&pod, web.port(), &[allow(&[CLIENT])]))?;
        eventually("its certificate is here", PATIENCE, || {
            metric(&agent, "mesh_certificates_issued_total").is_ok_and(|issued| issued >= 1)
        })?;
        Ok(Self {
            agent,
            stranger,
            pod,
            web,
            raw,
            ca,
            _testbed: testbed,
        })
    }

    fn to(&self) -> Value {
        json!({ "to": [self.pod.ip4(), 15008] })
    }

    /// A client with a certificate of these names.
    fn client(&self, names: &[&str], more: Value) -> Result<(Python, Value)> {
        let spec = with(with(self.to(), self.ca.of(names)?), more);
        Python::hbone_client(&self.stranger, &spec)
    }

    fn metric(&self, name: &str) -> Result<u64> {
        metric(&self.agent, name)
    }
}

fn connect(name: &str, authority: impl ToString) -> Value {
    json!({ "connect": name, "authority": authority.to_string(), "headers": [
        ["baggage", "k8s.namespace.name=shop,k8s.deployment.name=stranger"],
        ["forwarded", "for=10.0.0.1;host=\"web.shop\""],
        ["traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
    ] })
}

#[test]
fn a_strangers_streams_are_served_and_every_refusal_has_its_status() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Served::start(&[])?;
    let (mut client, first) = scene.client(&[CLIENT], json!({}))?;
    assert_eq!(first["ready"], true, "{first}");

    // HTTP, on the pod's other address; the application learns who called.
    let granted = client.ask(&connect("http", scene.web.addr6()))?;
    assert_eq!(granted["status"], 200, "{granted}");
    let request = "GET /through HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    client.ask(&json!({ "send": "http", "text": request }))?;
    let answer = client.ask(&json!({ "receive": "http" }))?;
    let text = answer["text"].as_str().unwrap_or_default();
    ensure!(
        text.starts_with("HTTP/1.1 200 OK") && text.contains("/through"),
        "{text}"
    );
    ensure!(text.contains(CLIENT) && answer["ended"] == true, "{answer}");

    // Bytes both ways; the client ends its side first, the application answers to the end.
    let granted = client.ask(&connect("raw", scene.raw.addr4()))?;
    assert_eq!(granted["status"], 200, "{granted}");
    client.ask(&json!({ "send": "raw", "text": "0123456789", "times": 200_000, "end": true }))?;
    let answer = client.ask(&json!({ "receive": "raw" }))?;
    assert_eq!(
        (&answer["length"], &answer["ended"]),
        (&json!(2_000_000), &json!(true))
    );

    // A chatty stream: tens of thousands of frames of one byte are no attack.
    client.ask(&connect("chat", scene.raw.addr4()))?;
    client.ask(&json!({ "send": "chat", "text": "x", "times": 30_000, "frame": 1 }))?;
    let answer = client.ask(&json!({ "receive": "chat", "bytes": 30_000 }))?;
    assert_eq!(answer["length"], 30_000, "{answer}");
    assert_eq!(client.ask(&json!({ "ping": 1 }))?["pong"], true);

    // A reset stream resets the application's connection, and no other one.
    client.ask(&json!({ "reset": "chat" }))?;
    eventually("its connection is gone", PATIENCE, || {
        scene
            .metric("mesh_hbone_downstream_streams_active")
            .is_ok_and(|active| active == 0)
    })?;

    let pod = scene.pod.ip4();
    for (authority, status) in [
        (format!("{}:80", scene.stranger.ip4()), 400),
        ("127.0.0.1:80".to_owned(), 400),
        ("no-port".to_owned(), 400),
        (format!("{pod}:15006"), 503),
        (format!("{pod}:15008"), 503),
        ("web.shop.svc.cluster.local:80".to_owned(), 503),
        // Nobody listens there.
        (format!("{pod}:9"), 503),
    ] {
        let answer = client.ask(&connect("refused", &authority))?;
        assert_eq!(answer["status"], status, "{authority}: {answer}");
    }
    let other = json!({ "connect": "get", "method": "GET", "authority": scene.web.addr4().to_string(),
        "headers": [[":scheme", "http"], [":path", "/"]] });
    assert_eq!(client.ask(&other)?["status"], 400);

    // Another workload of the mesh may make tunnels, and is denied by the rules for this port.
    let (mut other, first) =
        scene.client(&["spiffe://cluster.local/ns/shop/sa/other"], json!({}))?;
    assert_eq!(first["ready"], true, "{first}");
    let denied = other.ask(&connect("denied", scene.raw.addr4()))?;
    assert_eq!(denied["status"], 401, "{denied}");
    assert_eq!(
        scene.metric("mesh_hbone_downstream_streams_denied_total")?,
        1
    );
    assert_eq!(
        scene.metric("mesh_hbone_downstream_streams_bad_request_total")?,
        4
    );
    assert_eq!(
        scene.metric("mesh_hbone_downstream_streams_unavailable_total")?,
        4
    );
    assert_eq!(scene.metric("mesh_panics_total").unwrap_or(0), 0);
    Ok(())
}

#[test]
fn clients_that_are_not_of_the_mesh_are_refused_and_counted() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Served::start(&[])?;
    let foreign = tempfile::tempdir()?;
    mesh_agent::identity::DevAuthority::open(&foreign.path().join("ca"))?;
    let theirs = scene.ca.signed(&foreign.path().join("ca"), &[CLIENT])?;
    let nobody = json!({ "ca": scene.ca.folder().join("ca.crt") });
    let ours = |names: &[&str]| scene.ca.of(names);
    let cases = [
        (
            "TLS 1.2",
            with(ours(&[CLIENT])?, json!({ "most": "TLSv1_2" })),
        ),
        (
            "TLS 1.1",
            with(ours(&[CLIENT])?, json!({ "most": "TLSv1_1" })),
        ),
        ("no certificate", nobody),
        ("another authority", theirs),
        ("another trust domain", ours(&[ELSEWHERE])?),
        ("two identities", ours(&[CLIENT, ELSEWHERE])?),
        ("no identity", ours(&[])?),
        (
            "another protocol",
            with(ours(&[CLIENT])?, json!({ "alpn": ["http/1.1"] })),
        ),
        ("no protocol", with(ours(&[CLIENT])?, json!({ "alpn": [] }))),
        ("no TLS", json!({ "plain": true })),
    ];
    let before = scene.metric("envoy_listener_ssl_connection_error")?;
    let count = cases.len() as u64;
    for (what, spec) in cases {
        let (_client, first) = Python::hbone_client(&scene.stranger, &with(scene.to(), spec))?;
        ensure!(first["ready"] != true, "{what}: served: {first}");
    }
    // Garbage in place of a ClientHello.
    let at: SocketAddr = (scene.pod.ip4(), 15008).into();
    Connect::to(at)
        .option("--send", "\u{16}\u{3}\u{1}garbage that is no ClientHello")
        .run_one(&scene.stranger)?;
    eventually("every one was counted", PATIENCE, || {
        scene
            .metric("envoy_listener_ssl_connection_error")
            .is_ok_and(|errors| errors > before + count)
    })?;
    assert_eq!(scene.metric("mesh_hbone_downstream_streams_total")?, 0);
    let (mut client, _) = scene.client(&[CLIENT], json!({}))?;
    assert_eq!(
        client.ask(&connect("raw", scene.raw.addr4()))?["status"],
        200
    );
    Ok(())
}

#[test]
fn floods_end_their_own_tunnel_and_nothing_else() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Served::start(&[])?;
    let (mut good, _) = scene.client(&[CLIENT], json!({}))?;
    assert_eq!(good.ask(&connect("raw", scene.raw.addr4()))?["status"], 200);
    // Slow handshakes by the thousand.
    let at: SocketAddr = (scene.pod.ip4(), 15008).into();
    let slow = Connect::to(at)
        .times(3000)
        .flag("--no-read")
        .hold(&scene.stranger)?;
    ensure!(
        slow.connections.iter().all(|one| one.connected),
        "refused too early"
    );
    good.ask(&json!({ "send": "raw", "text": "still here" }))?;
    let answer = good.ask(&json!({ "receive": "raw", "bytes": 10 }))?;
    assert_eq!(answer["text"], "still here", "{answer}");
    let memory = scene.agent.memory()?;
    ensure!(memory < 400 << 20, "{memory} bytes");

    let raw = scene.raw.addr4().to_string();
    let authority = &*raw;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &str| {
        format!(
            "{:06x}{kind:02x}{flags:02x}{stream:08x}{payload}",
            payload.len() / 2
        )
    };
    let name = "61".repeat(4000);
    // A literal header field with a name and a value of 4000 bytes each (RFC 7541, 6.2.2).
    let field = format!("007fa11e{name}7fa11e{name}");
    let attacks: [(&str, Vec<Value>); 4] = [
        (
            "rapid reset",
            vec![json!({ "resets": 3000, "authority": authority })],
        ),
        (
            "CONTINUATION flood",
            vec![
                json!({ "raw": frame(1, 0, 1, "") }),
                json!({ "raw": frame(9, 0, 1, &field), "times": 500 }),
            ],
        ),
        (
            "header bomb",
            vec![json!({ "connect": "bomb", "authority": authority,
                "headers": (0..40).map(|n| json!([format!("x-{n}"), "y".repeat(1000)])).collect::<Vec<_>>() })],
        ),
        (
            "SETTINGS flood",
            vec![json!({ "raw": frame(4, 0, 0, ""), "times": 50_000 })],
        ),
    ];
    for (what, steps) in attacks {
        let (mut bad, first) = scene.client(&[CLIENT], json!({}))?;
        assert_eq!(first["ready"], true, "{what}: {first}");
        let mut last = json!(null);
        for step in &steps {
            last = bad.ask(step)?;
        }
        if what == "header bomb" {
            ensure!(last["status"] != 200, "{what}: {last}");
        } else if what != "SETTINGS flood" {
            let end = bad.ask(&json!({ "wait": 1 }))?;
            ensure!(
                end["closed"] == true
                    || end["goaway"] != Value::Null
                    || end["error"] != Value::Null,
                "{what}: goes on: {end}"
            );
        }
        drop(bad);
        good.ask(&json!({ "send": "raw", "text": "and here" }))?;
        let answer = good.ask(&json!({ "receive": "raw", "bytes": 18 }))?;
        ensure!(
            answer["length"].as_u64().is_some_and(|length| length >= 18),
            "{what}: {answer}"
        );
    }
    ensure!(scene.metric("mesh_hbone_downstream_protocol_error_total")? >= 2);
    let memory = scene.agent.memory()?;
    ensure!(memory < 400 << 20, "{memory} bytes");
    Ok(())
}

#[test]
fn new_rules_end_the_streams_that_they_deny_and_no_others() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Served::start(&[])?;
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    let rules = |names: &[&str]| served_config(&scene.pod, scene.web.port(), &[allow(names)]);
    common::apply(&scene.agent, &rules(&[CLIENT, other]))?;
    let (mut stays, _) = scene.client(&[CLIENT], json!({}))?;
    let (mut goes, _) = scene.client(&[other], json!({}))?;
    for client in [&mut stays, &mut goes] {
        let granted = client.ask(&connect("raw", scene.raw.addr4()))?;
        assert_eq!(granted["status"], 200, "{granted}");
        client.ask(&json!({ "send": "raw", "text": "before" }))?;
        assert_eq!(
            client.ask(&json!({ "receive": "raw", "bytes": 6 }))?["text"],
            "before"
        );
    }
    common::apply(&scene.agent, &rules(&[CLIENT]))?;
    let ended = goes.ask(&json!({ "receive": "raw" }))?;
    ensure!(ended["reset"] != Value::Null, "the stream goes on: {ended}");
    let again = goes.ask(&connect("again", scene.raw.addr4()))?;
    assert_eq!(again["status"], 401, "{again}");
    stays.ask(&json!({ "send": "raw", "text": "after!" }))?;
    assert_eq!(
        stays.ask(&json!({ "receive": "raw", "bytes": 12 }))?["text"],
        "beforeafter!"
    );
    assert_eq!(
        scene.metric("mesh_hbone_downstream_streams_revoked_total")?,
        1
    );
    Ok(())
}

#[test]
fn tunnels_are_told_to_end_when_certificates_change_and_when_the_agent_leaves() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let scene = Served::start(&["--cert-ttl", "6s"])?;
    let (mut client, _) = scene.client(&[CLIENT], json!({}))?;
    assert_eq!(
        client.ask(&connect("raw", scene.raw.addr4()))?["status"],
        200
    );
    let told = client.ask(&json!({ "goaway": 1 }))?;
    assert_eq!(
        (&told["goaway"], &told["closed"]),
        (&json!(0), &json!(false)),
        "{told}"
    );
    // The stream goes on.
    client.ask(&json!({ "send": "raw", "text": "to the end", "end": true }))?;
    let answer = client.ask(&json!({ "receive": "raw" }))?;
    assert_eq!(
        (&answer["text"], &answer["ended"]),
        (&json!("to the end"), &json!(true))
    );
    Ok(())
}

/// A pod of the agent that calls, and a server of a stranger.
struct Calling {
    agent: MeshAgent,
    client: Pod,
    server: Python,
    web: SocketAddr,
    raw: SocketAddr,
    refused: [SocketAddr; 2],
    _applications: [Server; 2],
    _ca: Certificates,
    _testbed: Testbed,
    _stranger: Pod,
}

impl Calling {
    fn start(server_is: &str) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, stranger) = (testbed.pod("client")?, testbed.pod("stranger")?);
        let web = Server::http(&stranger, "web", "v1", 0)?;
        let raw = Server::tcp(&stranger, "raw", 0)?;
        let at = |port| vip(&testbed, port);
        let endpoint = |port: u16| SocketAddr::new(stranger.ip4().into(), port);
        let services = [
            outbound("web", at(80), &hcm("web"), web.addr4(), Some(WEB)),
            outbound("raw", at(700), &tcp("raw"), raw.addr4(), Some(WEB)),
            outbound("denied", at(401), &tcp("denied"), endpoint(401), Some(WEB)),
            outbound(
                "unavailable",
                at(503),
                &tcp("unavailable"),
                endpoint(503),
                Some(WEB),
            ),
        ];
        let (listeners, clusters): (Vec<_>, Vec<_>) = services.into_iter().unzip();
        let config = json!({
            "workloads": [with(workload(&client, "client"), json!({ "labels": { "app": "shop-client" } }))],
            "static_resources": { "listeners": listeners, "clusters": clusters },
        });
        let ca = Certificates::new()?;
        let agent = MeshAgent::builder(&testbed)?
            .arg("--ca")
            .arg(ca.flag())
            .start(&config.to_string())?;
        eventually("its certificate is here", PATIENCE, || {
            metric(&agent, "mesh_certificates_issued_total").is_ok_and(|issued| issued >= 1)
        })?;
        let answers = json!({ "answers": { "401": 401, "503": 503 } });
        let server = Python::hbone_server(&stranger, &with(ca.of(&[server_is])?, answers))?;
        Ok(Self {
            agent,
            server,
            web: at(80),
            raw: at(700),
            refused: [at(401), at(503)],
            client,
            _applications: [web, raw],
            _ca: ca,
            _testbed: testbed,
            _stranger: stranger,
        })
    }

    /// Requests that the server saw.
    fn seen(&mut self) -> Result<Vec<Value>> {
        let told = self.server.ask(&json!({}))?;
        Ok(told["seen"].as_array().cloned().unwrap_or_default())
    }
}

#[test]
fn a_strangers_server_is_spoken_to_as_ztunnel_would() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let mut scene = Calling::start(WEB)?;
    for n in 0..20 {
        let url = format!("http://{}/{n}", scene.web);
        let echo = Curl::get(&scene.client, &url).send()?.echo()?;
        assert_eq!((&*echo.name, &*echo.path), ("web", &*format!("/{n}")));
    }
    let talked = Connect::to(scene.raw)
        .option("--send", "hello")
        .flag("--until-close")
        .run_one(&scene.client)?;
    ensure!(
        talked.banner().is_some() && talked.received.ends_with("hello"),
        "{talked:?}"
    );
    let many = Connect::to(scene.raw).times(150).hold(&scene.client)?;
    let greeted = many.connections.iter().filter(|one| one.banner().is_some());
    assert_eq!(greeted.count(), 150);
    // No more than a hundred share a tunnel.
    let tunnels = scene.server.ask(&json!({}))?["tunnels"]
        .as_u64()
        .unwrap_or_default();
    ensure!((2..=8).contains(&tunnels), "{tunnels} tunnels");
    drop(many);
    let seen = scene.seen()?;
    let request = &seen[0];
    assert_eq!(request["uris"], json!([CLIENT]));
    assert_eq!(
        (&request["version"], &request["alpn"]),
        (&json!("TLSv1.3"), &json!("h2"))
    );
    let headers = &request["headers"];
    assert_eq!(headers[":method"], "CONNECT");
    ensure!(
        headers.get(":path").is_none() && headers.get(":scheme").is_none(),
        "{headers}"
    );
    let baggage = headers["baggage"].as_str().unwrap_or_default();
    ensure!(
        baggage.contains("k8s.namespace.name=shop") && baggage.contains("service.name=shop-client"),
        "{baggage}"
    );
    let forwarded = format!("for={}", scene.client.ip4());
    assert_eq!(headers["forwarded"], forwarded);
    ensure!(
        headers["traceparent"]
            .as_str()
            .is_some_and(|one| one.len() == 55),
        "{headers}"
    );

    // The far side's answers are told apart.
    for at in scene.refused {
        let refused = Connect::to(at).run_one(&scene.client)?;
        ensure!(refused.received.is_empty(), "{refused:?}");
    }
    let log = scene.agent.log();
    for told in ["AuthorizationPolicy", "does it listen on that port"] {
        ensure!(log.contains(told), "the log does not say {told:?}:\n{log}");
    }
    ensure!(cluster_stat(&scene.agent, "denied", "upstream_cx_connect_fail")? >= 1);

    // Tunnels that were told to end take no more streams, and nobody notices.
    let before = scene.server.ask(&json!({ "goaway": 1 }))?["tunnels"].as_u64();
    let url = format!("http://{}/after", scene.web);
    let echo = Curl::get(&scene.client, &url).send()?.echo()?;
    assert_eq!(echo.path, "/after");
    let talked = Connect::to(scene.raw).run_one(&scene.client)?;
    ensure!(talked.banner().is_some(), "{talked:?}");
    ensure!(scene.server.ask(&json!({}))?["tunnels"].as_u64() > before);
    Ok(())
}

#[test]
fn a_strangers_server_of_another_name_gets_no_request() -> Result<()> {
    needs_root!(Ok(()));
    if !python() {
        return Ok(());
    }
    let mut scene = Calling::start("spiffe://cluster.local/ns/shop/sa/other")?;
    let response = Curl::get(&scene.client, &format!("http://{}/", scene.web)).send()?;
    assert_eq!(response.status, 503);
    let seen = scene.seen()?;
    ensure!(
        seen.iter().all(|one| one.get("headers").is_none()),
        "{seen:?}"
    );
    Ok(())
}
