//! HBONE between two pods of the agent: nothing of a STRICT pair is sent in the clear.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::{Connect, Curl, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::json;

use common::capture::Capture;
use common::hbone::{CLIENT, Certificates, WEB, allow, hcm, inbound, outbound, tcp, vip, workload};
use common::traffic::Traffic;
use common::{cluster_stat, metric};

const PATIENCE: Duration = Duration::from_secs(20);

struct Scene {
    agent: MeshAgent,
    client: Pod,
    plain: Pod,
    web: Server,
    raw: Server,
    _pod: Pod,
    _ca: Certificates,
    testbed: Testbed,
}

impl Scene {
    /// `identity` is who the client wants the server to be, `allowed` whom its rules let in.
    fn start(identity: Option<&str>, allowed: &[&str], flags: &[&str]) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, pod) = (testbed.pod("client")?, testbed.pod("web")?);
        let plain = testbed.pod("plain")?;
        let web = Server::http(&pod, "web", "v1", 0)?;
        let raw = Server::tcp(&pod, "raw", 0)?;
        let (web_at, raw_at) = (vip(&testbed, 80), vip(&testbed, 700));
        let http = outbound("web", web_at, &hcm("web"), web.addr4(), identity);
        let bytes = outbound("raw", raw_at, &tcp("raw"), raw.addr4(), identity);
        let v6 = std::net::SocketAddr::new(testbed.vip6(1).into(), 80);
        let six = outbound("six", v6, &hcm("six"), web.addr6(), identity);
        let (inside, own) = inbound(web.port(), &[allow(allowed)]);
        let config = json!({
            "workloads": [workload(&client, "client"), workload(&pod, "web")],
            "static_resources": {
                "listeners": [http.0, bytes.0, six.0, inside],
                "clusters": [http.1, bytes.1, six.1, own],
            },
        });
        let ca = Certificates::new()?;
        let mut builder = MeshAgent::builder(&testbed)?.arg("--ca").arg(ca.flag());
        for flag in flags {
            builder = builder.arg(flag);
        }
        let agent = builder.start(&config.to_string())?;
        eventually("certificates are here", PATIENCE, || {
            metric(&agent, "mesh_certificates_issued_total").is_ok_and(|issued| issued >= 2)
        })?;
        Ok(Self {
            agent,
            client,
            plain,
            web,
            raw,
            _pod: pod,
            _ca: ca,
            testbed,
        })
    }
}

#[test]
fn http_and_tcp_pass_through_tunnels_and_nothing_is_sent_in_the_clear() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start(Some(WEB), &[CLIENT], &[])?;
    let at = vip(&scene.testbed, 80);
    let captured = Capture::start(&scene.client)?;
    for at in [at, (scene.testbed.vip6(1), 80).into()] {
        let echo = Curl::get(&scene.client, &format!("http://{at}/secret-path"))
            .header("x-secret: spoken-in-private")
            .send()?
            .echo()?;
        assert_eq!((&*echo.path, &*echo.name), ("/secret-path", "web"));
        let told = echo.header("x-forwarded-client-cert").unwrap_or_default();
        ensure!(
            told.starts_with(&format!("By={WEB};Hash="))
                && told.ends_with(&format!("URI={CLIENT}")),
            "x-forwarded-client-cert: {told}"
        );
    }
    let raw = vip(&scene.testbed, 700);
    let talked = Connect::to(raw)
        .option("--send", "spoken-in-private")
        .flag("--until-close")
        .run_one(&scene.client)?;
    ensure!(
        talked.received.contains("\"name\":\"raw\"")
            && talked.received.contains("spoken-in-private"),
        "{talked:?}"
    );
    ensure!(
        talked.received.contains("127.0.0.6:"),
        "not Istio's source address: {talked:?}"
    );
    let bytes = captured.end()?;
    ensure!(bytes.len() > 2000, "only {} bytes captured", bytes.len());
    for secret in [
        "secret-path",
        "spoken-in-private",
        "HTTP/1.1",
        "\"name\":\"raw\"",
    ] {
        ensure!(
            !bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes()),
            "{secret:?} was seen between the pods"
        );
    }
    // One tunnel of a family carries everything.
    ensure!(metric(&scene.agent, "mesh_hbone_upstream_tunnels_total")? <= 4);
    ensure!(metric(&scene.agent, "mesh_hbone_downstream_streams_granted_total")? >= 3);
    // Nobody is served without.
    for at in [
        scene.web.addr4(),
        scene.raw.addr4(),
        (scene.web.addr4().ip(), 15008).into(),
    ] {
        let refused = Curl::get(&scene.plain, &format!("http://{at}/")).send()?;
        ensure!(
            refused.status == 0,
            "plaintext was served at {at}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn whoever_the_rules_deny_is_refused_and_told_why() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start(Some(WEB), &["spiffe://cluster.local/ns/shop/sa/other"], &[])?;
    let refused = Connect::to(vip(&scene.testbed, 700)).run_one(&scene.client)?;
    ensure!(refused.received.is_empty(), "{refused:?}");
    assert_eq!(
        metric(&scene.agent, "mesh_hbone_downstream_streams_denied_total")?,
        1
    );
    ensure!(cluster_stat(&scene.agent, "raw", "upstream_cx_connect_fail")? >= 1);
    let log = scene.agent.log();
    ensure!(
        log.contains("AuthorizationPolicy") && log.contains("401"),
        "the log does not say why:\n{log}"
    );
    Ok(())
}

#[test]
fn a_server_of_another_name_is_not_spoken_to() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start(
        Some("spiffe://cluster.local/ns/shop/sa/other"),
        &[CLIENT],
        &[],
    )?;
    let at = vip(&scene.testbed, 80);
    let response = Curl::get(&scene.client, &format!("http://{at}/")).send()?;
    assert_eq!(response.status, 503);
    ensure!(
        scene.agent.log().contains(WEB),
        "the log does not say who it was"
    );
    Ok(())
}

#[test]
fn tunnels_follow_certificates_under_load_without_a_failed_request() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start(None, &[CLIENT], &["--cert-ttl", "2s"])?;
    let at = vip(&scene.testbed, 80);
    eventually("the client is served", PATIENCE, || {
        let response = Curl::get(&scene.client, &format!("http://{at}/")).send();
        response.is_ok_and(|response| response.status == 200)
    })?;
    let before = metric(&scene.agent, "mesh_hbone_upstream_tunnels_total")?;
    let traffic = Traffic::start(&scene.client, at)?;
    let issued = metric(&scene.agent, "mesh_certificates_issued_total")?;
    eventually("each was renewed four times", PATIENCE, || {
        metric(&scene.agent, "mesh_certificates_issued_total").is_ok_and(|now| now >= issued + 8)
    })?;
    traffic.end()?;
    let made = metric(&scene.agent, "mesh_hbone_upstream_tunnels_total")? - before;
    ensure!(made >= 2, "tunnels were not made anew: {made}");
    eventually(
        "the tunnels of old certificates are closed",
        PATIENCE,
        || metric(&scene.agent, "mesh_hbone_upstream_tunnels_active").is_ok_and(|open| open <= 4),
    )?;
    Ok(())
}
