//! What a hop makes of clients' addresses, ids and names, of what comes before and behind
//! messages, and of CONNECT, asked of Envoy and of the agent.

#[path = "common/filters.rs"]
#[expect(dead_code, reason = "shared with the tests of filters")]
mod filters;

use std::time::Duration;

use anyhow::{Result, ensure};
use filters::{all_same, envoy};
use mesh_testbed::needs_root;
use mesh_testbed::oracle::{Compared, Oracle, SeenBody, Setup};
use mesh_testbed::wire::End;
use serde_json::{Value, json};

fn to_all(cluster: &str) -> Value {
    json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": cluster } } ] }] })
}

fn start_or_change(oracle: &mut Option<Oracle>, setup: &Setup) -> Result<()> {
    match oracle {
        Some(oracle) => oracle.reconfigure(setup)?,
        None => *oracle = Some(Oracle::start(setup)?),
    }
    Ok(())
}

/// The port a client dialled differs between the two.
fn without_ports(mut compared: Compared) -> Compared {
    for seen in [&mut compared.envoy, &mut compared.agent] {
        for response in &mut seen.responses {
            if let SeenBody::Echo(asked) = &mut response.body {
                for (name, value) in &mut asked.headers {
                    if name == "x-forwarded-port" && matches!(value.as_str(), "80" | "10000") {
                        *value = "(port)".into();
                    }
                }
            }
        }
    }
    compared
}

/// `x-forwarded-*`, `x-request-id`, `x-envoy-internal`, `server` and `via` under every setting.
#[test]
fn clients_are_told_of_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let edge = || Setup::routes(to_all("a"), &["a"]).hcm("use_remote_address", json!(true));
    let inner = || Setup::routes(to_all("a"), &["a"]);
    let private = json!({ "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] });
    let setups = [
        edge(),
        edge().hcm("xff_num_trusted_hops", json!(1)),
        edge()
            .hcm("xff_num_trusted_hops", json!(2))
            .hcm("append_x_forwarded_port", json!(true)),
        edge()
            .hcm("skip_xff_append", json!(true))
            .hcm("append_x_forwarded_port", json!(true)),
        edge().hcm("preserve_external_request_id", json!(true)),
        edge().hcm("internal_address_config", private.clone()),
        inner().hcm("xff_num_trusted_hops", json!(1)),
        inner().hcm("append_x_forwarded_port", json!(true)),
        inner()
            .hcm("append_x_forwarded_port", json!(true))
            .hcm("xff_num_trusted_hops", json!(1)),
        inner()
            .hcm("internal_address_config", private)
            .hcm("always_set_request_id_in_response", json!(true)),
        inner()
            .hcm("generate_request_id", json!(false))
            .hcm("via", json!("mesh")),
        inner()
            .hcm("server_header_transformation", json!("APPEND_IF_ABSENT"))
            .hcm("server_name", json!("ours")),
        inner().hcm("server_header_transformation", json!("PASS_THROUGH")),
        inner().hcm("forward_client_cert_details", json!("ALWAYS_FORWARD_ONLY")),
        inner().hcm("forward_client_cert_details", json!("APPEND_FORWARD")),
        inner().hcm("forward_client_cert_details", json!("SANITIZE_SET")),
        inner().hcm("strip_any_host_port", json!(true)),
        inner().hcm(
            "http_protocol_options",
            json!({ "accept_http_10": true, "default_host_for_http_10": "old" }),
        ),
        inner()
            .hcm(
                "common_http_protocol_options",
                json!({ "max_headers_count": 12 }),
            )
            .hcm("max_request_headers_kb", json!(1)),
    ];
    let uuid = "3fbe6a4e-9d3c-4b1e-8a55-0c7c6f0a1b2c";
    let headers = [
        String::new(),
        "X-Forwarded-For: 1.2.3.4\r\n".into(),
        "X-Forwarded-For: 10.1.1.1\r\n".into(),
        "X-Forwarded-For: 1.2.3.4, 5.6.7.8\r\nX-Forwarded-Proto: https\r\n".into(),
        "X-Forwarded-For: 1.2.3.4,5.6.7.8,10.0.0.9\r\nX-Forwarded-Port: 7\r\n".into(),
        "X-Forwarded-For: nobody\r\n".into(),
        "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: ::1\r\n".into(),
        format!("X-Request-Id: {uuid}\r\nX-Envoy-Internal: true\r\n"),
        format!("X-Request-Id: {uuid}\r\nX-Forwarded-For: 10.1.1.1\r\nX-Envoy-Max-Retries: 2\r\n"),
        "X-Envoy-External-Address: 9.9.9.9\r\nX-Envoy-Decorator-Operation: d\r\nX-Envoy-Original-Path: /o\r\n\
         X-Envoy-Original-Host: o\r\nX-Envoy-Downstream-Service-Cluster: c\r\n\
         X-Envoy-Downstream-Service-Node: n\r\nX-Envoy-Attempt-Count: 5\r\n".into(),
        "X-Request-Id: short\r\nX-Client-Trace-Id: t\r\n".into(),
        "X-Forwarded-Client-Cert: By=a;Hash=b\r\nVia: 1.1 other\r\n".into(),
        "x-echo-header: server=theirs\r\nX-Forwarded-Host: x\r\nX-Forwarded-Proto: ftp\r\n".into(),
        "A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5\r\nF: 6\r\nG: 7\r\nH: 8\r\nI: 9\r\nJ: 0\r\nK: 1\r\nL: 2\r\nM: 3\r\n".into(),
        format!("X-Long: {}\r\n", "x".repeat(1100)),
    ];
    let mut oracle = None;
    let mut compared = Vec::new();
    for setup in &setups {
        start_or_change(&mut oracle, setup)?;
        let oracle = oracle.as_mut().expect("it was started");
        oracle.set_patience(Duration::from_secs(2));
        for headers in &headers {
            let request = format!("GET /x HTTP/1.1\r\nHost: h:80\r\n{headers}\r\n");
            compared.push(without_ports(oracle.ask(request.as_bytes())?));
        }
        for request in [
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
            "HEAD / HTTP/1.0\r\nx-echo-bytes: 9\r\n\r\n",
            "HEAD /x HTTP/1.1\r\nHost: h\r\nx-echo-bytes: 9\r\n\r\n",
        ] {
            compared.push(without_ports(oracle.ask(request.as_bytes())?));
        }
    }
    ensure!(compared.len() > 250);
    all_same(&compared)
}

fn raw(path: &str, reply: &str, headers: &str) -> String {
    let encoded: String = reply.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: h\r\nx-reply: {encoded}\r\nx-end: keep\r\n{headers}\r\n")
}

/// 100, 102 and 103 before a response, and trailers behind it.
#[test]
fn what_comes_before_and_behind_a_response_is_passed_on_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nx-a: 1\r\n\r\n";
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n";
    let retries = json!({ "retry_on": "5xx", "num_retries": 1 });
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"],
        "include_request_attempt_count": true, "routes": [
        { "match": { "prefix": "/again" }, "route": { "cluster": "raw", "retry_policy": retries } },
        { "match": { "prefix": "/echo" }, "route": { "cluster": "a" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "raw" } } ] }] });
    let mut oracle = None;
    let mut compared = Vec::new();
    for (early, trailers, upstream) in [
        (true, true, true),
        (true, false, true),
        (false, true, false),
        (false, false, false),
    ] {
        let mut setup = Setup::routes(table.clone(), &["a", "raw"])
            .hcm("proxy_100_continue", json!(early))
            .hcm(
                "http_protocol_options",
                json!({ "enable_trailers": trailers }),
            );
        for (_, fields) in &mut setup.clusters {
            *fields = json!({ "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http_protocol_options": { "enable_trailers": upstream } } } } });
        }
        start_or_change(&mut oracle, &setup)?;
        let oracle = oracle.as_mut().expect("it was started");
        oracle.set_patience(Duration::from_secs(2));
        for request in [
            raw("/", &format!("{hints}{ok}"), ""),
            raw("/", &format!("HTTP/1.1 100 Continue\r\n\r\n{ok}"), ""),
            raw("/", &format!("HTTP/1.1 102 Processing\r\n\r\n{ok}"), ""),
            raw("/", &format!("HTTP/1.1 199 Odd\r\n\r\n{ok}"), ""),
            raw("/again", &format!("{hints}HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), ""),
            raw("/again", "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", ""),
            raw("/", &format!("{chunks}x-trailer: t\r\nx-trailer: u\r\n\r\n"), ""),
            raw("/", &format!("{chunks}x-trailer: t\r\n\r\n"), "TE: trailers\r\n"),
            raw("/", &format!("{chunks}\r\n"), ""),
            "POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello".into(),
            "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-T: 1\r\n\r\n".into(),
        ] {
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    all_same(&compared)
}

/// CONNECT that ends here, that goes on, and that is not allowed.
#[test]
fn connect_is_served_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let connect = |name: &str, cluster: &str, config: Value| {
        json!({ "name": name, "match": { "connect_matcher": {}, "headers": [{ "name": "x-way", "string_match": { "exact": name } }] },
            "route": { "cluster": cluster, "timeout": "2s", "upgrade_configs": [config] } })
    };
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        connect("ends", "a", json!({ "upgrade_type": "CONNECT", "connect_config": {} })),
        connect("raw", "raw", json!({ "upgrade_type": "CONNECT" })),
        connect("off", "a", json!({ "upgrade_type": "CONNECT", "enabled": false })),
        connect("dead", "dead", json!({ "upgrade_type": "CONNECT", "connect_config": {} })),
        { "match": { "connect_matcher": {}, "headers": [{ "name": "x-way", "string_match": { "exact": "bare" } }] }, "route": { "cluster": "a" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "a" } } ] }] });
    let mut setup = Setup::routes(table, &["a", "raw"]);
    let nobody = json!({ "load_assignment": { "cluster_name": "dead", "endpoints": [{ "lb_endpoints": [
        { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9 } } } } ] }] } });
    setup.clusters.push(("dead".into(), nobody));
    let mut oracle = Oracle::start(&setup)?;
    oracle.set_patience(Duration::from_secs(2));
    let mut compared = Vec::new();
    for way in ["ends", "off", "dead", "bare", "none"] {
        let head = format!("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\nx-way: {way}\r\n\r\n");
        let inner = "GET /inside HTTP/1.1\r\nHost: inside\r\n\r\n";
        let mut said = oracle.say(&[head.as_bytes(), inner.as_bytes()], &["CONNECT", "GET"])?;
        // Which of the two depends on whether the second part had come when it was closed.
        for seen in [&mut said.envoy, &mut said.agent] {
            if seen.end == End::Reset {
                seen.end = End::Closed;
            }
        }
        compared.push(said);
    }
    for reply in [
        "HTTP/1.1 200 OK\r\nx-proxy: y\r\n\r\nbytes",
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno",
    ] {
        let request = raw("/", reply, "x-way: raw\r\n");
        let request = request.replacen("GET / HTTP", "CONNECT h:80 HTTP", 1);
        compared.push(oracle.ask(request.replacen("Host: h\r", "Host: h:80\r", 1).as_bytes())?);
    }
    all_same(&compared)
}
