//! What istiod sends a sidecar, shape by shape: that it sends it here, that none of it is refused,
//! and that what it describes is served.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Curl, Istiod, MeshAgent, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::metric;

const PATIENCE: Duration = Duration::from_secs(30);

fn networking(kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

/// A service with one endpoint that speaks Istio's mutual TLS, in a locality.
fn service(name: &str, vip: SocketAddr, protocol: &str, endpoint: SocketAddr) -> Value {
    let port = protocol.to_ascii_lowercase();
    networking(
        "ServiceEntry",
        name,
        &json!({ "hosts": [format!("{name}.default.svc.cluster.local")],
            "addresses": [vip.ip()], "location": "MESH_INTERNAL", "resolution": "STATIC",
            "ports": [{ "number": vip.port(), "name": port, "protocol": protocol }],
            "endpoints": [{ "address": endpoint.ip(), "ports": { port: endpoint.port() },
                "locality": "north/a/1", "serviceAccount": "web",
                "labels": { "app": name, "version": "v1", "security.istio.io/tlsMode": "istio" } }] }),
    )
}

/// Everything of one field of `/config_dump`.
fn dumped(agent: &MeshAgent, list: &str) -> Result<Vec<Value>> {
    let dump: Value = serde_json::from_str(&agent.get("/config_dump?include_eds")?.body)?;
    let configs = dump["configs"].as_array().context("no configs")?;
    let lists = configs.iter().filter_map(|config| config[list].as_array());
    Ok(lists.flatten().cloned().collect())
}

fn named<'a>(all: &'a [Value], name: &str) -> Result<&'a Value> {
    all.iter().find(|one| one["name"] == name).with_context(|| {
        let names: Vec<&Value> = all.iter().map(|one| &one["name"]).collect();
        format!("{name} is not among {names:?}")
    })
}

/// Whether a value with this key, and this text in it, is anywhere below.
fn has(value: &Value, key: &str, text: &str) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            (name == key && value.to_string().contains(text)) || has(value, key, text)
        }),
        Value::Array(all) => all.iter().any(|value| has(value, key, text)),
        _ => false,
    }
}

#[test]
fn every_shape_of_a_sidecars_configuration_is_understood() -> Result<()> {
    needs_root!(Ok(()));
    if Istiod::program().is_none() {
        mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, web) = (testbed.pod("client")?, testbed.pod("web")?);
    let server = Server::http(&web, "web", "v1", 0)?;
    let at = |number: u8, port: u16| SocketAddr::new(testbed.vip4(number).into(), port);
    let to = server.addr4();
    let sni = networking(
        "VirtualService",
        "secure",
        &json!({ "hosts": ["secure.default.svc.cluster.local"], "tls": [{
            "match": [{ "port": 443, "sniHosts": ["secure.default.svc.cluster.local"] }],
            "route": [{ "destination": { "host": "secure.default.svc.cluster.local" } }] }] }),
    );
    let subsets = networking(
        "DestinationRule",
        "plain",
        &json!({ "host": "plain.default.svc.cluster.local",
            "trafficPolicy": { "outlierDetection": { "consecutive5xxErrors": 9 } },
            "subsets": [{ "name": "v1", "labels": { "version": "v1" } }] }),
    );
    let istiod = Istiod::start(
        testbed.pod("istiod")?,
        &json!({ "trustDomain": "cluster.local", "rootNamespace": "istio-system" }),
        &[
            ("plain", &[service("plain", at(1, 80), "HTTP", to), subsets]),
            ("stream", &[service("stream", at(2, 700), "TCP", to)]),
            ("secure", &[service("secure", at(3, 443), "TLS", to), sni]),
        ],
    )?;
    let workload = |pod: &mesh_testbed::Pod, account: &str| {
        json!({ "name": pod.name(), "namespace": "default", "service_account": account,
            "labels": { "app": pod.name() }, "netns": pod.netns_path() })
    };
    let ca = tempfile::tempdir()?;
    let agent = MeshAgent::builder(&testbed)?
        .arg("--xds")
        .arg(istiod.xds())
        .arg("--xds-scope")
        .arg("workload")
        .arg("--ca")
        .arg(format!("dev:{}", ca.path().display()))
        .start(
            &json!({ "workloads": [workload(&client, "client"), workload(&web, "web")] })
                .to_string(),
        )?;
    // Through an HTTP listener, mutual TLS and the inbound listener; and through a TCP one.
    for service in [at(1, 80), at(2, 700)] {
        eventually(&format!("{service} is served"), PATIENCE, || {
            let response = Curl::get(&client, &format!("http://{service}/")).send();
            response.is_ok_and(|response| response.status == 200)
        })
        .with_context(|| agent.log())?;
    }

    let listeners: Vec<Value> = dumped(&agent, "dynamic_listeners")?
        .into_iter()
        .map(|one| one["active_state"]["listener"].clone())
        .collect();
    let outbound = named(&listeners, "virtualOutbound")?;
    ensure!(outbound["use_original_dst"] == true, "{outbound:#}");
    ensure!(
        has(outbound, "cluster", "PassthroughCluster"),
        "{outbound:#}"
    );
    let inbound = named(&listeners, "virtualInbound")?;
    for filter in ["original_dst", "tls_inspector", "http_inspector"] {
        let name = format!("envoy.filters.listener.{filter}");
        ensure!(
            has(&inbound["listener_filters"], "name", &name),
            "{name}: {inbound:#}"
        );
    }
    for (criterion, value) in [
        ("destination_port", ""),
        ("transport_protocol", "tls"),
        ("transport_protocol", "raw_buffer"),
        ("application_protocols", "istio"),
        ("application_protocols", "http/1.1"),
    ] {
        ensure!(
            has(&inbound["filter_chains"], criterion, value),
            "no chain by {criterion}={value}: {inbound:#}"
        );
    }
    let stream = named(&listeners, &format!("{}_700", testbed.vip4(2)))?;
    ensure!(stream["bind_to_port"] == false, "{stream:#}");
    // A listener of a port for whatever host the request names.
    let any = named(&listeners, "0.0.0.0_80")?;
    ensure!(any["bind_to_port"] == false, "{any:#}");
    ensure!(has(any, "route_config_name", "80"), "{any:#}");
    ensure!(
        has(
            &Value::Array(listeners.clone()),
            "server_names",
            "secure.default"
        ),
        "no chain is chosen by SNI"
    );

    let clusters: Vec<Value> = dumped(&agent, "dynamic_active_clusters")?
        .into_iter()
        .map(|one| one["cluster"].clone())
        .collect();
    let passthrough = named(&clusters, "PassthroughCluster")?;
    ensure!(passthrough["type"] == "ORIGINAL_DST", "{passthrough:#}");
    named(&clusters, "BlackHoleCluster")?;
    named(&clusters, "InboundPassthroughCluster")?;
    let subset = named(&clusters, "outbound|80|v1|plain.default.svc.cluster.local")?;
    ensure!(
        has(subset, "transport_socket_matches", "tlsMode-istio"),
        "{subset:#}"
    );
    let endpoints = dumped(&agent, "dynamic_endpoint_configs")?;
    ensure!(
        has(&Value::Array(endpoints.clone()), "region", "north"),
        "no endpoint has a locality: {endpoints:#?}"
    );
    for kind in ["CDS", "EDS", "LDS", "RDS"] {
        let name = format!("mesh_xds_rejected_total{{type=\"{kind}\"}}");
        ensure!(
            metric(&agent, &name)? == 0,
            "{kind} was refused:\n{}",
            agent.log()
        );
    }
    Ok(())
}
