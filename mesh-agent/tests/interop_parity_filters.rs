//! HTTP filters, asked of Envoy and of the agent.

mod common;

use anyhow::Result;
use mesh_testbed::needs_root;
use serde_json::{Value, json};

use common::filters::{envoy, filter, request, said, setup, through};

#[test]
fn faults_are_injected_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let all = json!({ "numerator": 100 });
    let none = json!({ "numerator": 0 });
    let fault = |config: Value| said("fault", "fault.v3.HTTPFault", config);
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        ("/abort", fault(json!({ "abort": { "http_status": 418, "percentage": all } }))),
        ("/never", fault(json!({ "abort": { "http_status": 418, "percentage": none } }))),
        ("/nothing", fault(json!({ "abort": { "http_status": 418 } }))),
        ("/grpc", fault(json!({ "abort": { "grpc_status": 14, "percentage": all } }))),
        ("/grpc7", fault(json!({ "abort": { "grpc_status": 7, "percentage": all } }))),
        ("/header", fault(json!({
            "abort": { "header_abort": {}, "percentage": all },
            "delay": { "header_delay": {}, "percentage": all },
        }))),
        ("/delay", fault(json!({ "delay": { "fixed_delay": "0.05s", "percentage": all } }))),
        ("/both", fault(json!({
            "delay": { "fixed_delay": "0.02s", "percentage": all },
            "abort": { "http_status": 503, "percentage": all },
        }))),
        ("/cluster", fault(json!({ "upstream_cluster": "b", "abort": { "http_status": 418, "percentage": all } }))),
        ("/mine", fault(json!({ "upstream_cluster": "a", "abort": { "http_status": 418, "percentage": all } }))),
        ("/who", fault(json!({ "downstream_nodes": ["n"], "abort": { "http_status": 418, "percentage": all } }))),
        ("/match", fault(json!({
            "headers": [{ "name": "x-fault", "string_match": { "exact": "yes" } }],
            "abort": { "http_status": 418, "percentage": { "numerator": 1000000, "denominator": "MILLION" } },
        }))),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let chain = vec![filter(
        "fault",
        "fault.v3.HTTPFault",
        json!({ "abort": { "http_status": 429, "percentage": all },
                "headers": [{ "name": "x-chain", "present_match": true }] }),
    )];
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for headers in [
            "",
            "content-type: application/grpc\r\n",
            "x-fault: yes\r\n",
            "x-chain: 1\r\n",
            "x-envoy-downstream-service-node: n\r\n",
        ] {
            requests.push(request("GET", path, headers));
        }
    }
    for headers in [
        "x-envoy-fault-abort-request: 410\r\n",
        "x-envoy-fault-abort-request: 99\r\n",
        "x-envoy-fault-abort-request: 600\r\n",
        "x-envoy-fault-abort-request: nonsense\r\n",
        "x-envoy-fault-abort-grpc-request: 5\r\n",
        "x-envoy-fault-abort-grpc-request: 5\r\ncontent-type: application/grpc\r\n",
        "x-envoy-fault-abort-request: 410\r\nx-envoy-fault-abort-request-percentage: 0\r\n",
        "x-envoy-fault-abort-request: 410\r\nx-envoy-fault-abort-request-percentage: 100\r\n",
        "x-envoy-fault-delay-request: 20\r\n",
        "x-envoy-fault-delay-request: nonsense\r\n",
    ] {
        requests.push(request("GET", "/header", headers));
    }
    requests.push(request("GET", "/no-such-route", "x-chain: 1\r\n"));
    requests.push(request("HEAD", "/abort", ""));
    through(&setup(chain, json!({}), &routes), &requests)
}

#[test]
fn cross_origin_requests_are_answered_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let cors = |config: Value| said("cors", "cors.v3.CorsPolicy", config);
    let one = json!([{ "exact": "https://one.example" }]);
    let routes: Vec<(String, Value)> = [
        ("/inherits", json!({})),
        ("/one", cors(json!({ "allow_origin_string_match": one }))),
        ("/full", cors(json!({
            "allow_origin_string_match": [{ "safe_regex": { "regex": "https://.*\\.example" } }],
            "allow_methods": "GET, PUT", "allow_headers": "x-a,x-b", "expose_headers": "x-c",
            "max_age": "86400", "allow_credentials": true, "allow_private_network_access": true,
        }))),
        ("/all", cors(json!({ "allow_origin_string_match": [{ "exact": "*" }], "allow_methods": "GET" }))),
        ("/answered", cors(json!({ "allow_origin_string_match": one, "forward_not_matching_preflights": false }))),
        ("/off", cors(json!({ "allow_origin_string_match": one, "filter_enabled": { "default_value": { "numerator": 0 } } }))),
        ("/empty", cors(json!({ "allow_methods": "PATCH" }))),
        ("/not", json!({ "envoy.filters.http.cors": {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true } })),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let host = cors(json!({
        "allow_origin_string_match": [{ "prefix": "https://host" }],
        "allow_methods": "DELETE", "expose_headers": "x-host", "allow_credentials": false,
    }));
    let chain = vec![filter("cors", "cors.v3.Cors", json!({}))];
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for origin in [
            "https://one.example",
            "https://two.example",
            "https://host.x",
            "null",
            "",
        ] {
            let origin = format!("origin: {origin}\r\n");
            let asks = format!("{origin}access-control-request-method: GET\r\n");
            requests.push(request("GET", path, &origin));
            requests.push(request("OPTIONS", path, &origin));
            requests.push(request("OPTIONS", path, &asks));
            let private = format!("{asks}access-control-request-private-network: true\r\n");
            requests.push(request("OPTIONS", path, &private));
        }
        requests.push(request("GET", path, ""));
    }
    let upstream =
        "origin: https://one.example\r\nx-echo-header: access-control-allow-origin=mine\r\n";
    requests.push(request("GET", "/one", upstream));
    requests.push(request("GET", "/none", "origin: https://one.example\r\n"));
    through(&setup(chain, host, &routes), &requests)
}

#[test]
fn access_is_decided_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let any = json!([{ "any": true }]);
    let permissions = [
        json!({ "any": true }),
        json!({ "header": { "name": "x-a", "string_match": { "exact": "1" } } }),
        json!({ "header": { "name": ":method", "string_match": { "exact": "GET" } } }),
        json!({ "header": { "name": ":authority", "string_match": { "suffix": ".com", "ignore_case": true } } }),
        json!({ "header": { "name": "x-a", "present_match": true, "invert_match": true } }),
        json!({ "url_path": { "path": { "suffix": "/0" } } }),
        json!({ "url_path": { "path": { "safe_regex": { "regex": "/allow/1[0-9]?" } } } }),
        json!({ "destination_port": 80 }),
        json!({ "destination_port": 81 }),
        json!({ "destination_port_range": { "start": 10001, "end": 10002 } }),
        json!({ "not_rule": { "header": { "name": "x-a", "string_match": { "exact": "1" } } } }),
        json!({ "and_rules": { "rules": [
            { "header": { "name": "x-a", "present_match": true } },
            { "or_rules": { "rules": [
                { "header": { "name": "x-b", "string_match": { "exact": "2" } } },
                { "url_path": { "path": { "prefix": "/deny/11" } } },
            ] } },
        ] } }),
        json!({ "requested_server_name": { "exact": "" } }),
        json!({ "requested_server_name": { "prefix": "a" } }),
        json!({ "destination_ip": { "address_prefix": "1.2.3.4", "prefix_len": 32 } }),
        json!({ "metadata": { "filter": "x", "path": [{ "key": "a" }], "value": { "string_match": { "exact": "b" } } } }),
        json!({ "metadata": { "filter": "x", "path": [{ "key": "a" }], "value": { "present_match": false } } }),
        json!({ "metadata": { "filter": "x", "path": [{ "key": "a" }], "value": { "present_match": true }, "invert": true } }),
    ];
    let principals = [
        json!({ "authenticated": {} }),
        json!({ "authenticated": { "principal_name": { "exact": "spiffe://a/b" } } }),
        json!({ "not_id": { "authenticated": { "principal_name": { "exact": "spiffe://a/b" } } } }),
        json!({ "remote_ip": { "address_prefix": "9.0.0.0", "prefix_len": 8 } }),
        json!({ "direct_remote_ip": { "address_prefix": "9.0.0.0", "prefix_len": 8 } }),
        json!({ "direct_remote_ip": { "address_prefix": "0.0.0.0", "prefix_len": 0 } }),
        json!({ "header": { "name": "x-a", "string_match": { "contains": "1" } } }),
        json!({ "url_path": { "path": { "prefix": "/who" } } }),
        json!({ "and_ids": { "ids": [{ "any": true }, { "header": { "name": "x-b", "present_match": true } }] } }),
        json!({ "or_ids": { "ids": [{ "header": { "name": "x-b", "present_match": true } }, { "url_path": { "path": { "suffix": "8" } } }] } }),
    ];
    let rbac = |rules: Value| said("rbac", "rbac.v3.RBACPerRoute", json!({ "rbac": rules }));
    let mut routes: Vec<(String, Value)> = Vec::new();
    for (i, permission) in permissions.iter().enumerate() {
        for action in ["ALLOW", "DENY", "LOG"] {
            let rules = json!({ "rules": { "action": action, "policies": {
                "p": { "permissions": [permission], "principals": any } } } });
            routes.push((format!("/{}/{i}", action.to_lowercase()), rbac(rules)));
        }
    }
    for (i, principal) in principals.iter().enumerate() {
        let rules = json!({ "rules": { "action": "ALLOW", "policies": {
            "p": { "permissions": any, "principals": [principal] } } } });
        routes.push((format!("/who/{i}"), rbac(rules)));
    }
    routes.push((
        "/empty-allow".into(),
        rbac(json!({ "rules": { "action": "ALLOW" } })),
    ));
    routes.push((
        "/empty-deny".into(),
        rbac(json!({ "rules": { "action": "DENY" } })),
    ));
    routes.push(("/no-rules".into(), rbac(json!({}))));
    routes.push((
        "/off".into(),
        said("rbac", "rbac.v3.RBACPerRoute", json!({})),
    ));
    routes.push((
        "/shadow".into(),
        rbac(json!({ "shadow_rules": { "action": "ALLOW" } })),
    ));
    routes.push(("/chain".into(), json!({})));
    let chain = vec![filter(
        "rbac",
        "rbac.v3.RBAC",
        json!({ "rules": { "action": "DENY", "policies": {
        "a": { "permissions": any, "principals": [{ "header": { "name": "x-a", "present_match": true } }] } } } }),
    )];
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for headers in [
            "",
            "x-a: 1\r\n",
            "x-a: 1\r\nx-b: 2\r\nx-forwarded-for: 9.1.2.3\r\n",
            "x-a: 1\r\nx-a: 3\r\ncontent-type: application/grpc\r\n",
        ] {
            requests.push(request("GET", path, headers));
        }
        requests.push(format!(
            "POST {path}?a=b HTTP/1.1\r\nHost: H.COM\r\nContent-Length: 2\r\n\r\nhi"
        ));
    }
    requests.push(request("GET", "/no-such-route", "x-a: 1\r\n"));
    requests.push(request("GET", "/no-such-route", ""));
    // The two listen on different addresses and ports.
    let ports = |request: &String| {
        ["/7 ", "/8 ", "/9 "]
            .iter()
            .any(|end| request.contains(end))
            || request.contains("?a=b")
                && ["/7?", "/8?", "/9?"]
                    .iter()
                    .any(|end| request.contains(end))
    };
    requests.retain(|request| request.contains("/who/") || !ports(request));
    through(&setup(chain, json!({}), &routes), &requests)
}

#[test]
fn local_limits_refuse_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let all = json!({ "default_value": { "numerator": 100 } });
    let bucket = json!({ "max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "1000s" });
    let limit = |config: Value| {
        let mut config = config;
        config["stat_prefix"] = json!("l");
        said(
            "local_ratelimit",
            "local_ratelimit.v3.LocalRateLimit",
            config,
        )
    };
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        ("/limit", limit(json!({ "token_bucket": bucket, "filter_enabled": all, "filter_enforced": all }))),
        ("/status", limit(json!({ "token_bucket": bucket, "filter_enabled": all, "filter_enforced": all,
            "status": { "code": 503 }, "response_headers_to_add": [
                { "header": { "key": "x-limited", "value": "yes" }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }] }))),
        ("/ok", limit(json!({ "token_bucket": bucket, "filter_enabled": all, "filter_enforced": all, "status": { "code": 200 } }))),
        ("/off", limit(json!({ "token_bucket": bucket }))),
        ("/watch", limit(json!({ "token_bucket": bucket, "filter_enabled": all,
            "request_headers_to_add_when_not_enforced": [{ "header": { "key": "x-too-much", "value": "1" } }] }))),
        ("/grpc", limit(json!({ "token_bucket": bucket, "filter_enabled": all, "filter_enforced": all,
            "rate_limited_as_resource_exhausted": true }))),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let chain = vec![filter(
        "local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        json!({ "stat_prefix": "chain" }),
    )];
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for _ in 0..3 {
            requests.push(request("GET", path, ""));
        }
        requests.push(request("GET", path, "content-type: application/grpc\r\n"));
    }
    through(&setup(chain, json!({}), &routes), &requests)
}

#[test]
fn bodies_are_gathered_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let buffer = |config: Value| said("buffer", "buffer.v3.BufferPerRoute", config);
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        (
            "/more",
            buffer(json!({ "buffer": { "max_request_bytes": 100_000 } })),
        ),
        ("/off", buffer(json!({ "disabled": true }))),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let chain = vec![filter(
        "buffer",
        "buffer.v3.Buffer",
        json!({ "max_request_bytes": 10 }),
    )];
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for body in ["", "hello", "hello world", &"x".repeat(50_000)] {
            let length = body.len();
            requests.push(request("POST", path, &format!("Content-Length: {length}\r\n")) + body);
            requests.push(
                format!(
                    "{}{length:x}\r\n{body}{}0\r\n\r\n",
                    request("POST", path, "Transfer-Encoding: chunked\r\n"),
                    if body.is_empty() { "" } else { "\r\n" },
                )
                .replace("0\r\n0\r\n", "0\r\n"),
            );
        }
        requests.push(request("GET", path, ""));
    }
    through(&setup(chain, json!({}), &routes), &requests)
}

#[test]
fn what_rules_decide_is_told_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let any = json!([{ "any": true }]);
    let who = json!([{ "header": { "name": "x-a", "present_match": true } }]);
    let rules = |action: &str| json!({ "action": action, "policies": { "p": { "permissions": any, "principals": who } } });
    let first = filter(
        "rbac",
        "rbac.v3.RBAC",
        json!({ "rules": rules("LOG"), "shadow_rules": rules("DENY"), "shadow_rules_stat_prefix": "dry_" }),
    );
    let mut second = filter("rbac", "rbac.v3.RBAC", json!({}));
    second["name"] = json!("second");
    let rbac = "envoy.filters.http.rbac";
    let conditions = [
        (
            rbac,
            "dry_shadow_engine_result",
            json!({ "string_match": { "exact": "allowed" } }),
        ),
        (
            rbac,
            "dry_shadow_engine_result",
            json!({ "string_match": { "exact": "denied" } }),
        ),
        (
            rbac,
            "dry_shadow_effective_policy_id",
            json!({ "string_match": { "exact": "p" } }),
        ),
        (
            rbac,
            "shadow_engine_result",
            json!({ "present_match": true }),
        ),
        (
            rbac,
            "enforced_engine_result",
            json!({ "string_match": { "exact": "allowed" } }),
        ),
        (
            rbac,
            "enforced_effective_policy_id",
            json!({ "string_match": { "exact": "p" } }),
        ),
        (
            "envoy.common",
            "access_log_hint",
            json!({ "bool_match": true }),
        ),
        (
            "envoy.common",
            "access_log_hint",
            json!({ "bool_match": false }),
        ),
    ];
    let routes: Vec<(String, Value)> = conditions
        .into_iter()
        .enumerate()
        .map(|(i, (filter, key, value))| {
            let matcher = json!({ "filter": filter, "path": [{ "key": key }], "value": value });
            let rules = json!({ "action": "ALLOW", "policies": { "p": {
                "permissions": any, "principals": [{ "metadata": matcher }] } } });
            let mut said = said(
                "rbac",
                "rbac.v3.RBACPerRoute",
                json!({ "rbac": { "rules": rules } }),
            );
            said = json!({ "second": said[rbac] });
            (format!("/{i}"), said)
        })
        .collect();
    let mut requests = Vec::new();
    for (path, _) in &routes {
        requests.push(request("GET", path, ""));
        requests.push(request("GET", path, "x-a: 1\r\n"));
    }
    through(&setup(vec![first, second], json!({}), &routes), &requests)
}

#[test]
fn responses_are_compressed_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let library = |name: &str, message: &str| {
        json!({ "name": name, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.compression.{name}.compressor.v3.{message}") } })
    };
    let compressor = |name: &str, message: &str, more: Value| {
        let mut config = json!({ "compressor_library": library(name, message) });
        for (field, value) in more.as_object().into_iter().flatten() {
            config[field] = value.clone();
        }
        let mut filter = filter("compressor", "compressor.v3.Compressor", config);
        filter["name"] = json!(format!("compress-{name}"));
        filter
    };
    let overrides = |config: Value| {
        let said = said("compressor", "compressor.v3.CompressorPerRoute", config);
        json!({ "compress-gzip": said["envoy.filters.http.compressor"] })
    };
    let routes: Vec<(String, Value)> = [
        ("/plain", json!({})),
        ("/off", overrides(json!({ "disabled": true }))),
        ("/remove", overrides(json!({ "overrides": { "response_direction_config": { "remove_accept_encoding_header": true } } }))),
    ]
    .into_iter()
    .map(|(path, said)| (path.to_owned(), said))
    .collect();
    let mut requests = Vec::new();
    for accepts in [
        "",
        "gzip",
        "br",
        "zstd",
        "gzip, br, zstd",
        "br;q=0.5, gzip;q=0.4",
        "gzip;q=0",
        "*",
        "*;q=0.1, gzip;q=0",
        "identity",
        "identity;q=0.5, gzip;q=0.6",
        "deflate",
        "GZIP",
        "gzip;q=1.5, br;q=0.1",
        "gzip ; q=0.3 , zstd",
    ] {
        let accepts = format!("accept-encoding: {accepts}\r\n");
        requests.push(request("GET", "/plain", &accepts));
        requests.push(request("GET", "/nowhere", &accepts));
    }
    for (path, _) in &routes {
        for headers in [
            "",
            "x-echo-bytes: 20\r\n",
            "x-echo-bytes: 30\r\n",
            "x-echo-bytes: 100000\r\n",
            "x-echo-header: content-type=image/png\r\n",
            "x-echo-header: content-type=TEXT/html; charset=x\r\n",
            "x-echo-header: etag=\"abc\"\r\n",
            "x-echo-header: etag=W/\"abc\"\r\n",
            "x-echo-header: cache-control=max-age=1, no-transform\r\n",
            "x-echo-header: vary=Cookie\r\n",
            "x-echo-header: vary=Accept-Encoding\r\n",
            "x-echo-header: content-encoding=x\r\n",
            "x-echo-status: 404\r\n",
            "x-echo-status: 204\r\nx-echo-bytes: 0\r\n",
            "x-echo: body\r\n",
        ] {
            let headers = format!("accept-encoding: gzip\r\n{headers}");
            requests.push(request("GET", path, &headers));
            // A response to HEAD tells nothing of chunks.
            if !headers.contains("x-echo: body") {
                requests.push(request("HEAD", path, &headers));
            }
        }
        requests.push(request(
            "POST",
            path,
            "accept-encoding: gzip\r\ncontent-type: application/grpc\r\n",
        ));
    }
    let all = |more: Value| {
        vec![
            compressor("gzip", "Gzip", more),
            compressor("brotli", "Brotli", json!({})),
            compressor("zstd", "Zstd", json!({})),
        ]
    };
    through(&setup(all(json!({})), json!({}), &routes), &requests)?;
    let more = json!({ "response_direction_config": {
        "common_config": { "min_content_length": 100, "content_type": ["image/png", "application/json"] },
        "weaken_etag_on_compress": true, "remove_accept_encoding_header": true, "uncompressible_response_codes": [404] } });
    through(&setup(all(more), json!({}), &routes), &requests)?;
    let more = json!({ "response_direction_config": { "disable_on_etag_header": true,
        "common_config": { "enabled": { "default_value": true, "runtime_key": "k" } } } });
    through(
        &setup(vec![compressor("gzip", "Gzip", more)], json!({}), &routes),
        &requests,
    )
}
