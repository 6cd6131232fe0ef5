//! Active health checks, made by Envoy and by the agent: the same endpoints are well.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::oracle::{Oracle, Setup};
use mesh_testbed::{Envoy, eventually, needs_root};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a page of `/clusters` says of the endpoints of the checked clusters.
fn flags(page: &str, clusters: &[String]) -> Vec<(String, String)> {
    let mut flags: Vec<(String, String)> = page
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once("::")?;
            let (_, flags) = rest.split_once("::health_flags::")?;
            let wanted = clusters.iter().any(|cluster| cluster == name);
            wanted.then(|| (name.to_owned(), flags.trim().to_owned()))
        })
        .collect();
    flags.sort();
    flags
}

fn check(probe: Value) -> Value {
    let mut check = json!({
        "timeout": "2s",
        "interval": "0.1s",
        "no_traffic_interval": "0.1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 2,
    });
    for (name, value) in probe.as_object().into_iter().flatten() {
        check[name] = value.clone();
    }
    check
}

fn http(header: &str, value: &str, fields: Value) -> Value {
    let mut probe = json!({
        "path": "/healthz",
        "request_headers_to_add": [{ "header": { "key": header, "value": value } }],
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        probe[name] = value.clone();
    }
    check(json!({ "http_health_check": probe }))
}

#[test]
fn endpoints_are_as_well_as_envoy_finds_them() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let start = Setup::routes(
        json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": "a" } } ] }] }),
        &["a"],
    );
    let mut oracle = Oracle::start(&start)?;
    let at = oracle.upstream("a").context("an upstream")?;
    let text = |text: &str| -> String { text.bytes().map(|byte| format!("{byte:02x}")).collect() };
    let request = text("GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n");
    let tcp = |receive: &str| {
        check(json!({ "tcp_health_check": {
            "send": { "text": request }, "receive": [{ "text": text("HTTP/1.1 200") }, { "text": text(receive) }] },
            "timeout": "0.3s" }))
    };
    // Cluster, port, check, whether requests are served.
    let closed = 9;
    let checks: Vec<(&str, u16, Value, bool)> = vec![
        ("well", at.port(), http("x-y", "z", json!({})), true),
        (
            "post",
            at.port(),
            http("x-y", "z", json!({ "method": "POST" })),
            true,
        ),
        (
            "unwell",
            at.port(),
            http("x-echo-status", "503", json!({})),
            false,
        ),
        (
            "moved",
            at.port(),
            http("x-echo-status", "301", json!({})),
            false,
        ),
        (
            "teapot",
            at.port(),
            http(
                "x-echo-status",
                "418",
                json!({ "expected_statuses": [{ "start": 418, "end": 419 }] }),
            ),
            true,
        ),
        (
            "retriable",
            at.port(),
            http(
                "x-echo-status",
                "500",
                json!({ "retriable_statuses": [{ "start": 500, "end": 501 }] }),
            ),
            false,
        ),
        (
            "degraded",
            at.port(),
            http("x-echo-header", "x-envoy-degraded=1", json!({})),
            true,
        ),
        (
            "http2",
            at.port(),
            http("x-y", "z", json!({ "codec_client_type": "HTTP2" })),
            true,
        ),
        (
            "late",
            at.port(),
            {
                let mut late = http("x-echo-delay-ms", "2000", json!({}));
                late["timeout"] = json!("0.1s");
                late
            },
            false,
        ),
        ("nobody", closed, http("x-y", "z", json!({})), false),
        (
            "connects",
            at.port(),
            check(json!({ "tcp_health_check": {} })),
            true,
        ),
        (
            "refuses",
            closed,
            check(json!({ "tcp_health_check": {} })),
            false,
        ),
        ("says", at.port(), tcp("application/json"), true),
        ("hides", at.port(), tcp("nothing of the kind"), false),
        (
            "grpc",
            at.port(),
            check(json!({ "grpc_health_check": { "service_name": "s" } })),
            true,
        ),
        ("elsewhere", at.port(), http("x-y", "z", json!({})), false),
        ("alone", closed, http("x-y", "z", json!({})), true),
    ];
    let routes: Vec<Value> = checks
        .iter()
        .map(|(name, ..)| {
            json!({ "match": { "path": format!("/{name}") }, "route": { "cluster": name, "timeout": "0s" } })
        })
        .collect();
    let mut setup = Setup::routes(
        json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] }),
        &["a"],
    );
    let http2 = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} } } });
    for (name, port, check, _) in &checks {
        let mut endpoint = json!({ "address": { "socket_address": { "address": at.ip().to_string(), "port_value": port } } });
        if *name == "elsewhere" {
            endpoint["health_check_config"] = json!({ "port_value": closed });
        }
        if *name == "alone" {
            endpoint["health_check_config"] = json!({ "disable_active_health_check": true });
        }
        let mut cluster = json!({
            "health_checks": [check],
            "common_lb_config": { "healthy_panic_threshold": { "value": 0 } },
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": endpoint }] }] },
        });
        if matches!(*name, "grpc" | "http2") {
            cluster["typed_extension_protocol_options"] = http2.clone();
        }
        setup.clusters.push(((*name).into(), cluster));
    }
    oracle.reconfigure(&setup)?;
    let names: Vec<String> = checks.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let seen = |oracle: &Oracle| -> Result<[Vec<(String, String)>; 2]> {
        Ok([
            flags(&oracle.envoys_page("/clusters")?.body, &names),
            flags(&oracle.agent.get("/clusters")?.body, &names),
        ])
    };
    let settled = eventually("both have checked every endpoint", PATIENCE, || {
        seen(&oracle).is_ok_and(|[envoy, agent]| envoy.len() == names.len() && envoy == agent)
    });
    let [envoy, agent] = seen(&oracle)?;
    ensure!(
        settled.is_ok(),
        "Envoy finds {envoy:?}\nthe agent {agent:?}"
    );
    for (name, _, _, served) in &checks {
        let request = format!("GET /{name} HTTP/1.1\r\nHost: h\r\n\r\n");
        let compared = oracle.ask(request.as_bytes())?;
        let status = compared.agent.responses.first().map(|one| one.status);
        ensure!(compared.same(), "{compared}");
        let expected = if *name == "alone" { false } else { *served };
        ensure!(
            (status == Some(200)) == expected,
            "{name} is answered by {status:?}"
        );
    }
    Ok(())
}
