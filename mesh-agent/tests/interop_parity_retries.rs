//! What is asked again, how often and of whom, asked of Envoy and of the agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::oracle::{Compared, Oracle, Setup};
use mesh_testbed::{Envoy, needs_root};
use serde_json::{Value, json};

/// Whether Envoy is here to be asked; says so if not.
fn envoy() -> bool {
    let here = Envoy::program().is_some();
    if !here {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
    }
    here
}

fn all_same(compared: &[Compared]) -> Result<()> {
    let different: Vec<String> = compared
        .iter()
        .filter(|compared| !compared.same())
        .map(ToString::to_string)
        .collect();
    ensure!(
        different.is_empty(),
        "{} of {} differ from Envoy:\n{}",
        different.len(),
        compared.len(),
        different.join("\n")
    );
    Ok(())
}

/// Routes by path, each to its cluster with its action's fields; upstream and client are told
/// the number of attempts.
fn setup(routes: &[(&str, &str, Value)], clusters: &[&str]) -> Setup {
    let routes: Vec<Value> = routes
        .iter()
        .map(|(path, cluster, fields)| {
            let mut route = fields.clone();
            route["cluster"] = json!(cluster);
            json!({ "match": { "path": path }, "route": route })
        })
        .collect();
    let table = json!({ "virtual_hosts": [{
        "name": "v",
        "domains": ["*"],
        "routes": routes,
        "include_request_attempt_count": true,
        "include_attempt_count_in_response": true,
        "include_is_timeout_retry_header": true,
    }] });
    Setup::routes(table, clusters)
        // Clients of this address are trusted to steer retries by headers.
        .hcm(
            "internal_address_config",
            json!({ "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] }),
        )
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
}

fn through(setup: &Setup, requests: &[String]) -> Result<Oracle> {
    let mut oracle = Oracle::start(setup)?;
    oracle.set_patience(Duration::from_secs(5));
    let compared = requests
        .iter()
        .map(|request| oracle.ask(request.as_bytes()))
        .collect::<Result<Vec<_>>>()?;
    all_same(&compared)?;
    Ok(oracle)
}

fn policy(on: &str, fields: Value) -> Value {
    let mut policy = json!({
        "retry_on": on,
        "num_retries": 2,
        "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" },
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        policy[name] = value.clone();
    }
    // Without a timeout an upstream is not told how much of it is left.
    json!({ "retry_policy": policy, "timeout": "0s" })
}

/// Every condition against every kind of response.
#[test]
fn responses_are_retried_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let conditions = [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
        "http3-post-connect-failure",
        "nonsense",
        "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "5xx,cancelled, gateway-error",
    ];
    let mut routes: Vec<(String, Value)> = conditions
        .iter()
        .enumerate()
        .map(|(i, on)| (format!("/on/{i}"), policy(on, json!({}))))
        .collect();
    routes.push((
        "/codes".into(),
        policy(
            "retriable-status-codes",
            json!({ "retriable_status_codes": [418, 503, 200] }),
        ),
    ));
    routes.push((
        "/headers".into(),
        policy(
            "retriable-headers",
            json!({ "retriable_headers": [
            { "name": "x-again", "string_match": { "prefix": "y" } },
            { "name": ":status", "string_match": { "exact": "404" } },
        ] }),
        ),
    ));
    routes.push((
        "/requests".into(),
        policy(
            "5xx",
            json!({ "retriable_request_headers": [
            { "name": ":method", "string_match": { "exact": "GET" } },
            { "name": "x-safe", "present_match": true },
        ] }),
        ),
    ));
    routes.push(("/none".into(), policy("5xx", json!({ "num_retries": 0 }))));
    routes.push(("/five".into(), policy("5xx", json!({ "num_retries": 5 }))));
    routes.push(("/bare".into(), json!({})));
    let table: Vec<(&str, &str, Value)> = routes
        .iter()
        .map(|(path, fields)| (path.as_str(), "a", fields.clone()))
        .collect();
    let mut requests = Vec::new();
    let answers = [
        "x-echo-status: 503,200",
        "x-echo-status: 500,502,504",
        "x-echo-status: 503",
        "x-echo-status: 409,200",
        "x-echo-status: 418,200",
        "x-echo-status: 429,200",
        "x-echo-status: 404",
        "x-echo-status: 503,200\r\nx-echo-header: x-envoy-ratelimited=true,a=b",
        "x-echo-header: grpc-status=1,a=b",
        "x-echo-header: grpc-status=4,a=b",
        "x-echo-header: grpc-status=8,a=b",
        "x-echo-header: grpc-status=13,a=b",
        "x-echo-header: grpc-status=14,a=b",
        "x-echo-header: grpc-status=5,a=b",
        "x-echo-header: x-again=yes,a=b",
        "x-echo-header: x-again=no,a=b",
    ];
    for (path, _) in &routes {
        for answer in answers {
            requests.push(get(path, &format!("{answer}\r\n")));
        }
    }
    for path in ["/five", "/requests", "/bare"] {
        for body in ["", "hello", &"x".repeat(100_000)] {
            requests.push(post(path, "x-echo-status: 503,503,200\r\n", body));
            requests.push(post(path, "x-echo-status: 503,200\r\nx-safe: 1\r\n", body));
        }
        let chunked = "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
        requests.push(format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nx-echo-status: 503,200\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
        ));
    }
    through(&setup(&table, &["a"]), &requests)?;
    Ok(())
}

/// What trusted clients may ask for, and others may not.
#[test]
fn headers_steer_retries_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let table = [
        ("/bare", "a", json!({ "timeout": "0s" })),
        (
            "/policy",
            "a",
            policy("gateway-error", json!({ "per_try_timeout": "0.4s" })),
        ),
    ];
    let trusted = "x-forwarded-for: 10.1.2.3\r\n";
    let mut requests = Vec::new();
    for (path, ..) in &table {
        for who in [
            trusted,
            "x-forwarded-for: 11.1.2.3\r\n",
            "x-forwarded-for: 10.1.2.3, 10.1.2.4\r\n",
            "",
        ] {
            for headers in [
                "x-echo-status: 500,200\r\nx-envoy-retry-on: 5xx\r\n",
                "x-echo-status: 503\r\nx-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 4\r\n",
                "x-echo-status: 503\r\nx-envoy-max-retries: 0\r\n",
                "x-echo-status: 418,200\r\nx-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 418, 419\r\n",
                "x-echo-header: x-again=1,a=b\r\nx-envoy-retry-on: retriable-headers\r\nx-envoy-retriable-header-names: x-again\r\n",
                "x-echo-header: grpc-status=14,a=b\r\nx-envoy-retry-grpc-on: unavailable\r\n",
                "x-echo-delay-ms: 800\r\nx-envoy-upstream-rq-timeout-ms: 100\r\n",
                "x-echo-delay-ms: 800\r\nx-envoy-upstream-rq-timeout-ms: 100\r\nx-envoy-upstream-rq-timeout-alt-response: 1\r\n",
                "x-echo-delay-ms: 900,0\r\nx-envoy-upstream-rq-per-try-timeout-ms: 400\r\nx-envoy-retry-on: 5xx\r\n",
                "x-echo-delay-ms: 50\r\nx-envoy-upstream-rq-timeout-ms: 0\r\n",
            ] {
                requests.push(get(path, &format!("{who}{headers}")));
            }
        }
    }
    through(&setup(&table, &["a"]), &requests)?;
    Ok(())
}

/// Upstreams that break off, are silent or are not there.
#[test]
fn failures_are_retried_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let conditions = [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "refused-stream",
        "retriable-4xx",
    ];
    let mut routes: Vec<(String, &str, Value)> = Vec::new();
    for (i, on) in conditions.iter().enumerate() {
        routes.push((format!("/raw/{i}"), "raw", policy(on, json!({}))));
        routes.push((format!("/dead/{i}"), "dead", policy(on, json!({}))));
        let slow = policy(on, json!({ "per_try_timeout": "0.12s" }));
        routes.push((format!("/slow/{i}"), "a", slow));
    }
    let idle = policy("5xx", json!({ "per_try_idle_timeout": "0.12s" }));
    routes.push(("/idle".into(), "a", idle));
    let mut short = policy(
        "5xx",
        json!({ "num_retries": 9, "per_try_timeout": "0.15s" }),
    );
    short["timeout"] = json!("0.4s");
    routes.push(("/short".into(), "a", short));
    let table: Vec<(&str, &str, Value)> = routes
        .iter()
        .map(|(path, cluster, fields)| (path.as_str(), *cluster, fields.clone()))
        .collect();
    let mut setup = setup(&table, &["a", "raw"]);
    let nobody = json!({ "load_assignment": { "cluster_name": "dead", "endpoints": [{ "lb_endpoints": [
        { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9 } } } } ] }] } });
    setup.clusters.push(("dead".into(), nobody));
    let encoded =
        |reply: &str| -> String { reply.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    let ok = encoded("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
    let broken = encoded("HTTP/1.1 nonsense\r\n\r\n");
    let mut requests = Vec::new();
    for i in 0..conditions.len() {
        let raw = format!("/raw/{i}");
        for headers in [
            format!("x-end-1: reset\r\nx-end: keep\r\nx-reply-2: {ok}\r\n"),
            format!("x-end-1: close\r\nx-end: keep\r\nx-reply-2: {ok}\r\n"),
            format!("x-reply-1: {broken}\r\nx-end: keep\r\nx-reply-2: {ok}\r\n"),
            "x-end: close\r\n".to_owned(),
        ] {
            requests.push(get(&raw, &headers));
        }
        requests.push(post(
            &raw,
            &format!("x-end-1: close\r\nx-end: keep\r\nx-reply-2: {ok}\r\n"),
            "hello",
        ));
        requests.push(get(&format!("/dead/{i}"), ""));
        requests.push(get(&format!("/slow/{i}"), "x-echo-delay-ms: 500,0\r\n"));
        requests.push(get(&format!("/slow/{i}"), "x-echo-delay-ms: 500\r\n"));
    }
    requests.push(get("/idle", "x-echo-delay-ms: 500,0\r\n"));
    requests.push(get("/short", "x-echo-delay-ms: 500\r\n"));
    through(&setup, &requests)?;
    Ok(())
}

/// The longest life of a stream, and a gRPC client's own deadline.
#[test]
fn stream_durations_are_held_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let table = [
        ("/all", "a", json!({ "timeout": "0s" })),
        (
            "/route",
            "a",
            json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": "0.1s" } }),
        ),
        (
            "/never",
            "a",
            json!({ "timeout": "0s", "max_stream_duration": { "max_stream_duration": "0s", "grpc_timeout_header_max": "0s" } }),
        ),
        (
            "/grpc",
            "a",
            json!({ "timeout": "0s", "max_stream_duration": {
            "grpc_timeout_header_max": "0.2s", "grpc_timeout_header_offset": "0.01s" } }),
        ),
        (
            "/both",
            "a",
            json!({ "timeout": "0.1s", "max_stream_duration": { "max_stream_duration": "0.4s" } }),
        ),
    ];
    let setup = setup(&table, &["a"]).hcm(
        "common_http_protocol_options",
        json!({ "max_stream_duration": "0.3s" }),
    );
    let mut requests = Vec::new();
    for (path, ..) in &table {
        for headers in [
            "x-echo-delay-ms: 600\r\n",
            "x-echo-delay-ms: 600\r\ngrpc-timeout: 50m\r\n",
            "x-echo-delay-ms: 600\r\ngrpc-timeout: 9S\r\ncontent-type: application/grpc\r\n",
            "grpc-timeout: 1S\r\n",
            "grpc-timeout: nonsense\r\n",
        ] {
            requests.push(get(path, headers));
        }
    }
    through(&setup, &requests)?;
    Ok(())
}
