//! Rate limits by descriptor: of a service for all, and of this node.

mod common;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::config::core::v3::HeaderValue as PbHeader;
use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitResponse;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{
    Code, DescriptorStatus, RateLimit,
};
use envoy_types::pb::google::protobuf::Duration as PbDuration;
use mesh_testbed::needs_root;
use mesh_testbed::oracle::Setup;
use prost::Message as _;
use serde_json::{Value, json};

use common::filters::{envoy, filter, request, said, setup, through};

fn header(key: &str, value: &str) -> PbHeader {
    PbHeader {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

fn status(left: u32, requests: u32, unit: i32, name: &str) -> DescriptorStatus {
    DescriptorStatus {
        code: Code::Ok as i32,
        current_limit: Some(RateLimit {
            name: name.into(),
            requests_per_unit: requests,
            unit,
        }),
        limit_remaining: left,
        duration_until_reset: Some(PbDuration {
            seconds: 30,
            nanos: 0,
        }),
        ..Default::default()
    }
}

/// What the service may say.
fn answers() -> Vec<String> {
    let plain = |code: Code| RateLimitResponse {
        overall_code: code as i32,
        ..Default::default()
    };
    let full = |code: Code| RateLimitResponse {
        statuses: vec![
            status(7, 10, 1, ""),
            DescriptorStatus::default(),
            status(3, 100, 2, "minutes"),
            status(5, 1, 3, "hours"),
        ],
        response_headers_to_add: vec![
            header("x-told", "1"),
            header("x-told", "2"),
            header("server", "rls"),
        ],
        request_headers_to_add: vec![header("x-asked", "yes"), header("x-there", "2")],
        ..plain(code)
    };
    let messages = [
        plain(Code::Unknown),
        plain(Code::Ok),
        plain(Code::OverLimit),
        full(Code::Ok),
        full(Code::OverLimit),
        RateLimitResponse {
            raw_body: b"too much".to_vec(),
            ..plain(Code::OverLimit)
        },
        RateLimitResponse {
            raw_body: b"{}".to_vec(),
            response_headers_to_add: vec![header("content-type", "application/json")],
            ..plain(Code::OverLimit)
        },
    ];
    let messages = messages
        .iter()
        .map(|one| URL_SAFE_NO_PAD.encode(one.encode_to_vec()));
    let words = ["", "tell", "status:14", "garbage", "reset", "sleep:1000"];
    messages.chain(words.map(str::to_owned)).collect()
}

fn answer_action() -> Value {
    json!({ "request_headers": { "header_name": "x-answer", "descriptor_key": "answer", "skip_if_absent": true } })
}

/// Routes with limits of their own.
fn with_limits(mut setup: Setup, limits: &[(&str, Value)], host: Value) -> Setup {
    let host_of = &mut setup.hcm["route_config"]["virtual_hosts"][0];
    host_of["rate_limits"] = host;
    let routes: Vec<Value> = limits
        .iter()
        .map(|(path, fields)| {
            let mut action = json!({ "cluster": "a" });
            let mut route = json!({ "match": { "path": path } });
            for (field, value) in fields.as_object().into_iter().flatten() {
                match field.as_str() {
                    "typed_per_filter_config" => route[field] = value.clone(),
                    _ => action[field] = value.clone(),
                }
            }
            route["route"] = action;
            route
        })
        .collect();
    host_of["routes"] = routes.into();
    setup
        .clusters
        .push(("peer".into(), json!({ "http2_protocol_options": {} })));
    let endpoint = json!({ "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 1 } } } });
    let assignment =
        json!({ "cluster_name": "down", "endpoints": [{ "lb_endpoints": [endpoint] }] });
    setup.clusters.push((
        "down".into(),
        json!({ "http2_protocol_options": {}, "load_assignment": assignment }),
    ));
    setup
}

fn chain(cluster: &str, more: Value) -> Value {
    let mut config = json!({
        "domain": "d",
        "timeout": "0.5s",
        "rate_limit_service": { "transport_api_version": "V3",
            "grpc_service": { "envoy_grpc": { "cluster_name": cluster } } },
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        config[field] = value.clone();
    }
    filter("ratelimit", "ratelimit.v3.RateLimit", config)
}

/// A limit on a path for every action, with what the service was asked made visible.
fn actions() -> Vec<(String, Value)> {
    let fixed = |value: &str| json!({ "generic_key": { "descriptor_value": value } });
    let of = |name: &str, value: Value| {
        let value = json!({ name: value });
        json!({ "rate_limits": [{ "actions": [answer_action(), value] }] })
    };
    let header = json!({ "name": "x-a", "string_match": { "exact": "1" } });
    let query = json!({ "name": "q", "string_match": { "prefix": "v" } });
    let metadata = json!({ "key": "x", "path": [{ "key": "y" }] });
    let list = [
        of("destination_cluster", json!({})),
        of(
            "request_headers",
            json!({ "header_name": "x-a", "descriptor_key": "k" }),
        ),
        of(
            "request_headers",
            json!({ "header_name": "x-a", "descriptor_key": "k", "skip_if_absent": true }),
        ),
        of(
            "query_parameters",
            json!({ "query_parameter_name": "q", "descriptor_key": "k" }),
        ),
        of(
            "query_parameters",
            json!({ "query_parameter_name": "q", "descriptor_key": "k", "skip_if_absent": true }),
        ),
        of(
            "generic_key",
            json!({ "descriptor_value": "v", "descriptor_key": "k" }),
        ),
        of("generic_key", json!({ "descriptor_value": "v" })),
        of(
            "header_value_match",
            json!({ "descriptor_value": "v", "headers": [header] }),
        ),
        of(
            "header_value_match",
            json!({ "descriptor_value": "v", "descriptor_key": "k", "expect_match": false, "headers": [header] }),
        ),
        of(
            "query_parameter_value_match",
            json!({ "descriptor_value": "v", "query_parameters": [query] }),
        ),
        of(
            "query_parameter_value_match",
            json!({ "descriptor_value": "v", "expect_match": false, "query_parameters": [query] }),
        ),
        of(
            "metadata",
            json!({ "descriptor_key": "k", "metadata_key": metadata }),
        ),
        of(
            "metadata",
            json!({ "descriptor_key": "k", "metadata_key": metadata, "default_value": "d" }),
        ),
        of(
            "metadata",
            json!({ "descriptor_key": "k", "metadata_key": metadata, "skip_if_absent": true }),
        ),
        of(
            "remote_address_match",
            json!({ "descriptor_value": "v", "address_matcher": { "ranges": [{ "address_prefix": "9.0.0.0", "prefix_len": 8 }] } }),
        ),
        of(
            "remote_address_match",
            json!({ "descriptor_value": "v", "address_matcher": { "ranges": [{ "address_prefix": "9.0.0.0", "prefix_len": 8 }], "invert_match": true } }),
        ),
        json!({ "rate_limits": [
            { "actions": [answer_action(), fixed("one")], "hits_addend": { "number": 3 } },
            { "stage": 1, "actions": [fixed("of another stage")] },
            { "actions": [fixed("two")], "limit": { "dynamic_metadata": { "metadata_key": metadata } } },
            { "actions": [{ "request_headers": { "header_name": "x-a", "descriptor_key": "k" } }, fixed("three")] },
        ] }),
        json!({}),
        json!({ "include_vh_rate_limits": true, "rate_limits": [{ "actions": [fixed("mine")] }] }),
    ];
    list.into_iter()
        .enumerate()
        .map(|(i, fields)| (format!("/{i}"), fields))
        .collect()
}

#[test]
fn a_rate_limit_service_is_asked_and_obeyed_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let mut routes = actions();
    // Both have peers at addresses of their own; who is told by others is the same for both.
    let forwarded = "x-forwarded-for: 9.1.2.3\r\n";
    for action in [
        json!({ "remote_address": {} }),
        json!({ "masked_remote_address": {} }),
        json!({ "masked_remote_address": { "v4_prefix_mask_len": 20 } }),
    ] {
        let limits = json!({ "rate_limits": [{ "actions": [answer_action(), action] }] });
        routes.push((format!("/forwarded/{}", routes.len()), limits));
    }
    let own = json!([{ "hits_addend": { "number": 3 }, "actions": [answer_action(), { "generic_key": { "descriptor_value": "own" } }] }]);
    for (name, config) in [
        ("/own", json!({ "rate_limits": own })),
        ("/domain", json!({ "rate_limits": own, "domain": "other" })),
        ("/include", json!({ "vh_rate_limits": "INCLUDE" })),
        ("/ignore", json!({ "vh_rate_limits": "IGNORE" })),
    ] {
        let said = said("ratelimit", "ratelimit.v3.RateLimitPerRoute", config);
        routes.push((name.into(), json!({ "typed_per_filter_config": said })));
    }
    let host = json!([{ "actions": [answer_action(), { "generic_key": { "descriptor_value": "host" } }] }]);
    let mut requests = Vec::new();
    for (path, _) in &routes {
        if path.starts_with("/forwarded") {
            let headers = format!("x-answer: tell\r\n{forwarded}");
            requests.push(request("GET", path, &headers));
            continue;
        }
        for headers in ["", "x-a: 1\r\n", "x-a: 1\r\nx-a: 2\r\n", forwarded] {
            let headers = format!("x-answer: tell\r\n{headers}");
            requests.push(request("GET", path, &headers));
            requests.push(request("GET", &format!("{path}?q=value&q=w"), &headers));
        }
    }
    for answer in answers() {
        for path in ["/5", "/own"] {
            let headers = format!("x-answer: {answer}\r\nx-there: 1\r\n");
            requests.push(request("GET", path, &headers));
            let headers = format!("{headers}content-type: application/grpc\r\n");
            requests.push(request("POST", path, &headers));
        }
    }
    requests.push(request("GET", "/nowhere", "x-answer: tell\r\n"));
    let limits: Vec<(&str, Value)> = routes
        .iter()
        .map(|(path, value)| (path.as_str(), value.clone()))
        .collect();
    let compare = |cluster: &str, more: Value, requests: &[String]| {
        let setup = setup(vec![chain(cluster, more)], json!({}), &[]);
        through(&with_limits(setup, &limits, host.clone()), requests)
    };
    compare(
        "peer",
        json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03" }),
        &requests,
    )?;
    let few: Vec<String> = requests.iter().rev().take(55).cloned().collect();
    compare(
        "peer",
        json!({ "failure_mode_deny": true, "rate_limited_as_resource_exhausted": true,
            "disable_x_envoy_ratelimited_header": true, "rate_limited_status": { "code": 503 },
            "response_headers_to_add": [{ "header": { "key": "x-limited", "value": "yes" } }] }),
        &few,
    )?;
    let down: Vec<String> = requests.iter().take(6).cloned().collect();
    compare("down", json!({}), &down)?;
    compare(
        "down",
        json!({ "failure_mode_deny": true, "status_on_error": { "code": 503 } }),
        &down,
    )?;
    compare("peer", json!({ "request_type": "internal" }), &down)?;
    compare("peer", json!({ "stage": 1 }), &few)
}

#[test]
fn local_limits_have_buckets_by_descriptor_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let all = json!({ "default_value": { "numerator": 100 } });
    let bucket = |tokens: u32| json!({ "max_tokens": tokens, "tokens_per_fill": 1, "fill_interval": "1000s" });
    let descriptor = |value: &str, tokens: u32| json!({ "entries": [{ "key": "user", "value": value }], "token_bucket": bucket(tokens) });
    let limit = |more: Value| {
        let mut config = json!({
            "stat_prefix": "l", "filter_enabled": all, "filter_enforced": all,
            "token_bucket": bucket(4),
            "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
            "descriptors": [descriptor("one", 1), descriptor("two", 2), {
                "entries": [{ "key": "user", "value": "two" }, { "key": "generic_key", "value": "deep" }],
                "token_bucket": bucket(1) }],
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        said(
            "local_ratelimit",
            "local_ratelimit.v3.LocalRateLimit",
            config,
        )
    };
    let user = json!({ "request_headers": { "header_name": "x-user", "descriptor_key": "user" } });
    let limits = json!([
        { "actions": [user] },
        { "actions": [user, { "generic_key": { "descriptor_value": "deep" } }] },
    ]);
    let route =
        |more: Value| json!({ "rate_limits": limits, "typed_per_filter_config": limit(more) });
    let routes = [
        ("/both", route(json!({}))),
        (
            "/apart",
            route(json!({ "always_consume_default_token_bucket": false })),
        ),
        ("/stage", route(json!({ "stage": 2 }))),
        (
            "/own",
            json!({ "typed_per_filter_config": limit(json!({ "rate_limits": limits })) }),
        ),
        (
            "/host",
            json!({ "typed_per_filter_config": limit(json!({ "vh_rate_limits": "INCLUDE" })) }),
        ),
        (
            "/alone",
            json!({ "typed_per_filter_config": limit(json!({ "vh_rate_limits": "IGNORE" })) }),
        ),
    ];
    let host = json!([{ "actions": [user] }]);
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for user in [
            "",
            "x-user: one\r\n",
            "x-user: one\r\n",
            "x-user: two\r\n",
            "x-user: two\r\n",
            "x-user: two\r\n",
            "x-user: three\r\n",
            "x-user: three\r\n",
            "",
        ] {
            requests.push(request("GET", path, user));
        }
    }
    let plain = filter(
        "local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        json!({ "stat_prefix": "chain" }),
    );
    let setup = setup(vec![plain], json!({}), &[]);
    through(&with_limits(setup, &routes, host), &requests)
}
