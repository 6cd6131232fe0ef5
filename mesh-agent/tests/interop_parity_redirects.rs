//! Redirects that are followed, hosts that want TLS, formats in routes, and answers of one's own
//! form, asked of Envoy and of the agent.

#[path = "common/filters.rs"]
#[expect(dead_code, reason = "shared with the tests of filters")]
mod filters;

use std::time::Duration;

use anyhow::{Result, ensure};
use filters::{all_same, envoy, filter, router, said};
use mesh_testbed::needs_root;
use mesh_testbed::oracle::{Compared, Oracle, Setup};
use serde_json::{Value, json};

fn encoded(reply: &str) -> String {
    reply.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn redirected(path: &str, status: u16, location: &str, headers: &str) -> String {
    let reply = format!(
        "HTTP/1.1 {status} Elsewhere\r\nlocation: {location}\r\nx-copied: one\r\nx-copied: two\r\ncontent-length: 2\r\n\r\nhi"
    );
    format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nx-reply: {}\r\nx-end: keep\r\n{headers}\r\n",
        encoded(&reply)
    )
}

fn predicate(name: &str, message: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = json!(format!(
        "type.googleapis.com/envoy.extensions.internal_redirect.{name}.v3.{message}"
    ));
    json!({ "name": format!("envoy.internal_redirect_predicates.{name}"), "typed_config": config })
}

#[test]
fn redirects_are_followed_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let route = |path: &str, policy: Value| {
        json!({ "name": path, "match": { "path": path },
            "route": { "cluster": "raw", "internal_redirect_policy": policy },
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": path } }] })
    };
    let rewritten = json!({ "name": "rewritten", "match": { "prefix": "/rewritten" },
        "route": { "cluster": "raw", "prefix_rewrite": "/other", "internal_redirect_policy": {},
            "host_rewrite_literal": "elsewhere" },
        "request_headers_to_add": [{ "header": { "key": "x-first", "value": "%REQ(:path)%" } }] });
    let target = |name: &str| {
        json!({ "name": name, "match": { "prefix": format!("/{name}") },
            "route": { "cluster": "a", "prefix_rewrite": "/there" },
            "request_headers_to_add": [{ "header": { "key": "x-second", "value": "%ROUTE_NAME%" } }] })
    };
    let table = json!({ "validate_clusters": false, "virtual_hosts": [
        { "name": "v", "domains": ["h", "elsewhere", "h:81"], "include_request_attempt_count": true, "routes": [
            route("/one", json!({})),
            route("/codes", json!({ "redirect_response_codes": [301, 303, 307, 308, 404] })),
            route("/none", json!({ "redirect_response_codes": [404] })),
            route("/max", json!({ "max_internal_redirects": 3 })),
            route("/zero", json!({ "max_internal_redirects": 0 })),
            route("/previous", json!({ "max_internal_redirects": 5, "predicates": [
                predicate("previous_routes", "PreviousRoutesConfig", json!({}))] })),
            route("/allowed", json!({ "predicates": [predicate("allow_listed_routes",
                "AllowListedRoutesConfig", json!({ "allowed_route_names": ["target"] }))] })),
            route("/cross", json!({ "allow_cross_scheme_redirect": true })),
            route("/safe", json!({ "allow_cross_scheme_redirect": true, "predicates": [
                predicate("safe_cross_scheme", "SafeCrossSchemeConfig", json!({}))] })),
            route("/copy", json!({ "response_headers_to_copy": ["x-copied", "x-gone"] })),
            json!({ "name": "off", "match": { "path": "/off" }, "route": { "cluster": "raw" } }),
            rewritten,
            target("target"),
            target("other"),
            json!({ "match": { "path": "/direct" }, "direct_response": { "status": 201 } }),
        ] },
    ] });
    let mut oracle = Oracle::start(&Setup::routes(table, &["a", "raw"]))?;
    oracle.set_patience(Duration::from_secs(3));
    let mut compared = Vec::new();
    let locations = [
        "http://h/target/x?y=1",
        "http://h/target#part",
        "http://h/other",
        "http://h/direct",
        "http://h/nowhere",
        "http://nobody/target",
        "http://h:81/target",
        "http://h",
        "https://h/target",
        "/target",
        "//h/target",
        "",
        "ftp://h/target",
    ];
    for location in locations {
        for path in ["/one", "/allowed", "/cross", "/safe"] {
            compared.push(oracle.ask(redirected(path, 302, location, "").as_bytes())?);
        }
    }
    for status in [301, 302, 303, 304, 307, 308, 404, 200, 503] {
        for path in ["/one", "/codes", "/none", "/off"] {
            let request = redirected(path, status, "http://h/target", "");
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    for (path, location) in [
        ("/max", "http://h/max"),
        ("/max", "http://h/one"),
        ("/zero", "http://h/target"),
        ("/previous", "http://h/previous"),
        ("/previous", "http://h/max"),
        ("/copy", "http://h/target"),
        ("/rewritten/a?b", "http://h/target/c"),
    ] {
        for headers in [
            "",
            "x-gone: mine\r\nx-copied: mine\r\n",
            "x-envoy-original-url: mine\r\n",
        ] {
            let request = redirected(path, 302, location, headers);
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    for (method, body) in [("POST", "hello"), ("PUT", ""), ("HEAD", ""), ("DELETE", "")] {
        for (path, status) in [("/one", 302), ("/codes", 303), ("/codes", 307)] {
            let request = redirected(path, status, "http://h/target", "");
            let request = request.replacen("GET", method, 1);
            let length = format!("\r\ncontent-length: {}\r\n\r\n", body.len());
            let request = request.replacen("\r\n\r\n", &length, 1) + body;
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    ensure!(compared.len() > 100);
    all_same(&compared)
}

#[test]
fn hosts_want_tls_and_routes_look_at_cookies_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let any = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }]);
    let cookie = |name: &str, fields: Value| {
        let mut cookie = fields;
        cookie["name"] = json!("c");
        json!({ "match": { "path": format!("/{name}"), "cookies": [cookie] }, "direct_response": { "status": 200 } })
    };
    let paths = ["exact", "not", "regex", "prefix"];
    let drawn = |name: &str, fields: Value| {
        let mut weighted = fields;
        weighted["clusters"] =
            json!([{ "name": "a", "weight": 30 }, { "name": "b", "weight": 70 }]);
        json!({ "match": { "path": format!("/{name}") }, "route": { "weighted_clusters": weighted,
            "hash_policy": [{ "header": { "header_name": "x-key" } }] } })
    };
    let table = json!({ "response_headers_to_add": [{ "header": { "key": "x-all", "value": "1" } }],
      "virtual_hosts": [
        { "name": "tls", "domains": ["tls"], "require_tls": "ALL", "routes": any,
          "response_headers_to_add": [{ "header": { "key": "x-host", "value": "1" } }] },
        { "name": "outside", "domains": ["outside"], "require_tls": "EXTERNAL_ONLY", "routes": any },
        { "name": "rest", "domains": ["*"], "routes": [
            cookie("exact", json!({ "string_match": { "exact": "v" } })),
            cookie("not", json!({ "string_match": { "exact": "v" }, "invert_match": true })),
            cookie("regex", json!({ "string_match": { "safe_regex": { "regex": "v+" } } })),
            cookie("prefix", json!({ "string_match": { "prefix": "\"v" } })),
            drawn("drawn", json!({ "header_name": "x-random" })),
            drawn("hashed", json!({ "use_hash_policy": true })),
            json!({ "match": { "path": "/named" }, "route": { "weighted_clusters": { "clusters": [
                { "cluster_header": "x-to", "weight": 1 }] } } }),
        ] },
    ] });
    let setup = Setup::routes(table, &["a", "b"]);
    let mut oracle = Oracle::start(&setup)?;
    let mut compared = Vec::new();
    let mut ask = |host: &str, path: &str, headers: &str| -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
        compared.push(oracle.ask(request.as_bytes())?);
        Ok(())
    };
    for host in ["tls", "outside", "rest"] {
        for headers in [
            "",
            "x-forwarded-proto: https\r\n",
            "x-forwarded-proto: http\r\n",
            "x-forwarded-for: 10.0.0.1\r\n",
            "x-forwarded-for: 8.8.8.8\r\n",
            "content-type: application/grpc\r\n",
        ] {
            ask(host, "/a?b", headers)?;
        }
    }
    for path in paths {
        for cookies in [
            "",
            "cookie: c=v\r\n",
            "cookie: b=1; c=v; d=2\r\n",
            "cookie: c=\"v\"\r\n",
            "cookie: c=w; c=v\r\n",
            "cookie: c=vv\r\ncookie: c=v\r\n",
            "cookie: c\r\n",
            "cookie: c=\r\n",
            "cookie: cc=v\r\n",
        ] {
            ask("rest", &format!("/{path}"), cookies)?;
        }
    }
    for number in ["0", "29", "30", "99", "100", "131", "18446744073709551615"] {
        ask("rest", "/drawn", &format!("x-random: {number}\r\n"))?;
        ask("rest", "/hashed", &format!("x-key: {number}\r\n"))?;
    }
    for to in ["x-to: a\r\n", "x-to: b\r\n", "x-to: nobody\r\n", ""] {
        ask("rest", "/named", to)?;
    }
    all_same(&compared)
}

/// What Envoy adds to an answer of its own is computed before its status and type are known; here
/// they are.
fn forget_early(compared: &mut Compared, operators: &[&str]) {
    let early = [
        "RESPONSE_CODE",
        "RESP(content-type)",
        "RESP(nobody?content-type)",
    ];
    for seen in [&mut compared.envoy, &mut compared.agent] {
        for response in &mut seen.responses {
            response.headers.retain(|(name, _)| {
                let number = name
                    .strip_prefix("x-")
                    .and_then(|number| number.parse().ok());
                number.is_none_or(|number: usize| !early.contains(&operators[number]))
            });
        }
    }
}

/// Operators in headers, hosts, paths and redirects.
#[test]
fn operators_say_what_envoys_say() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let operators = [
        "PROTOCOL",
        "REQ(:method)",
        "REQ(:path)",
        "REQ(:authority)",
        "REQ(:scheme)",
        "REQ(x-a)",
        "REQ(X-B?X-A)",
        "REQ(x-a):2",
        "REQ(nobody)",
        "RESP(content-type)",
        "RESP(server)",
        "RESP(:status)",
        "RESP(nobody?content-type)",
        "RESPONSE_CODE",
        "RESPONSE_CODE_DETAILS",
        "RESPONSE_FLAGS",
        "ROUTE_NAME",
        "UPSTREAM_CLUSTER",
        "DYNAMIC_METADATA(a:b)",
        "REQUESTED_SERVER_NAME",
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
        "DOWNSTREAM_PEER_SUBJECT",
        "ENVIRONMENT(NOBODY_SET_THIS)",
        "START_TIME(%Y)",
        "CONNECTION_TERMINATION_DETAILS",
        "UPSTREAM_TRANSPORT_FAILURE_REASON",
    ];
    let headers: Vec<Value> = operators
        .iter()
        .enumerate()
        .map(|(i, operator)| {
            json!({ "header": { "key": format!("x-{i}"), "value": format!("[%{operator}%]") } })
        })
        .collect();
    let route = |name: &str, action: Value| {
        let mut route = action;
        route["name"] = json!(name);
        route["match"] = json!({ "prefix": format!("/{name}") });
        route["request_headers_to_add"] = json!(headers);
        route["response_headers_to_add"] = json!(headers);
        route
    };
    let to = |fields: Value| {
        let mut route = fields;
        route["cluster"] = json!("a");
        json!({ "route": route })
    };
    let table = json!({ "validate_clusters": false, "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        route("plain", to(json!({}))),
        route("path", to(json!({ "path_rewrite": "/new/%REQ(x-a)%" }))),
        route("nothing", to(json!({ "path_rewrite": "%REQ(x-none)%", "host_rewrite": "%REQ(x-none)%" }))),
        route("host", to(json!({ "host_rewrite": "to-%REQ(x-a)%", "append_x_forwarded_host": true }))),
        route("redirect", json!({ "redirect": { "path_rewrite": "/to/%REQ(x-a)%" } })),
        route("stay", json!({ "redirect": { "path_rewrite": "%REQ(x-none)%", "host_redirect": "other" } })),
        route("direct", json!({ "direct_response": { "status": 404, "body": { "inline_string": "no" } } })),
        route("gone", json!({ "route": { "cluster": "nobody" } })),
    ] }] });
    let mut oracle = Oracle::start(&Setup::routes(table, &["a"]))?;
    let mut compared = Vec::new();
    for name in [
        "plain", "path", "nothing", "host", "redirect", "stay", "direct", "gone",
    ] {
        for headers in ["x-a: value\r\n", "x-a: v\r\nx-b: w\r\nx-a: z\r\n", ""] {
            let request = format!("GET /{name}/x?y=1 HTTP/1.1\r\nHost: h:81\r\n{headers}\r\n");
            let mut one = oracle.ask(request.as_bytes())?;
            if matches!(name, "redirect" | "stay" | "direct" | "gone") {
                forget_early(&mut one, &operators);
            }
            compared.push(one);
        }
    }
    all_same(&compared)
}

/// What filters found out decides over the route, once it is looked for again.
#[test]
fn routes_look_at_metadata_and_missing_backends_get_500_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    // What istiod sends for the backends of Gateway API's routes that do not exist.
    let missing = json!({ "name": "missing", "match": { "path": "/missing" }, "route": {
        "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR",
        "weighted_clusters": { "clusters": [{ "name": "nobody", "weight": 1 }] } } });
    let zero = json!({ "name": "zero", "match": { "path": "/zero" }, "direct_response": { "status": 500 } });
    let some = json!({ "name": "some", "match": { "path": "/some" }, "route": {
        "weighted_clusters": { "clusters": [
            { "name": "a", "weight": 0 }, { "name": "b", "weight": 1 }] } } });
    let by = |path: &str, fields: Value| {
        let mut matcher = fields;
        matcher["filter"] = json!("envoy.lb");
        matcher["path"] = json!([{ "key": "k" }]);
        json!({ "match": { "path": path, "dynamic_metadata": [matcher] }, "route": { "cluster": "a" } })
    };
    let table = json!({ "validate_clusters": false, "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        missing, zero, some,
        by("/is", json!({ "value": { "string_match": { "exact": "x" } } })),
        by("/not", json!({ "value": { "string_match": { "exact": "x" } }, "invert": true })),
    ] }] });
    let mut oracle = Oracle::start(&Setup::routes(table, &["a", "b"]))?;
    let mut compared = Vec::new();
    for path in ["/missing", "/zero", "/some", "/is", "/not"] {
        for headers in ["", "content-type: application/grpc\r\n"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    all_same(&compared)?;
    // Both refuse weights that are all zero.
    let table = json!({ "validate_clusters": false, "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [
            { "name": "a", "weight": 0 }] } } } ] }] });
    let refused = Setup::routes(table, &["a", "b"]);
    ensure!(
        oracle.reconfigure(&refused).is_err(),
        "both took weights of zero"
    );
    Ok(())
}

/// Answers of one's own under mappers, formats and headers.
#[test]
fn local_replies_look_as_envoys() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let fault = said(
        "fault",
        "fault.v3.HTTPFault",
        json!({ "abort": { "http_status": 418, "percentage": { "numerator": 100 } } }),
    );
    let table = json!({ "validate_clusters": false, "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "path": "/dead" }, "route": { "cluster": "dead" } },
        { "match": { "path": "/empty" }, "route": { "cluster": "empty" } },
        { "match": { "path": "/nobody" }, "route": { "cluster": "nobody" } },
        { "match": { "path": "/direct" }, "direct_response": { "status": 404, "body": { "inline_string": "not here" } } },
        { "match": { "path": "/created" }, "direct_response": { "status": 201 } },
        { "match": { "path": "/redirect" }, "redirect": { "host_redirect": "other" } },
        { "match": { "path": "/fault" }, "route": { "cluster": "a" }, "typed_per_filter_config": fault,
          "response_headers_to_add": [{ "header": { "key": "x-by", "value": "route" } }] },
        { "match": { "path": "/slow" }, "route": { "cluster": "a", "timeout": "0.2s" } },
        { "match": { "path": "/up" }, "route": { "cluster": "a" } },
    ] }] });
    let status = |op: &str, value: u16| json!({ "status_code_filter": { "comparison": { "op": op, "value": { "default_value": value, "runtime_key": "k" } } } });
    let header = |name: &str| json!({ "header_filter": { "header": { "name": name, "present_match": true } } });
    let text = |text: &str| json!({ "text_format_source": { "inline_string": text } });
    let configs = [
        json!({}),
        json!({ "body_format": text("%LOCAL_REPLY_BODY%:%RESPONSE_CODE%:%REQ(:path)%:%RESPONSE_FLAGS%:%RESPONSE_CODE_DETAILS%") }),
        json!({ "body_format": { "json_format": { "said": "%LOCAL_REPLY_BODY%", "code": "%RESPONSE_CODE%",
            "path": "%REQ(:path)%", "none": "%REQ(x-none)%" } } }),
        json!({ "body_format": { "text_format_source": { "inline_string": "<b>%RESPONSE_CODE%</b>" }, "content_type": "text/html" } }),
        json!({ "mappers": [
            { "filter": header("x-first"), "status_code": 222, "body": { "inline_string": "first" },
              "headers_to_add": [{ "header": { "key": "x-added", "value": "%RESPONSE_CODE%-%REQ(x-first)%" } }] },
            { "filter": status("EQ", 404), "status_code": 405, "body_format_override": text("[%LOCAL_REPLY_BODY%]") },
            { "filter": { "response_flag_filter": { "flags": ["UH", "UF", "NC"] } }, "body": { "inline_string": "gone" } },
            { "filter": status("GE", 500), "headers_to_add": [
                { "header": { "key": "content-type", "value": "x/y" }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }],
              "body": { "inline_string": "typed" } },
            { "filter": status("EQ", 418), "body_format_override": { "json_format": { "tea": "%LOCAL_REPLY_BODY%" } } },
        ], "body_format": text("%LOCAL_REPLY_BODY%!") }),
    ];
    let filters = json!([filter("fault", "fault.v3.HTTPFault", json!({})), router()]);
    let mut compared = Vec::new();
    let mut oracle: Option<Oracle> = None;
    for config in configs {
        let mut setup = Setup::routes(table.clone(), &["a"])
            .hcm("http_filters", filters.clone())
            .hcm("normalize_path", json!(true))
            .hcm(
                "path_with_escaped_slashes_action",
                json!("UNESCAPE_AND_REDIRECT"),
            )
            .hcm("local_reply_config", config);
        let nobody = json!({ "load_assignment": { "cluster_name": "dead", "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9 } } } } ] }] } });
        setup.clusters.push(("dead".into(), nobody));
        let none = json!({ "load_assignment": { "cluster_name": "empty" } });
        setup.clusters.push(("empty".into(), none));
        match &mut oracle {
            Some(oracle) => oracle.reconfigure(&setup)?,
            None => oracle = Some(Oracle::start(&setup)?),
        }
        let oracle = oracle.as_mut().expect("it was just started");
        oracle.set_patience(Duration::from_secs(3));
        for path in [
            "/none",
            "/dead",
            "/empty",
            "/nobody",
            "/direct",
            "/created",
            "/redirect",
            "/fault",
            "/slow",
            "/up",
            "/a%2fb",
            "/..%00",
        ] {
            for (method, headers) in [
                ("GET", ""),
                ("GET", "x-first: yes\r\n"),
                ("GET", "content-type: application/grpc\r\n"),
                ("HEAD", ""),
            ] {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nHost: h\r\nx-echo-delay-ms: 400\r\n{headers}\r\n"
                );
                compared.push(oracle.ask(request.as_bytes())?);
            }
        }
        for broken in [
            "GET /up HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nbad header\r\n\r\n",
        ] {
            compared.push(oracle.ask(broken.as_bytes())?);
        }
    }
    all_same(&compared)
}
