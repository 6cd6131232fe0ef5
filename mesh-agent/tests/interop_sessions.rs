//! Sessions that stay with their endpoint, through Envoy and through the agent.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_testbed::needs_root;
use mesh_testbed::oracle::Oracle;
use serde_json::{Value, json};

use common::filters::{envoy, filter, request, said, setup};

#[test]
fn sessions_stay_with_their_endpoint_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let state = |kind: &str, message: &str, config: Value| {
        let mut config = config;
        config["@type"] = json!(format!(
            "type.googleapis.com/envoy.extensions.http.stateful_session.{kind}.v3.{message}"
        ));
        json!({ "name": format!("envoy.http.stateful_session.{kind}"), "typed_config": config })
    };
    let cookie = |config: Value| {
        state(
            "cookie",
            "CookieBasedSessionState",
            json!({ "cookie": config }),
        )
    };
    let header = state(
        "header",
        "HeaderBasedSessionState",
        json!({ "name": "x-session" }),
    );
    let session = |config: Value| {
        said(
            "stateful_session",
            "stateful_session.v3.StatefulSessionPerRoute",
            json!({ "stateful_session": config }),
        )
    };
    let off = said(
        "stateful_session",
        "stateful_session.v3.StatefulSessionPerRoute",
        json!({ "disabled": true }),
    );
    let attributes = json!([{ "name": "SameSite", "value": "Lax" }, { "name": "Secure" }]);
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        ("/off", off),
        ("/path/below", session(json!({ "session_state": cookie(json!({ "name": "s", "path": "/path" })) }))),
        ("/elsewhere", session(json!({ "session_state": cookie(json!({ "name": "s", "path": "/path" })) }))),
        ("/full", session(json!({ "session_state": cookie(json!({ "name": "s", "path": "/", "attributes": attributes })) }))),
        ("/strict", session(json!({ "strict": true, "session_state": cookie(json!({ "name": "s" })) }))),
        ("/status", session(json!({ "strict": true, "status_on_strict_destination_not_found": 404,
            "session_state": cookie(json!({ "name": "s" })) }))),
        ("/header", session(json!({ "session_state": header }))),
        ("/header-strict", session(json!({ "strict": true, "session_state": header }))),
        ("/nothing", session(json!({}))),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let chain = filter(
        "stateful_session",
        "stateful_session.v3.StatefulSession",
        json!({ "session_state": cookie(json!({ "name": "s" })) }),
    );
    let mut of_all = setup(vec![chain], json!({}), &routes);
    of_all
        .clusters
        .extend(["b", "c"].map(|name| (name.to_owned(), json!({}))));
    let mut oracle = Oracle::start(&of_all)?;
    oracle.set_patience(Duration::from_secs(3));
    let upstreams: Vec<SocketAddr> = ["a", "b", "c"]
        .iter()
        .filter_map(|name| oracle.upstream(name))
        .collect();
    ensure!(upstreams.len() == 3, "three upstreams");
    let mut compared = Vec::new();
    // One endpoint: what a client without a session is given is the same.
    for (path, _) in &routes {
        compared.push(oracle.ask(request("GET", path, "").as_bytes())?);
    }
    let endpoints: Vec<Value> = upstreams
        .iter()
        .map(|at| {
            json!({ "endpoint": { "address": { "socket_address": {
            "address": at.ip().to_string(), "port_value": at.port() } } } })
        })
        .collect();
    let many = json!({ "cluster_name": "many", "endpoints": [{ "lb_endpoints": endpoints }] });
    of_all
        .clusters
        .push(("many".into(), json!({ "load_assignment": many })));
    let hosts = &mut of_all.hcm["route_config"]["virtual_hosts"][0]["routes"];
    for route in hosts.as_array_mut().into_iter().flatten() {
        route["route"]["cluster"] = json!("many");
    }
    oracle.reconfigure(&of_all)?;
    let held = |address: &str, expires: u8| {
        let mut message = vec![0x0a, u8::try_from(address.len()).unwrap_or(0)];
        message.extend_from_slice(address.as_bytes());
        if expires > 0 {
            message.extend_from_slice(&[0x10, expires]);
        }
        STANDARD.encode(message)
    };
    for (path, _) in &routes {
        let strict = path.contains("strict") || path == "/status";
        let by_header = path.starts_with("/header");
        let sticky = !matches!(path.as_str(), "/off" | "/elsewhere" | "/nothing");
        for at in upstreams.iter().filter(|_| sticky) {
            let headers = if by_header {
                format!("x-session: {}\r\n", STANDARD.encode(at.to_string()))
            } else {
                format!("cookie: o=1; s=\"{}\"\r\n", held(&at.to_string(), 0))
            };
            for _ in 0..3 {
                compared.push(oracle.ask(request("GET", path, &headers).as_bytes())?);
            }
        }
        if strict {
            let gone = if by_header {
                format!("x-session: {}\r\n", STANDARD.encode("192.0.2.1:1"))
            } else {
                format!("cookie: s={}\r\n", held("192.0.2.1:1", 0))
            };
            compared.push(oracle.ask(request("GET", path, &gone).as_bytes())?);
        }
    }
    common::filters::all_same(&compared)
}
