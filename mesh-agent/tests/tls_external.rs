//! TLS to services outside the mesh: begun for applications that speak plain HTTP, and left alone
//! where they speak it themselves.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Ca, Curl, Issued, MeshAgent, Nginx, Pod, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::tls::{self, context, hcm, socket, tcp};

const PATIENCE: Duration = Duration::from_secs(20);
const NAME: &str = "api.example.com";

fn pair(issued: &Issued) -> Value {
    json!([{ "certificate_chain": { "inline_string": issued.chain },
        "private_key": { "inline_string": issued.key } }])
}

/// What a DestinationRule with a CA bundle and a name asks for.
fn checks(roots: &str, name: &str) -> Value {
    json!({ "trusted_ca": { "inline_string": roots },
        "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": name } }] })
}

fn cluster(name: &str, to: SocketAddr, common: Option<Value>) -> Value {
    let mut cluster = json!({ "name": name, "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": socket(to) } }] }] } });
    if let Some(common) = common {
        let mut transport = context("Upstream", &common);
        transport["typed_config"]["sni"] = json!(NAME);
        cluster["transport_socket"] = transport;
    }
    cluster
}

fn listener(name: &str, at: SocketAddr, filter: Value) -> Value {
    json!({ "name": name, "traffic_direction": "OUTBOUND", "address": socket(at),
        "filter_chains": [{ "filters": [filter] }] })
}

fn get(client: &Pod, at: SocketAddr) -> (u16, String) {
    match Curl::get(client, &format!("http://{at}/")).send() {
        Ok(response) => (response.status, response.text().trim().to_owned()),
        Err(_) => (0, String::new()),
    }
}

#[test]
fn tls_is_begun_for_applications_simple_and_mutual() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, outside) = (testbed.pod("client")?, testbed.pod("outside")?);
    let (public, other) = (Ca::new("public")?, Ca::new("other")?);
    let site = public.issue(&[NAME])?;
    let _simple = Nginx::tls(&outside, "simple", 8443, &site, None)?;
    let _mutual = Nginx::tls(&outside, "mutual", 9443, &site, Some(public.pem()))?;
    let there = |port: u16| SocketAddr::new(outside.ip4().into(), port);
    let trusted = json!({ "validation_context": checks(public.pem(), NAME) });
    let shown = |issued: &Issued| {
        let mut common = trusted.clone();
        common["tls_certificates"] = pair(issued);
        common
    };
    let cases = [
        ("simple", 8443, trusted.clone(), (200, "simple")),
        (
            "mutual",
            9443,
            shown(&public.issue(&["client.example.com"])?),
            (200, "mutual"),
        ),
        (
            "stranger",
            9443,
            shown(&other.issue(&["client.example.com"])?),
            (400, ""),
        ),
        ("nobody", 9443, trusted.clone(), (400, "")),
        (
            "distrusted",
            8443,
            json!({ "validation_context": checks(other.pem(), NAME) }),
            (503, ""),
        ),
        (
            "misnamed",
            8443,
            json!({ "validation_context": checks(public.pem(), "www.example.com") }),
            (503, ""),
        ),
        // Without a bundle everybody is believed, as by Envoy.
        ("believing", 8443, json!({}), (200, "simple")),
    ];
    let vip = |i: usize| tls::vip(&testbed, 81 + i as u16);
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for (i, (name, port, common, _)) in cases.iter().enumerate() {
        listeners.push(listener(name, vip(i), hcm(name)));
        clusters.push(cluster(name, there(*port), Some(common.clone())));
    }
    let agent = MeshAgent::start(
        &testbed,
        &json!({ "workloads": tls::workloads(&[&client]),
            "static_resources": { "listeners": listeners, "clusters": clusters } })
        .to_string(),
    )?;
    for (i, (name, _, _, (status, body))) in cases.iter().enumerate() {
        eventually(&format!("{name} is answered {status}"), PATIENCE, || {
            get(&client, vip(i)).0 == *status
        })
        .with_context(|| format!("{:?}\n{}", get(&client, vip(i)), agent.log()))?;
        let (_, text) = get(&client, vip(i));
        ensure!(body.is_empty() || text == *body, "{name}: {text}");
    }
    Ok(())
}

#[test]
fn tls_of_applications_passes_by_its_server_name() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, outside) = (testbed.pod("client")?, testbed.pod("outside")?);
    let public = Ca::new("public")?;
    let name = |who: &str| format!("{who}.example.com");
    let site = |who: &str| public.issue(&[&name(who)]);
    let _one = Nginx::tls(&outside, "one", 8443, &site("one")?, None)?;
    let _two = Nginx::tls(&outside, "two", 9443, &site("two")?, None)?;
    let there = |port: u16| SocketAddr::new(outside.ip4().into(), port);
    let at = tls::vip(&testbed, 443);
    let chain = |who: &str| {
        json!({ "filter_chain_match": { "server_names": [name(who)], "transport_protocol": "tls" },
            "filters": [tcp(who)] })
    };
    let config = json!({ "workloads": tls::workloads(&[&client]), "static_resources": {
        "listeners": [{ "name": "tls", "traffic_direction": "OUTBOUND", "address": socket(at),
            "listener_filters": [{ "name": "tls", "typed_config": { "@type":
                "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }],
            "filter_chains": [chain("one"), chain("two")] }],
        "clusters": [cluster("one", there(8443), None), cluster("two", there(9443), None)] } });
    let _agent = MeshAgent::start(&testbed, &config.to_string())?;
    let roots = tempfile::NamedTempFile::new()?;
    std::fs::write(roots.path(), public.pem())?;
    let get = |who: &str| -> Result<(u16, String)> {
        let host = name(who);
        let response = Curl::get(&client, &format!("https://{host}/"))
            .arg("--cacert")
            .arg(&roots.path().to_string_lossy())
            .arg("--resolve")
            .arg(&format!("{host}:443:{}", at.ip()))
            .send()?;
        Ok((response.status, response.text().trim().to_owned()))
    };
    for who in ["one", "two"] {
        eventually(&format!("{who} answers"), PATIENCE, || {
            get(who).is_ok_and(|answer| answer == (200, who.to_owned()))
        })
        .with_context(|| format!("{:?}", get(who)))?;
    }
    // Nobody's name: no chain, no connection.
    ensure!(get("three")?.0 == 0, "an unknown name is let through");
    Ok(())
}
