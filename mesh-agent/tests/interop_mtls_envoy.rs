//! Istio's mutual TLS with Envoy as the sidecar on the other side, one authority for both.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{
    Ca, Connect, Curl, Envoy, Issued, MeshAgent, Pod, Server, Testbed, eventually, needs_root,
};
use serde_json::{Value, json};

use common::metric;
use common::tls::{self, by_secrets, context, hcm, socket, tcp};

const PATIENCE: Duration = Duration::from_secs(20);
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const HTTP2: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn has_envoy() -> bool {
    let has = Envoy::program().is_some();
    if !has {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
    }
    has
}

/// Certificates in files, for Envoy.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn put(&self, name: &str, text: &str) -> Result<Value> {
        let path = self.0.path().join(name);
        fs::write(&path, text)?;
        Ok(json!({ "filename": path }))
    }

    /// A context's certificate and trust.
    fn common(&self, name: &str, issued: &Issued, roots: &str, names: &Value) -> Result<Value> {
        Ok(json!({
            "tls_certificates": [{
                "certificate_chain": self.put(&format!("{name}.crt"), &issued.chain)?,
                "private_key": self.put(&format!("{name}.key"), &issued.key)? }],
            "validation_context": {
                "trusted_ca": self.put(&format!("{name}.roots"), roots)?,
                "match_typed_subject_alt_names": names },
        }))
    }

    /// An authority for `--ca dev:`.
    fn authority(&self, ca: &Ca) -> Result<PathBuf> {
        let folder = self.0.path().join("authority");
        fs::create_dir(&folder)?;
        fs::write(folder.join("ca.crt"), ca.pem())?;
        fs::write(folder.join("ca.key"), ca.key_pem())?;
        Ok(folder)
    }
}

fn uri(matcher: Value) -> Value {
    json!([{ "san_type": "URI", "matcher": matcher }])
}

fn cluster(name: &str, to: SocketAddr, transport: Option<Value>, http2: bool) -> Value {
    let protocol = if http2 {
        "http2_protocol_options"
    } else {
        "http_protocol_options"
    };
    let mut cluster = json!({ "name": name, "connect_timeout": "5s", "type": "STATIC",
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": HTTP2, "common_http_protocol_options": { "max_requests_per_connection": 1 },
            "explicit_http_config": { protocol: {} } } },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": socket(to) } }] }] } });
    if let Some(transport) = transport {
        cluster["transport_socket"] = transport;
    }
    cluster
}

fn listener(name: &str, at: SocketAddr, filter: Value) -> Value {
    json!({ "name": name, "traffic_direction": "OUTBOUND", "address": socket(at),
        "filter_chains": [{ "filters": [filter] }] })
}

/// The status, and who the server is told the client is.
fn ask(from: &Pod, at: SocketAddr) -> (u16, String) {
    let Ok(response) = Curl::get(from, &format!("http://{at}/")).send() else {
        return (0, String::new());
    };
    let told = response.echo().ok().and_then(|echo| {
        let told = echo.header("x-forwarded-client-cert")?;
        Some(told.rsplit_once("URI=")?.1.to_owned())
    });
    (response.status, told.unwrap_or_default())
}

/// The agent's context, as istiod writes it.
fn own(protocols: &[&str], name: &str) -> Value {
    let mut common = json!({
        "tls_certificate_sds_secret_configs": [{ "name": "default" }],
        "combined_validation_context": {
            "default_validation_context": { "match_typed_subject_alt_names": uri(json!({ "exact": name })) },
            "validation_context_sds_secret_config": { "name": "ROOTCA" } },
    });
    common["alpn_protocols"] = json!(protocols);
    context("Upstream", &common)
}

#[test]
fn envoy_as_the_servers_sidecar() -> Result<()> {
    needs_root!(Ok(()));
    if !has_envoy() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, web) = (testbed.pod("client")?, testbed.pod("web")?);
    let server = Server::http(&web, "web", "v1", 0)?;
    let raw = Server::tcp(&web, "raw", 0)?;
    let (files, ca, other) = (Files::new()?, Ca::new("mesh")?, Ca::new("other")?);
    let trusted = uri(json!({ "prefix": "spiffe://cluster.local/" }));
    let sides = [
        ("right", ca.issue(&[WEB])?),
        ("expired", ca.issue_expired(&[WEB])?),
        ("foreign", other.issue(&[WEB])?),
        // Envoy will not show one without any name: this one has a common name only.
        (
            "nameless",
            ca.issue_with(&[], |params| {
                let name = &mut params.distinguished_name;
                name.push(rcgen::DnType::CommonName, "web");
            })?,
        ),
    ];
    // Each on a port of its own, with the chains of Istio's inbound listener.
    let mut listeners = Vec::new();
    for (i, (name, issued)) in sides.iter().enumerate() {
        let at = SocketAddr::from(([0, 0, 0, 0], 20000 + i as u16));
        let common = files.common(name, issued, ca.pem(), &trusted)?;
        let chain = |kind: &str, offered: &[&str], taken: &[&str], filter: Value| {
            let mut common = common.clone();
            common["alpn_protocols"] = json!(taken);
            json!({ "name": kind, "filters": [filter],
                "filter_chain_match": { "transport_protocol": "tls", "application_protocols": offered },
                "transport_socket": context("Downstream", &common) })
        };
        listeners.push(json!({ "name": name, "address": socket(at),
            "listener_filters": [{ "name": "tls", "typed_config": { "@type":
                "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }],
            "filter_chains": [
                chain("http", &["istio-http/1.0", "istio-http/1.1", "istio-h2"], &["h2", "http/1.1"], hcm("inbound")),
                chain("tcp", &["istio", "istio-peer-exchange"], &["istio-peer-exchange", "h2", "http/1.1"], tcp("raw")),
            ] }));
    }
    let resources = json!({ "listeners": listeners, "clusters": [
        cluster("inbound", server.addr4(), None, false),
        cluster("raw", raw.addr4(), None, false) ] });
    let _envoy = Envoy::start(&web, &format!("static_resources: {resources}"), 19000)?;
    let there = |port: u16| SocketAddr::new(web.ip4().into(), port);
    let http = ["istio-http/1.1", "istio", "http/1.1"];
    let cases = [
        ("http1", 20000, own(&http, WEB), false),
        ("http2", 20000, own(&["istio-h2", "istio", "h2"], WEB), true),
        ("expired", 20001, own(&http, WEB), false),
        ("foreign", 20002, own(&http, WEB), false),
        ("nameless", 20003, own(&http, WEB), false),
        (
            "misnamed",
            20000,
            own(&http, "spiffe://cluster.local/ns/shop/sa/api"),
            false,
        ),
        (
            "tcp",
            20000,
            own(&["istio-peer-exchange", "istio"], WEB),
            false,
        ),
    ];
    let vip = |i: usize| tls::vip(&testbed, 81 + i as u16);
    let mut outbound = Vec::new();
    let mut clusters = Vec::new();
    for (i, (name, port, transport, http2)) in cases.iter().enumerate() {
        let filter = if *name == "tcp" { tcp(name) } else { hcm(name) };
        outbound.push(listener(name, vip(i), filter));
        clusters.push(cluster(name, there(*port), Some(transport.clone()), *http2));
    }
    let agent = MeshAgent::builder(&testbed)?
        .arg("--ca")
        .arg(format!("dev:{}", files.authority(&ca)?.display()))
        .start(
            &json!({ "workloads": tls::workloads(&[&client]),
                "static_resources": { "listeners": outbound, "clusters": clusters } })
            .to_string(),
        )?;
    for i in [0, 1] {
        eventually(&format!("{} is served", cases[i].0), PATIENCE, || {
            ask(&client, vip(i)) == (200, CLIENT.to_owned())
        })
        .with_context(|| format!("{:?}\n{}", ask(&client, vip(i)), agent.log()))?;
    }
    // Again, with the session of before.
    assert_eq!(ask(&client, vip(0)), (200, CLIENT.to_owned()));
    ensure!(
        common::cluster_stat(&agent, "http1", "ssl_session_reused")? >= 1,
        "no session is resumed"
    );
    for (i, stat) in [
        (2, "ssl_fail_verify_error"),
        (3, "ssl_fail_verify_error"),
        (4, "ssl_fail_verify_san"),
        (5, "ssl_fail_verify_san"),
    ] {
        let name = cases[i].0;
        assert_eq!(ask(&client, vip(i)).0, 503, "{name}");
        ensure!(
            common::cluster_stat(&agent, name, stat)? >= 1,
            "{name}: no {stat}"
        );
    }
    let log = agent.log();
    for part in [
        WEB,
        CLIENT,
        "Expired",
        "UnknownIssuer",
        "no name at all",
        "another workload",
    ] {
        ensure!(log.contains(part), "{part:?} is not in the log:\n{log}");
    }
    let mut standing = Connect::to(vip(6)).hold(&client)?;
    ensure!(
        standing.check()?.alive == 1,
        "{:?}\n{}",
        standing.connections,
        agent.log()
    );
    Ok(())
}

#[test]
fn envoy_as_the_clients_sidecar() -> Result<()> {
    needs_root!(Ok(()));
    if !has_envoy() {
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, web) = (testbed.pod("client")?, testbed.pod("web")?);
    let server = Server::http(&web, "web", "v1", 0)?;
    let (files, ca, other) = (Files::new()?, Ca::new("mesh")?, Ca::new("other")?);
    let common = by_secrets("default", "ROOTCA", &Value::Null);
    let mut inbound = tls::inbound(&common);
    // As istiod writes them: what is offered and what is taken are not the same.
    let trusted = json!({
        "tls_certificate_sds_secret_configs": [{ "name": "default" }],
        "combined_validation_context": {
            "default_validation_context": { "match_subject_alt_names": [{ "prefix": "spiffe://cluster.local/" }] },
            "validation_context_sds_secret_config": { "name": "ROOTCA" } },
        "alpn_protocols": ["h2", "http/1.1"],
    });
    inbound["filter_chains"][0]["filter_chain_match"]["application_protocols"] =
        json!(["istio-http/1.0", "istio-http/1.1", "istio-h2"]);
    inbound["filter_chains"][0]["transport_socket"] = context("Downstream", &trusted);
    let agent = MeshAgent::builder(&testbed)?
        .arg("--ca")
        .arg(format!("dev:{}", files.authority(&ca)?.display()))
        .start(
            &json!({ "workloads": tls::workloads(&[&web]), "static_resources": {
                "listeners": [inbound],
                "clusters": tls::clusters(server.addr4(), server.addr4(), &common) } })
            .to_string(),
        )?;
    let http = ["istio-http/1.1", "istio", "http/1.1"];
    let h2 = ["istio-h2", "istio", "h2"];
    let web_only = uri(json!({ "exact": WEB }));
    // Its name, what it shows, whom it trusts, what it offers and asks for, and whether by HTTP/2.
    type Case<'a> = (&'a str, Issued, &'a Ca, &'a [&'a str], &'a Value, bool);
    let cases: [Case<'_>; 9] = [
        ("http1", ca.issue(&[CLIENT])?, &ca, &http, &web_only, false),
        ("http2", ca.issue(&[CLIENT])?, &ca, &h2, &web_only, true),
        (
            "expired",
            ca.issue_expired(&[CLIENT])?,
            &ca,
            &http,
            &web_only,
            false,
        ),
        (
            "foreign",
            other.issue(&[CLIENT])?,
            &ca,
            &http,
            &web_only,
            false,
        ),
        (
            "domain",
            ca.issue(&["spiffe://elsewhere/ns/shop/sa/client"])?,
            &ca,
            &http,
            &web_only,
            false,
        ),
        ("nameless", ca.issue(&[])?, &ca, &http, &web_only, false),
        (
            "several",
            ca.issue(&[CLIENT, "client.shop"])?,
            &ca,
            &http,
            &web_only,
            false,
        ),
        // What the client does not like of the server.
        (
            "distrusting",
            ca.issue(&[CLIENT])?,
            &other,
            &http,
            &web_only,
            false,
        ),
        ("plain", ca.issue(&[CLIENT])?, &ca, &http, &web_only, false),
    ];
    let at = |i: usize| SocketAddr::from(([127, 0, 0, 1], 20000 + i as u16));
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for (i, (name, issued, roots, protocols, names, http2)) in cases.iter().enumerate() {
        listeners.push(json!({ "name": name, "address": socket(at(i)),
            "filter_chains": [{ "filters": [hcm(name)] }] }));
        let transport = if *name == "plain" {
            None
        } else {
            let mut common = files.common(name, issued, roots.pem(), names)?;
            common["alpn_protocols"] = json!(protocols);
            Some(context("Upstream", &common))
        };
        clusters.push(cluster(name, server.addr4(), transport, *http2));
    }
    let resources = json!({ "listeners": listeners, "clusters": clusters });
    let _envoy = Envoy::start(&client, &format!("static_resources: {resources}"), 19000)?;
    for i in [0, 1, 6] {
        eventually(&format!("{} is served", cases[i].0), PATIENCE, || {
            let (status, told) = ask(&client, at(i));
            status == 200 && told.starts_with(CLIENT)
        })
        .with_context(|| format!("{:?}\n{}", ask(&client, at(i)), agent.log()))?;
    }
    ask(&client, at(0));
    ensure!(
        metric(&agent, "envoy_listener_ssl_session_reused")? >= 1,
        "no session is resumed"
    );
    for (i, stat) in [
        (2, "fail_verify_error"),
        (3, "fail_verify_error"),
        (4, "fail_verify_san"),
        (5, "fail_verify_san"),
        (7, "connection_error"),
    ] {
        let name = cases[i].0;
        let stat = format!("envoy_listener_ssl_{stat}");
        let before = metric(&agent, &stat)?;
        assert_eq!(ask(&client, at(i)).0, 503, "{name}");
        eventually(&format!("{name} is counted as {stat}"), PATIENCE, || {
            metric(&agent, &stat).is_ok_and(|now| now > before)
        })?;
    }
    assert_eq!(ask(&client, at(8)).0, 503, "plaintext is served");
    Ok(())
}
