//! Mutual TLS between pods, their certificates from the agent's own authority.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::{
    Connect, Curl, MeshAgent, Pod, Response, Server, Testbed, eventually, needs_root,
};
use serde_json::{Value, json};

use common::capture::Capture;
use common::metric;

const PATIENCE: Duration = Duration::from_secs(15);
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// What istiod sends for both sides, with the names a peer must have.
fn context(side: &str, alpn: &[&str], names: &Value) -> Value {
    let mut context = json!({
        "@type": format!("{TLS}.{side}TlsContext"),
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "default" }],
            "combined_validation_context": {
                "default_validation_context": { "match_subject_alt_names": names },
                "validation_context_sds_secret_config": { "name": "ROOTCA" },
            },
            "alpn_protocols": alpn,
        },
    });
    if side == "Downstream" {
        context["require_client_certificate"] = json!(true);
    } else {
        context["sni"] = json!("outbound_.80_._.web.default.svc.cluster.local");
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

fn hcm(cluster: &str) -> Value {
    let mode = if cluster == "inbound" {
        "SANITIZE_SET"
    } else {
        "SANITIZE"
    };
    json!({ "name": "http", "typed_config": {
        "forward_client_cert_details": mode,
        "set_current_client_cert_details": { "subject": true, "dns": true, "uri": true },
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h",
        "route_config": { "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
    } })
}

fn tcp(cluster: &str) -> Value {
    json!({ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": cluster } })
}

fn socket(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip(), "port_value": at.port() } })
}

struct Scene {
    agent: MeshAgent,
    web: SocketAddr,
    raw: SocketAddr,
    server: Server,
    client: Pod,
    plain: Pod,
    _pod: Pod,
    _ca: tempfile::TempDir,
    _testbed: Testbed,
}

/// Which name the client asks the server to have.
fn config(scene: &Testbed, client: &Pod, pod: &Pod, server: SocketAddr, name: &str) -> Value {
    let (web, raw) = (vip(scene, 80), vip(scene, 700));
    let names = json!([{ "exact": name }]);
    let cluster = |name: &str, alpn: &[&str]| {
        json!({ "name": name, "connect_timeout": "2s",
            "transport_socket": context("Upstream", alpn, &names),
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": socket(server) } }] }] } })
    };
    let trusted = json!([{ "prefix": "spiffe://cluster.local/" }]);
    json!({
        // What is said on the way is looked at, so there is to be one; and what is encrypted never goes
        // on without the agent, whatever is said here.
        "mesh": { "short_circuit": false, "failure_mode_allow": true },
        "workloads": [
            { "name": "client", "namespace": "shop", "service_account": "client",
                "netns": client.netns_path() },
            { "name": "web", "namespace": "shop", "service_account": "web",
                "netns": pod.netns_path() },
        ],
        "static_resources": {
            "listeners": [
                { "name": "web", "traffic_direction": "OUTBOUND", "address": socket(web),
                    "filter_chains": [{ "filters": [hcm("web")] }] },
                { "name": "raw", "traffic_direction": "OUTBOUND", "address": socket(raw),
                    "filter_chains": [{ "filters": [tcp("raw")] }] },
                { "name": "virtualInbound", "traffic_direction": "INBOUND",
                    "address": socket(([0, 0, 0, 0], 15006).into()),
                    "listener_filters": [{ "name": "tls", "typed_config": { "@type":
                        "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }],
                    "filter_chains": [
                        { "name": "http",
                            "filter_chain_match": { "transport_protocol": "tls",
                                "application_protocols": ["istio-http/1.1", "istio-h2"] },
                            "filters": [hcm("inbound")],
                            "transport_socket": context("Downstream", &["h2", "http/1.1"], &trusted) },
                        { "name": "tcp",
                            "filter_chain_match": { "transport_protocol": "tls",
                                "application_protocols": ["istio", "istio-peer-exchange"] },
                            "filters": [tcp("inbound")],
                            "transport_socket": context("Downstream", &["istio-peer-exchange", "h2"], &trusted) },
                    ] },
            ],
            "clusters": [
                cluster("web", &["istio-http/1.1", "istio", "http/1.1"]),
                cluster("raw", &["istio-peer-exchange", "istio"]),
                { "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
                    "upstream_bind_config": { "source_address": { "address": "127.0.0.6", "port_value": 0 } } },
            ],
        },
    })
}

/// A TCP service behind mutual TLS, to which one identity has access.
fn ruled(scene: &Testbed, client: &Pod, pod: &Pod, echo: SocketAddr, who: &str) -> Value {
    let mut config = config(scene, client, pod, echo, WEB);
    let rules = json!({ "name": "rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
        "stat_prefix": "r",
        "rules": { "action": "ALLOW", "policies": { "p": {
            "permissions": [{ "any": true }],
            "principals": [{ "authenticated": { "principal_name": {
                "exact": format!("spiffe://cluster.local/ns/shop/sa/{who}") } } }],
        } } },
    } });
    let chain = &mut config["static_resources"]["listeners"][2]["filter_chains"][1];
    chain["filters"] = json!([rules, tcp("inbound")]);
    config
}

fn vip(testbed: &Testbed, port: u16) -> SocketAddr {
    SocketAddr::new(testbed.vip4(1).into(), port)
}

impl Scene {
    fn start(name: &str, flags: &[&str]) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, pod) = (testbed.pod("client")?, testbed.pod("web")?);
        let plain = testbed.pod("plain")?;
        let server = Server::http(&pod, "web", "v1", 0)?;
        let ca = tempfile::tempdir()?;
        let config = config(&testbed, &client, &pod, server.addr4(), name);
        let mut builder = MeshAgent::builder(&testbed)?
            .arg("--ca")
            .arg(format!("dev:{}", ca.path().join("ca").display()));
        for flag in flags {
            builder = builder.arg(flag);
        }
        let agent = builder.start(&config.to_string())?;
        Ok(Self {
            agent,
            web: vip(&testbed, 80),
            raw: vip(&testbed, 700),
            server,
            client,
            plain,
            _pod: pod,
            _ca: ca,
            _testbed: testbed,
        })
    }

    fn get(&self, from: &Pod, at: SocketAddr) -> Result<Response> {
        Curl::get(from, &format!("http://{at}/")).send()
    }

    fn eventually_served(&self) -> Result<()> {
        eventually("the client is served", PATIENCE, || {
            self.get(&self.client, self.web)
                .is_ok_and(|response| response.status == 200)
        })
    }
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[test]
fn http_and_tcp_pass_encrypted_and_what_is_plain_is_refused() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start(WEB, &[])?;
    scene.eventually_served()?;
    let captured = Capture::start(&scene.client)?;
    let echo = Curl::get(&scene.client, &format!("http://{}/secret-path", scene.web))
        .header("x-secret: spoken-in-private")
        .header("x-forwarded-client-cert: URI=spiffe://forged")
        .send()?
        .echo()?;
    assert_eq!(echo.path, "/secret-path");
    // The application learns who called from the certificate, whatever the caller says.
    let told = echo.header("x-forwarded-client-cert").unwrap_or_default();
    let told = told.replace('\\', "");
    let uri = ";Subject=\"\";URI=spiffe://cluster.local/ns/shop/sa/client";
    ensure!(
        told.starts_with(&format!("By={WEB};Hash=")) && told.ends_with(uri),
        "x-forwarded-client-cert: {told}"
    );
    assert_eq!(echo.header("x-forwarded-proto"), Some("http"));
    assert_eq!(scene.get(&scene.client, scene.raw)?.echo()?.name, "web");
    let bytes = captured.end()?;
    ensure!(bytes.len() > 2000, "only {} bytes captured", bytes.len());
    for secret in ["secret-path", "spoken-in-private", "HTTP/1.1"] {
        ensure!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes()),
            "{secret:?} was seen between the pods"
        );
    }
    // Without a certificate nobody is served, whoever asks.
    let refused = scene.get(&scene.plain, scene.server.addr4())?;
    ensure!(refused.status == 0, "plaintext was served: {refused:?}");
    let certs: Value = serde_json::from_str(&scene.agent.get("/certs")?.body)?;
    let of = certs["certificates"].as_array().into_iter().flatten();
    let ids: Vec<&str> = of.filter_map(|one| one["identity"].as_str()).collect();
    assert_eq!(ids, ["spiffe://cluster.local/ns/shop/sa/client", WEB]);
    Ok(())
}

#[test]
fn connections_that_stand_are_reset_when_their_certificate_is_not_welcome_any_more() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("web")?);
    let echo = Server::tcp(&pod, "echo", 0)?;
    let ca = tempfile::tempdir()?;
    let config = |who| ruled(&testbed, &client, &pod, echo.addr4(), who).to_string();
    let agent = MeshAgent::builder(&testbed)?
        .arg("--ca")
        .arg(format!("dev:{}", ca.path().join("ca").display()))
        .start(&config("client"))?;
    let raw = Connect::to(vip(&testbed, 700));
    eventually("the client is served", PATIENCE, || {
        raw.run_one(&client)
            .is_ok_and(|one| common::greeted_by(&one).is_ok())
    })?;
    let mut held = raw.clone().times(3).hold(&client)?;
    assert_eq!(held.check()?.alive, 3);
    // Other rules with the same answer touch nothing.
    let mut same = ruled(&testbed, &client, &pod, echo.addr4(), "client");
    same["static_resources"]["listeners"][2]["filter_chains"][1]["name"] = json!("other");
    common::apply(&agent, &same.to_string())?;
    assert_eq!(held.check()?.alive, 3);

    common::apply(&agent, &config("somebody-else"))?;
    eventually("they are reset", PATIENCE, || {
        held.check().is_ok_and(|held| held.alive == 0)
    })?;
    assert!(common::greeted_by(&raw.run_one(&client)?).is_err());
    let log = agent.log();
    assert!(log.contains("new access rules deny it"), "{log}");
    Ok(())
}

#[test]
fn without_an_agent_nothing_goes_plain() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start(WEB, &[])?;
    scene.eventually_served()?;
    let Scene {
        agent,
        web,
        raw,
        server,
        client,
        plain,
        _pod,
        _testbed,
        ..
    } = scene;
    agent.kill()?;
    for at in [web, raw] {
        let refused = Connect::to(at).run_one(&client)?;
        assert_eq!(refused.errno, libc::ECONNREFUSED, "{refused:?}");
    }
    // STRICT: the application is not bare because its proxy is gone.
    let refused = Connect::to(server.addr4())
        .option("--send", "GET / HTTP/1.0\r\n\r\n")
        .run_one(&plain)?;
    assert_eq!(refused.errno, libc::ECONNREFUSED, "{refused:?}");
    Ok(())
}

#[test]
fn a_server_of_another_name_is_not_spoken_to() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start("spiffe://cluster.local/ns/shop/sa/other", &[])?;
    eventually("certificates are here", PATIENCE, || {
        metric(&scene.agent, "mesh_certificates_issued_total").is_ok_and(|issued| issued >= 2)
    })?;
    let response = scene.get(&scene.client, scene.web)?;
    assert_eq!(response.status, 503);
    let errors = common::cluster_stat(&scene.agent, "web", "ssl_connection_error")?;
    ensure!(errors >= 1, "the failed handshake is not counted");
    let log = scene.agent.log();
    ensure!(
        log.contains(WEB) && log.contains("another workload"),
        "the log does not say who it was:\n{log}"
    );
    Ok(())
}

#[test]
fn certificates_are_renewed_under_load_without_a_failed_request() -> Result<()> {
    needs_root!(Ok(()));
    // Each is renewed every two seconds.
    let scene = Scene::start(WEB, &["--cert-ttl", "4s"])?;
    scene.eventually_served()?;
    let traffic = common::traffic::Traffic::start(&scene.client, scene.web)?;
    let issued = metric(&scene.agent, "mesh_certificates_issued_total")?;
    let renewals = rotation_seconds() / 2;
    let patience = PATIENCE + Duration::from_secs(4 * renewals);
    eventually("each was renewed so often", patience, || {
        metric(&scene.agent, "mesh_certificates_issued_total")
            .is_ok_and(|now| now >= issued + 2 * renewals)
    })?;
    traffic.end()?;
    assert_eq!(metric(&scene.agent, "mesh_certificate_failures_total")?, 0);
    Ok(())
}

/// How long to rotate under load: `MESH_ROTATION_SECONDS`, for long runs by hand.
fn rotation_seconds() -> u64 {
    let given = std::env::var("MESH_ROTATION_SECONDS").ok();
    given.and_then(|given| given.parse().ok()).unwrap_or(8)
}
