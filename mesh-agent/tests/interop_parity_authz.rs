//! Decisions of another service, carried out by Envoy and by the agent.

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{
    CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{BoolValue, Struct, Value as PbValue};
use envoy_types::pb::google::rpc::Status;
use mesh_testbed::needs_root;
use mesh_testbed::oracle::{Oracle, Setup};
use prost::Message as _;
use serde_json::{Value, json};

use common::filters::{envoy, filter, request, said, setup, through};

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[expect(deprecated, reason = "services still write it")]
fn header(key: &str, value: &str, append: Append) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append: match append {
            Append::Old(append) => Some(BoolValue { value: append }),
            Append::New(_) => None,
        },
        append_action: match append {
            Append::Old(_) => 0,
            Append::New(action) => action as i32,
        },
        ..Default::default()
    }
}

#[derive(Clone, Copy)]
enum Append {
    Old(bool),
    New(HeaderAppendAction),
}

const ADD: Append = Append::New(HeaderAppendAction::AppendIfExistsOrAdd);
const SET: Append = Append::New(HeaderAppendAction::OverwriteIfExistsOrAdd);
const ABSENT: Append = Append::New(HeaderAppendAction::AddIfAbsent);
const REPLACE: Append = Append::New(HeaderAppendAction::OverwriteIfExists);

fn allow(ok: OkHttpResponse) -> CheckResponse {
    CheckResponse {
        http_response: Some(HttpResponse::OkResponse(ok)),
        ..Default::default()
    }
}

fn status(code: i32) -> Option<Status> {
    Some(Status {
        code,
        ..Default::default()
    })
}

fn deny(code: i32, body: &str, headers: Vec<HeaderValueOption>) -> CheckResponse {
    CheckResponse {
        status: status(7),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: (code != 0).then_some(HttpStatus { code }),
            headers,
            body: body.into(),
        })),
        ..Default::default()
    }
}

/// What a service may say.
fn answers() -> Vec<String> {
    let all = [
        Append::Old(true),
        Append::Old(false),
        ADD,
        SET,
        ABSENT,
        REPLACE,
    ];
    let both = |name: &'static str, other: &'static str| -> Vec<HeaderValueOption> {
        all.iter()
            .flat_map(|append| [header(name, "1", *append), header(other, "2", *append)])
            .collect()
    };
    let mut answers = vec![
        CheckResponse::default(),
        allow(OkHttpResponse::default()),
        allow(OkHttpResponse {
            headers_to_remove: ["x-there", "host", ":path", "x-not"]
                .map(str::to_owned)
                .into(),
            ..Default::default()
        }),
        allow(OkHttpResponse {
            query_parameters_to_set: vec![
                QueryParameter {
                    key: "b".into(),
                    value: "new".into(),
                },
                QueryParameter {
                    key: "z".into(),
                    value: "last".into(),
                },
            ],
            query_parameters_to_remove: vec!["a".into()],
            ..Default::default()
        }),
        allow(OkHttpResponse {
            headers: vec![
                header(":path", "/other?c=1", SET),
                header(":authority", "else", SET),
            ],
            ..Default::default()
        }),
        allow(OkHttpResponse {
            response_headers_to_add: both("x-told", "content-type"),
            ..Default::default()
        }),
        CheckResponse {
            dynamic_metadata: Some(Struct {
                fields: [(
                    "who".to_owned(),
                    PbValue {
                        kind: Some(Kind::StringValue("me".into())),
                    },
                )]
                .into(),
            }),
            ..Default::default()
        },
        CheckResponse {
            status: status(7),
            ..Default::default()
        },
        CheckResponse {
            status: status(16),
            ..Default::default()
        },
        deny(0, "", vec![]),
        deny(
            401,
            "who are you?",
            vec![header("www-authenticate", "Basic", SET)],
        ),
        deny(302, "", vec![header("location", "https://login", SET)]),
        deny(
            403,
            "{}",
            vec![header("content-type", "application/json", SET)],
        ),
        deny(
            403,
            "{}",
            vec![header("content-type", "application/json", ADD)],
        ),
        deny(
            403,
            "",
            vec![
                header("set-cookie", "a=1", ADD),
                header("set-cookie", "b=2", ADD),
            ],
        ),
        deny(429, "slow down", both("x-told", "x-other")),
        deny(503, "later", vec![]),
        CheckResponse {
            status: status(13),
            http_response: Some(HttpResponse::ErrorResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code: 502 }),
                body: "broken".into(),
                headers: vec![header("x-told", "1", SET)],
            })),
            ..Default::default()
        },
    ];
    for append in all {
        answers.push(allow(OkHttpResponse {
            headers: vec![header("x-there", "1", append), header("x-new", "2", append)],
            ..Default::default()
        }));
    }
    let messages = answers.iter().map(|one| encoded(one.encode_to_vec()));
    let words = [
        "",
        "tell",
        "status:7",
        "status:14",
        "garbage",
        "reset",
        "sleep:1500",
    ];
    messages.chain(words.map(str::to_owned)).collect()
}

fn grpc_service(cluster: &str) -> Value {
    json!({ "envoy_grpc": { "cluster_name": cluster }, "timeout": "0.7s" })
}

fn per_route(config: Value) -> Value {
    said("ext_authz", "ext_authz.v3.ExtAuthzPerRoute", config)
}

/// Clusters for the service, in health and otherwise.
fn with_peers(mut setup: Setup) -> Setup {
    let http2 = json!({ "http2_protocol_options": {} });
    let endpoint = json!({ "endpoint": { "address": { "socket_address": {
        "address": "127.0.0.1", "port_value": 1 } } } });
    let nowhere = |name: &str, endpoints: Value| {
        let assignment = json!({ "cluster_name": name, "endpoints": endpoints });
        json!({ "http2_protocol_options": {}, "load_assignment": assignment })
    };
    setup.clusters.extend([
        ("peer".into(), http2),
        ("peer1".into(), json!({})),
        (
            "down".into(),
            nowhere("down", json!([{ "lb_endpoints": [endpoint] }])),
        ),
        ("nobody".into(), nowhere("nobody", json!([]))),
    ]);
    setup
}

#[test]
fn a_grpc_service_is_obeyed_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let service =
        |cluster: &str| json!({ "check_settings": { "grpc_service": grpc_service(cluster) } });
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        ("/other", json!({})),
        ("/off", per_route(json!({ "disabled": true }))),
        ("/context", per_route(json!({ "check_settings": { "context_extensions": { "b": "route", "c": "3" } } }))),
        ("/no-body", per_route(json!({ "check_settings": { "disable_request_body_buffering": true } }))),
        ("/more-body", per_route(json!({ "check_settings": { "with_request_body": { "max_request_bytes": 3, "allow_partial_message": true } } }))),
        ("/bytes", per_route(json!({ "check_settings": { "with_request_body": { "max_request_bytes": 300, "pack_as_bytes": true } } }))),
        ("/down", per_route(service("down"))),
        ("/nobody", per_route(service("nobody"))),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let host = per_route(
        json!({ "check_settings": { "context_extensions": { "a": "host", "b": "host" } } }),
    );
    let chain = |more: Value| {
        let mut config = json!({
            "transport_api_version": "V3",
            "grpc_service": grpc_service("peer"),
            "with_request_body": { "max_request_bytes": 20 },
            "clear_route_cache": true,
            "disallowed_headers": { "patterns": [{ "exact": "x-secret" }] },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        filter("ext_authz", "ext_authz.v3.ExtAuthz", config)
    };
    let mut requests = Vec::new();
    for answer in answers() {
        let answer = format!("x-answer: {answer}\r\n");
        requests.push(request(
            "GET",
            "/plain?b=2&a=1&c",
            &format!("{answer}x-there: 0\r\n"),
        ));
        requests.push(request(
            "GET",
            "/plain",
            &format!("{answer}content-type: application/grpc\r\n"),
        ));
    }
    for (path, _) in &routes {
        for headers in ["", "x-answer: tell\r\nx-secret: s\r\nx-a: 1\r\nx-a: 2\r\n"] {
            requests.push(request("GET", path, headers));
            // Whether a body has come when a connection is refused is a matter of luck.
            if path == "/down" {
                continue;
            }
            for body in ["", "short", "somewhat longer than twenty bytes"] {
                let headers = format!("{headers}content-length: {}\r\n", body.len());
                requests.push(request("POST", path, &headers) + body);
            }
            requests.push(
                request(
                    "POST",
                    path,
                    &format!("{headers}transfer-encoding: chunked\r\n"),
                ) + "5\r\nshort\r\n0\r\n\r\n",
            );
        }
    }
    let compare = |more: Value| {
        through(
            &with_peers(setup(vec![chain(more)], host.clone(), &routes)),
            &requests,
        )
    };
    compare(json!({}))?;
    compare(
        json!({ "failure_mode_allow": true, "failure_mode_allow_header_add": true,
        "allowed_headers": { "patterns": [{ "exact": "x-answer" }, { "prefix": ":" }] } }),
    )?;
    compare(
        json!({ "status_on_error": { "code": "ServiceUnavailable" }, "validate_mutations": true,
        "with_request_body": null }),
    )?;
    requests.truncate(4);
    through(
        &with_peers(setup(
            vec![chain(json!({
        "filter_enabled": { "default_value": { "numerator": 0 } } }))],
            host.clone(),
            &routes,
        )),
        &requests,
    )?;
    through(
        &with_peers(setup(
            vec![chain(json!({
        "filter_enabled": { "default_value": { "numerator": 0 } },
        "deny_at_disable": { "default_value": true, "runtime_key": "k" } }))],
            host,
            &routes,
        )),
        &requests,
    )
}

#[test]
fn an_http_service_is_obeyed_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let service = |cluster: &str, more: Value| {
        let mut service = json!({ "server_uri": { "uri": "http://authz", "cluster": cluster, "timeout": "0.7s" } });
        for (field, value) in more.as_object().into_iter().flatten() {
            service[field] = value.clone();
        }
        service
    };
    let list = |patterns: &[&str]| {
        let patterns: Vec<Value> = patterns.iter().map(|one| json!({ "exact": one })).collect();
        json!({ "patterns": patterns })
    };
    let full = service(
        "peer1",
        json!({
            "path_prefix": "/check",
            "authorization_request": { "headers_to_add": [{ "key": "x-added", "value": "yes" }] },
            "authorization_response": {
                "allowed_upstream_headers": list(&["x-up", "x-asked"]),
                "allowed_upstream_headers_to_append": list(&["x-there"]),
                "allowed_client_headers": list(&["x-why"]),
                "allowed_client_headers_on_success": list(&["x-told", "set-cookie"]),
            },
        }),
    );
    let settings =
        |service: Value| per_route(json!({ "check_settings": { "http_service": service } }));
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        ("/full", settings(full)),
        ("/off", per_route(json!({ "disabled": true }))),
        ("/down", settings(service("down", json!({})))),
        ("/nobody", settings(service("nobody", json!({})))),
        (
            "/override",
            settings(service(
                "peer1",
                json!({ "path_override": "/other",
            "authorization_response": { "allowed_upstream_headers": list(&["x-asked"]) } }),
            )),
        ),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let answers = [
        json!({}),
        json!({ "headers": [["x-up", "1"], ["x-there", "2"], ["x-told", "3"], ["set-cookie", "a=1"], ["set-cookie", "b=2"], ["x-other", "4"]] }),
        json!({ "headers": [["x-envoy-auth-headers-to-remove", "x-there, x-not"]] }),
        json!({ "status": 401, "body": "no", "headers": [["www-authenticate", "Basic"], ["x-why", "because"], ["x-other", "1"]] }),
        json!({ "status": 302, "headers": [["location", "https://login"]] }),
        json!({ "status": 403, "body": "{}", "headers": [["content-type", "application/json"]] }),
        json!({ "status": 204 }),
        json!({ "status": 500, "body": "broken" }),
        json!({ "status": 503 }),
        json!({ "sleep_ms": 1500 }),
    ];
    let answers: Vec<String> = answers.iter().map(|one| encoded(one.to_string())).collect();
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for answer in answers.iter().map(String::as_str).chain(["reset", ""]) {
            let headers =
                format!("x-answer: {answer}\r\nx-there: 0\r\nauthorization: a\r\nx-secret: 1\r\n");
            requests.push(request("GET", &format!("{path}?a=1"), &headers));
        }
        // Whether a body has come when a connection is refused is a matter of luck.
        if path != "/down" {
            requests.push(request("POST", path, "content-length: 5\r\n") + "hello");
        }
        requests.push(request(
            "POST",
            path,
            "content-type: application/grpc\r\nx-answer: reset\r\n",
        ));
    }
    let chain = |more: Value| {
        let mut config = json!({
            "transport_api_version": "V3",
            "http_service": service("peer1", json!({})),
            "allowed_headers": { "patterns": [{ "exact": "x-answer" }, { "exact": "x-there" }] },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        filter("ext_authz", "ext_authz.v3.ExtAuthz", config)
    };
    let compare = |more: Value| {
        through(
            &with_peers(setup(vec![chain(more)], json!({}), &routes)),
            &requests,
        )
    };
    compare(json!({}))?;
    compare(
        json!({ "failure_mode_allow": true, "with_request_body": { "max_request_bytes": 100 } }),
    )
}

#[test]
fn decisions_are_kept_and_asked_for_again() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let service = json!({
        "server_uri": { "uri": "http://authz", "cluster": "peer1", "timeout": "5s" },
        "authorization_response": { "allowed_upstream_headers": { "patterns": [{ "exact": "x-count" }] } },
    });
    let config = json!({
        "transport_api_version": "V3",
        "http_service": service,
        "allowed_headers": { "patterns": [{ "exact": "x-answer" }, { "exact": "x-who" }] },
        "filter_metadata": { "check_cache": { "positive_ttl": "3600s", "negative_ttl": "3600s", "max_entries": 1000 } },
    });
    let chain = vec![filter("ext_authz", "ext_authz.v3.ExtAuthz", config)];
    let mut oracle = Oracle::start(&with_peers(setup(
        chain,
        json!({}),
        &[("/a".into(), json!({}))],
    )))?;
    oracle.set_patience(Duration::from_secs(5));
    let mut ask = |who: &str, answer: Value| -> Result<String> {
        let answer = encoded(answer.to_string());
        let headers = format!("x-answer: {answer}\r\nx-who: {who}\r\n");
        let seen = oracle.ask(request("GET", "/a", &headers).as_bytes())?;
        let response = seen.agent.responses.first().context("no response")?;
        Ok(format!("{response:?}"))
    };
    // The service counts in the body what it answers; a kept answer tells an old number.
    let refused = json!({ "status": 403, "body": "number {number}" });
    let (first, again) = (ask("a", refused.clone())?, ask("a", refused.clone())?);
    ensure!(first == again, "asked twice: {first} and {again}");
    let other = ask("b", refused)?;
    ensure!(first != other, "a decision about another request: {other}");
    let allowed = json!({ "headers": [["x-count", "1"]] });
    let (first, again) = (ask("a", allowed.clone())?, ask("a", allowed)?);
    ensure!(
        first.contains("x-count") && again.contains("x-count"),
        "{first} {again}"
    );
    Ok(())
}
