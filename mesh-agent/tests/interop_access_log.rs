//! Access logs of the same requests, written by Envoy and by the agent in the same formats.

#![recursion_limit = "256"]

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::oracle::{Oracle, Setup};
use mesh_testbed::{Envoy, eventually, needs_root};
use serde_json::{Map, Value, json};

const FILE: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// Istio's format, with braces around what Envoy and the agent cannot have in common.
const ISTIO: &str = "\"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT):5%\" \"%REQ(:AUTHORITY)%\" \
    \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Fields and what they are written as; a name that begins with `~` is only compared by type.
fn fields() -> Value {
    json!({
        "who": "%DOWNSTREAM_LOCAL_PORT%",
        "line": ISTIO.trim_end(),
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "flags_long": "%RESPONSE_FLAGS_LONG%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "protocol": "%PROTOCOL%",
        "received": "%BYTES_RECEIVED%",
        "~sent": "%BYTES_SENT%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "route": "%ROUTE_NAME%",
        "chain": "%FILTER_CHAIN_NAME%",
        "authority": "%REQ(:AUTHORITY)%",
        "scheme": "%REQ(:SCHEME)%",
        "x": "%REQ(X-NONE?X-CASE)%",
        "x_cut": "%REQ(X-CASE):3%",
        "type": "%RESP(CONTENT-TYPE)%",
        "added": "%RESP(X-ADDED?X-NONE)%",
        "grpc": "%GRPC_STATUS%",
        "grpc_number": "%GRPC_STATUS_NUMBER%",
        "grpc_snake": "%GRPC_STATUS(SNAKE_STRING)%",
        "sni": "%REQUESTED_SERVER_NAME%",
        "termination": "%CONNECTION_TERMINATION_DETAILS%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "remote_ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "upstream": "%UPSTREAM_HOST%",
        "upstream_port": "%UPSTREAM_REMOTE_PORT%",
        "~upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",
        "~upstream_local_port": "%UPSTREAM_LOCAL_PORT%",
        "~remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "~remote_port": "%DOWNSTREAM_REMOTE_PORT%",
        "~start": "%START_TIME%",
        "~day": "%START_TIME(%Y/%m/%d %H %b %3f)%",
        "~duration": "%DURATION%",
        "~request_duration": "%REQUEST_DURATION%",
        "~response_duration": "%RESPONSE_DURATION%",
        "~tx_duration": "%RESPONSE_TX_DURATION%",
        "~service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
        "type_of_log": "%ACCESS_LOG_TYPE%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "nested": { "list": ["%RESPONSE_CODE%", "%PROTOCOL% and %ROUTE_NAME%", 7, true, null], "percent": "100%%" },
    })
}

/// A log and which of its lines to write.
fn log(path: &Path, format: Value, filter: Option<Value>) -> Value {
    let mut log = json!({ "name": "envoy.access_loggers.file", "typed_config": {
        "@type": FILE, "path": path, "log_format": format,
    } });
    if let Some(filter) = filter {
        log["filter"] = filter;
    }
    log
}

fn routes() -> Value {
    let to = |path: &str, cluster: &str, more: Value| {
        let mut route = json!({ "name": format!("to{path}"), "match": { "prefix": path }, "route": { "cluster": cluster } });
        for (field, value) in more.as_object().into_iter().flatten() {
            match field.as_str() {
                "typed_per_filter_config" | "response_headers_to_add" => {
                    route[field] = value.clone()
                }
                _ => route["route"][field] = value.clone(),
            }
        }
        route
    };
    let fault = |config: Value| {
        let mut config = config;
        config["@type"] = json!(format!("{FILTERS}.fault.v3.HTTPFault"));
        json!({ "typed_per_filter_config": { "envoy.filters.http.fault": config } })
    };
    let all = json!({ "numerator": 100 });
    json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        to("/ok", "a", json!({ "response_headers_to_add": [{ "header": { "key": "x-added", "value": "yes" } }] })),
        to("/rewritten", "a", json!({ "prefix_rewrite": "/new", "host_rewrite_literal": "other" })),
        to("/raw", "raw", json!({})),
        to("/slow", "raw", json!({ "timeout": "0.2s" })),
        to("/again", "raw", json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 1,
            "retry_back_off": { "base_interval": "0.005s" } } })),
        to("/nobody", "nobody", json!({})),
        to("/closed", "closed", json!({})),
        to("/missing", "missing", json!({})),
        to("/delay", "a", fault(json!({ "delay": { "fixed_delay": "0.01s", "percentage": all } }))),
        to("/abort", "a", fault(json!({ "abort": { "http_status": 418, "percentage": all } }))),
        { "name": "said", "match": { "prefix": "/direct" }, "direct_response": { "status": 202, "body": { "inline_string": "said" } } },
        { "name": "sent", "match": { "prefix": "/elsewhere" }, "redirect": { "path_redirect": "/there" } },
        to("/denied", "a", json!({ "typed_per_filter_config": { "envoy.filters.http.rbac": {
            "@type": format!("{FILTERS}.rbac.v3.RBACPerRoute"),
            "rbac": { "rules": { "action": "DENY", "policies": { "no one": {
                "permissions": [{ "any": true }], "principals": [{ "any": true }] } } } } } } })),
        to("/limited", "a", json!({ "typed_per_filter_config": { "envoy.filters.http.local_ratelimit": {
            "@type": format!("{FILTERS}.local_ratelimit.v3.LocalRateLimit"),
            "stat_prefix": "l", "token_bucket": { "max_tokens": 1, "fill_interval": "3600s" },
            "filter_enabled": { "default_value": all }, "filter_enforced": { "default_value": all } } } })),
    ] }], "validate_clusters": false })
}

fn filters() -> Value {
    let filter = |name: &str, message: &str, config: Value| {
        let mut config = config;
        config["@type"] = json!(format!("{FILTERS}.{message}"));
        json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": config })
    };
    json!([
        filter("fault", "fault.v3.HTTPFault", json!({})),
        filter("rbac", "rbac.v3.RBAC", json!({})),
        filter(
            "local_ratelimit",
            "local_ratelimit.v3.LocalRateLimit",
            json!({ "stat_prefix": "l" })
        ),
        filter("router", "router.v3.Router", json!({})),
    ])
}

/// Bytes for the upstream to answer with.
fn answer(bytes: &str, end: &str) -> String {
    let mut encoded = String::new();
    for byte in bytes.bytes() {
        let _ = write!(encoded, "%{byte:02X}");
    }
    format!("x-reply: {encoded}\r\nx-end: {end}\r\n")
}

fn requests() -> Vec<String> {
    let mut all = Vec::new();
    let mut ask = |method: &str, path: &str, more: &str, body: &str| {
        let length = match body {
            "" => String::new(),
            body => format!("Content-Length: {}\r\n", body.len()),
        };
        all.push(format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nUser-Agent: tester\r\nX-Case: {path}\r\n{more}{length}\r\n{body}"
        ));
    };
    ask("GET", "/ok?q=1", "", "");
    ask("POST", "/ok", "", "hello");
    ask("HEAD", "/ok", "", "");
    ask("GET", "/ok", "X-Forwarded-For: 192.0.2.9\r\n", "");
    ask("GET", "/rewritten/x?y", "", "");
    ask("GET", "/nothing", "", "");
    ask("GET", "/nothing", "Content-Type: application/grpc\r\n", "");
    for path in [
        "/nobody",
        "/missing",
        "/delay",
        "/abort",
        "/direct",
        "/elsewhere",
        "/denied",
        "/limited",
        "/limited",
        "/closed",
    ] {
        ask("GET", path, "", "");
    }
    ask("POST", "/ok", "Content-Type: application/grpc\r\n", "");
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
    let error = "HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno";
    for (path, reply, end) in [
        ("/raw", ok, "keep"),
        ("/raw", error, "keep"),
        ("/raw", "", "close"),
        ("/raw", "", "reset"),
        ("/raw", "nonsense\r\n\r\n", "close"),
        (
            "/raw",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi",
            "close",
        ),
        ("/slow", "", "hang"),
        ("/again", error, "keep"),
        ("/again", "", "close"),
    ] {
        ask("GET", path, &answer(reply, end), "");
    }
    let grpc = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n";
    let more = answer(grpc, "keep");
    ask(
        "POST",
        "/raw",
        &format!("Content-Type: application/grpc\r\n{more}"),
        "",
    );
    all.push("GET /ok HTTP/9.9\r\nHost: h\r\n\r\n".into());
    all.push("GET /ok HTTP/1.1\r\nHost: h\r\nbad header\r\n\r\n".into());
    all
}

/// The lines of Envoy and of the agent, each in its order.
fn lines(path: &Path) -> Result<[Vec<Map<String, Value>>; 2]> {
    let mut both = [Vec::new(), Vec::new()];
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for line in text.lines() {
        let line: Map<String, Value> =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let envoy = line.get("who") == Some(&json!(10_000));
        both[usize::from(!envoy)].push(line);
    }
    Ok(both)
}

/// What differs by nature is compared by its type; so are digits of what is said in text.
fn masked(line: &Map<String, Value>) -> Map<String, Value> {
    let kind = |value: &Value| match value {
        Value::Null => json!("(null)"),
        Value::Number(_) => json!("(number)"),
        Value::String(text) => {
            let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
            let text: String = text.chars().map(digits).collect();
            match text.parse::<std::net::SocketAddr>() {
                Ok(_) => json!("(address)"),
                Err(_) if text.chars().all(|c| c == '0') => json!("(number)"),
                Err(_) => json!(text),
            }
        }
        other => other.clone(),
    };
    line.iter()
        .filter(|(key, _)| *key != "who")
        .map(|(key, value)| {
            let value = match key.strip_prefix('~') {
                Some("start" | "day") => {
                    let text = value.as_str().unwrap_or_default();
                    let same = |c: char| if c.is_ascii_alphanumeric() { '0' } else { c };
                    json!(text.chars().map(same).collect::<String>())
                }
                Some(_)
                    if value
                        .as_str()
                        .is_some_and(|text| text.parse::<std::net::SocketAddr>().is_ok()) =>
                {
                    json!("(address)")
                }
                Some(_) => kind(value),
                None => value.clone(),
            };
            (key.clone(), value)
        })
        .collect()
}

fn differences(requests: &[String], [envoy, agent]: &[Vec<Map<String, Value>>; 2]) -> String {
    let mut out = String::new();
    for (request, (envoy, agent)) in requests.iter().zip(envoy.iter().zip(agent)) {
        let (envoy, agent) = (masked(envoy), masked(agent));
        for key in envoy.keys() {
            let (envoy, agent) = (&envoy[key], agent.get(key).unwrap_or(&Value::Null));
            // The length of an echo tells ports.
            if envoy != agent {
                let request = request.lines().next().unwrap_or_default();
                let _ = writeln!(out, "{request}: {key}\n  envoy: {envoy}\n  agent: {agent}");
            }
        }
    }
    out
}

#[test]
fn lines_are_those_of_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let marked = |format: &str| json!({ "text_format_source": { "inline_string": format!("%DOWNSTREAM_LOCAL_PORT% {format}") } });
    let logs = json!([
        log(&at("all"), json!({ "json_format": fields() }), None),
        log(
            &at("text"),
            marked("%RESPONSE_CODE% %ROUTE_NAME% %REQ(X-NONE)%|%BYTES_RECEIVED%\n"),
            None
        ),
        log(
            &at("errors"),
            marked("%RESPONSE_CODE% %RESPONSE_FLAGS%\n"),
            Some(json!({ "or_filter": { "filters": [
            { "response_flag_filter": { "flags": ["NR", "UF", "UT"] } },
            { "and_filter": { "filters": [
                { "status_code_filter": { "comparison": { "op": "EQ", "value": { "default_value": 200, "runtime_key": "x" } } } },
                { "header_filter": { "header": { "name": ":path", "string_match": { "prefix": "/rewr" } } } },
            ] } },
            { "grpc_status_filter": { "statuses": ["NOT_FOUND"] } },
        ] } }))
        ),
    ]);
    let closed = json!({ "cluster_name": "closed", "endpoints": [{ "lb_endpoints": [{ "endpoint": {
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 1 } } } }] }] });
    let mut setup = Setup::routes(routes(), &["a", "raw"])
        .hcm("http_filters", filters())
        .hcm("access_log", logs);
    setup.clusters.push((
        "nobody".into(),
        json!({ "load_assignment": { "cluster_name": "nobody" } }),
    ));
    setup
        .clusters
        .push(("closed".into(), json!({ "load_assignment": closed })));
    let mut oracle = Oracle::start(&setup)?;
    oracle.set_patience(Duration::from_secs(3));
    let requests = requests();
    for request in &requests {
        oracle.ask(request.as_bytes())?;
    }
    let count = requests.len();
    eventually("every request is written", Duration::from_secs(20), || {
        lines(&at("all")).is_ok_and(|both| both.iter().all(|lines| lines.len() >= count))
    })
    .with_context(|| match lines(&at("all")) {
        Ok(both) => format!(
            "{} of Envoy, {} of the agent, of {count}",
            both[0].len(),
            both[1].len()
        ),
        Err(error) => error.to_string(),
    })?;
    let different = differences(&requests, &lines(&at("all"))?);
    ensure!(
        different.is_empty(),
        "lines differ from Envoy's:\n{different}"
    );
    // Other formats and filters, line by line.
    for name in ["text", "errors"] {
        let text = std::fs::read_to_string(at(name))?;
        let of = |who: &str| -> Vec<&str> {
            text.lines()
                .filter_map(|line| line.strip_prefix(who))
                .collect()
        };
        let (envoy, agent) = (of("10000 "), of("80 "));
        ensure!(!envoy.is_empty(), "nothing in {name}");
        assert_eq!(envoy, agent, "{name}");
    }
    Ok(())
}
