//! Which route takes a request, and what it makes of it: asked of Envoy and of the agent, over
//! generated route tables and requests.

use anyhow::{Result, ensure};
use fastrand::Rng;
use mesh_testbed::oracle::{Oracle, Setup};
use mesh_testbed::{Envoy, needs_root};
use serde_json::{Value, json};

const CLUSTERS: [&str; 4] = ["a", "b", "c", "d"];
const TABLES: u64 = 12;
const REQUESTS: usize = 200;

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

const DOMAINS: [&str; 14] = [
    "a.example.com",
    "A.b.example.com",
    "*.example.com",
    "*.b.example.com",
    "*-x.example.com",
    "foo.*",
    "foo.bar*",
    "foo-*",
    "a.example.com:8080",
    "[::1]",
    "10.0.0.1",
    "*.com",
    "*ample.com",
    "a.*",
];

const HOSTS: [&str; 20] = [
    "a.example.com",
    "A.EXAMPLE.com",
    "a.b.example.com",
    "c.b.example.com",
    "q-x.example.com",
    "-x.example.com",
    "z.example.com",
    "example.com",
    "foo.bar",
    "foo.barbaz",
    "foo.",
    "foo-1",
    "a.example.com:8080",
    "a.example.com:80",
    "[::1]",
    "[::1]:80",
    "10.0.0.1:81",
    "other.org",
    "a.org",
    "sample.com",
];

const PATHS: [&str; 32] = [
    "/",
    "/a",
    "/A",
    "/a/",
    "/a/b",
    "/a/B",
    "/ab",
    "/abc",
    "/a?x=1",
    "/a/b?x=1&y=2",
    "/a?y",
    "/a?y=",
    "/a?x=2&x=1",
    "/a/b/c?z=%20q",
    "/api/v1/users",
    "/api/v1/users/17",
    "/api/v1/users/abc",
    "/api/v2/users",
    "/API/v1/users",
    "/api",
    "/api/",
    "/apis",
    "/files/x.tar.gz",
    "/files/%2e%2e/x",
    "/files/a%2Fb",
    "/files/../a",
    "/files//a",
    "/a;p=1/b",
    "/%61",
    "/pkg.Service/Method",
    "/a%23f",
    "*",
];

const METHODS: [&str; 7] = ["GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS"];

const HEADERS: [&str; 16] = [
    "x-user: alice",
    "x-user: Alice",
    "x-user: bob",
    "x-user:",
    "x-user: alice\r\nx-user: bob",
    "x-number: 5",
    "x-number: -3",
    "x-number: 5x",
    "x-number: 10",
    "x-version: v1.2.3",
    "x-version: v1",
    "content-type: application/grpc",
    "content-type: application/grpc+proto",
    "content-type: application/grpcx",
    "cookie: session=abc; user=jason",
    "x-canary: TRUE",
];

/// One match, of every kind there is.
fn matcher(rng: &mut Rng) -> Value {
    let mut matcher = match rng.u8(..10) {
        0..4 => json!({ "prefix": pick(rng, &["/", "/a", "/a/", "/api", "/files", "/ab", ""]) }),
        4 | 5 => json!({ "path": pick(rng, &["/a", "/", "/a/b", "/api/v1/users", "/ab", "/a/"]) }),
        6 | 7 => {
            json!({ "path_separated_prefix": pick(rng, &["/a", "/api", "/api/v1", "/files", "/a/b"]) })
        }
        _ => json!({ "safe_regex": { "regex": pick(rng, &[
            "/api/v[12]/users(/\\d+)?", "/a.*", "/.*b", "/[a-z]+", "/(?i)A", "/files/.*\\.gz", "/a|/ab", ".*",
        ]) } }),
    };
    if rng.u8(..6) == 0 && matcher.get("safe_regex").is_none() {
        matcher["case_sensitive"] = json!(false);
    }
    if rng.u8(..3) == 0 {
        let count = rng.usize(1..3);
        let headers: Vec<Value> = (0..count).map(|_| header_matcher(rng)).collect();
        matcher["headers"] = json!(headers);
    }
    if rng.u8(..5) == 0 {
        matcher["query_parameters"] = json!([query_matcher(rng)]);
    }
    if rng.u8(..16) == 0 {
        matcher["grpc"] = json!({});
    }
    matcher
}

fn string_matcher(rng: &mut Rng, values: &[&str]) -> Value {
    let value = *pick(rng, values);
    let half = &value[..value.len().div_ceil(2)];
    let mut matcher = match rng.u8(..5) {
        0 => json!({ "exact": value }),
        1 => json!({ "prefix": half }),
        2 => json!({ "suffix": &value[value.len() / 2..] }),
        3 => json!({ "contains": half }),
        _ => {
            json!({ "safe_regex": { "regex": pick(rng, &["al.*", "[a-z]+", "v\\d(\\.\\d)*", "5|10", ".*"]) } })
        }
    };
    if rng.bool() && matcher.get("safe_regex").is_none() {
        matcher["ignore_case"] = json!(true);
    }
    matcher
}

fn header_matcher(rng: &mut Rng) -> Value {
    let mut matcher = match rng.u8(..8) {
        0 => json!({ "name": ":method", "string_match": { "exact": pick(rng, &METHODS) } }),
        1 => json!({ "name": ":authority", "string_match": { "suffix": "example.com" } }),
        2 => json!({ "name": ":path", "string_match": { "contains": "x=1" } }),
        3 => {
            json!({ "name": pick(rng, &["x-user", "x-none", "x-canary"]), "present_match": rng.bool() })
        }
        4 => json!({ "name": "x-number", "range_match": { "start": -5, "end": 10 } }),
        5 => {
            json!({ "name": "cookie", "string_match": { "safe_regex": { "regex": "^(.*?;\\s*)?(user=jason)(;.*)?$" } } })
        }
        _ => json!({
            "name": pick(rng, &["x-user", "x-version", "x-number", "x-canary"]),
            "string_match": string_matcher(rng, &["alice", "v1.2.3", "5", "true"]),
        }),
    };
    if rng.u8(..4) == 0 {
        matcher["invert_match"] = json!(true);
    }
    if rng.u8(..6) == 0 && matcher.get("present_match").is_none() {
        matcher["treat_missing_header_as_empty"] = json!(true);
    }
    matcher
}

fn query_matcher(rng: &mut Rng) -> Value {
    let name = pick(rng, &["x", "y", "z"]);
    match rng.u8(..3) {
        0 => json!({ "name": name, "present_match": rng.bool() }),
        _ => json!({ "name": name, "string_match": string_matcher(rng, &["1", "2", "q"]) }),
    }
}

/// What a route does; its response tells which route it was.
fn route(rng: &mut Rng, index: String) -> Value {
    let matcher = matcher(rng);
    let mut route = json!({
        "name": &index,
        "match": &matcher,
        "response_headers_to_add": [{ "header": { "key": "x-route", "value": &index } }],
    });
    match rng.u8(..10) {
        0 => {
            route["direct_response"] = json!({ "status": pick(rng, &[200, 204, 404, 503]), "body": { "inline_string": index } });
        }
        1 => route["redirect"] = redirect(rng, &matcher),
        _ => route["route"] = forward(rng, &matcher),
    }
    if rng.u8(..5) == 0 {
        route["request_headers_to_add"] = json!([
            { "header": { "key": "x-added", "value": format!("by-{}", rng.u8(..9)) },
              "append_action": pick(rng, &["APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT",
                "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"]) },
            { "header": { "key": "x-user", "value": "%REQ(x-version)%-%PROTOCOL%" } },
        ]);
        route["request_headers_to_remove"] = json!(["x-canary"]);
    }
    route
}

fn forward(rng: &mut Rng, matcher: &Value) -> Value {
    let mut forward = json!({});
    match rng.u8(..12) {
        0 => forward["cluster_header"] = json!("x-user"),
        1 => {
            forward["cluster"] = json!("nowhere");
            forward["cluster_not_found_response_code"] = json!(pick(
                rng,
                &["SERVICE_UNAVAILABLE", "NOT_FOUND", "INTERNAL_SERVER_ERROR"]
            ));
        }
        2 => {
            forward["weighted_clusters"] = json!({ "clusters": [
                { "name": "a", "weight": 0 },
                { "name": pick(rng, &CLUSTERS), "weight": 7,
                  "request_headers_to_add": [{ "header": { "key": "x-added", "value": "weighted" } }],
                  "response_headers_to_remove": ["content-type"] },
            ] });
        }
        _ => forward["cluster"] = json!(pick(rng, &CLUSTERS)),
    }
    match rng.u8(..8) {
        0 if matcher.get("safe_regex").is_none() => {
            forward["prefix_rewrite"] = json!(pick(rng, &["/", "/new", "/new/"]));
        }
        1 => {
            forward["regex_rewrite"] = json!({
                "pattern": { "regex": pick(rng, &["^/([^/]+)/(.*)$", "a", "/+", "(x)?b"]) },
                "substitution": pick(rng, &["/r/\\1", "/(\\0)", "/\\\\z"]),
            });
            if forward["regex_rewrite"]["substitution"] == json!("/r/\\1") {
                forward["regex_rewrite"]["pattern"] = json!({ "regex": "^/([^/]+)/(.*)$" });
            }
        }
        _ => {}
    }
    match rng.u8(..10) {
        0 => forward["host_rewrite_literal"] = json!("literal.example"),
        1 => forward["auto_host_rewrite"] = json!(true),
        2 => forward["host_rewrite_header"] = json!("x-version"),
        _ => {}
    }
    if rng.u8(..4) == 0 {
        forward["append_x_forwarded_host"] = json!(true);
    }
    if rng.u8(..4) == 0 {
        forward["timeout"] = json!(pick(rng, &["0s", "7s", "1.5s"]));
    }
    forward
}

fn redirect(rng: &mut Rng, matcher: &Value) -> Value {
    let mut redirect = json!({});
    match rng.u8(..4) {
        0 => redirect["https_redirect"] = json!(true),
        1 => redirect["scheme_redirect"] = json!("ftp"),
        _ => {}
    }
    match rng.u8(..5) {
        0 => redirect["host_redirect"] = json!("new.example"),
        1 => redirect["port_redirect"] = json!(8443),
        2 => {
            redirect["host_redirect"] = json!("new.example");
            redirect["port_redirect"] = json!(80);
        }
        _ => {}
    }
    match rng.u8(..5) {
        0 => redirect["path_redirect"] = json!(pick(rng, &["/else", "/else?q=1"])),
        1 if matcher.get("safe_regex").is_none() => redirect["prefix_rewrite"] = json!("/moved"),
        2 => {
            redirect["regex_rewrite"] = json!({ "pattern": { "regex": "a" }, "substitution": "o" });
        }
        _ => {}
    }
    if rng.u8(..3) == 0 {
        redirect["strip_query"] = json!(true);
    }
    if rng.bool() {
        redirect["response_code"] = json!(pick(
            rng,
            &[
                "FOUND",
                "SEE_OTHER",
                "TEMPORARY_REDIRECT",
                "PERMANENT_REDIRECT"
            ]
        ));
    }
    redirect
}

/// A table: virtual hosts over shuffled domains, the last one for everything else.
fn table(rng: &mut Rng) -> Value {
    let mut domains = DOMAINS.to_vec();
    rng.shuffle(&mut domains);
    let mut hosts = Vec::new();
    let mut left = &domains[..];
    while !left.is_empty() {
        let (now, rest) = left.split_at(rng.usize(1..=left.len().min(3)));
        left = rest;
        hosts.push(now.to_vec());
    }
    if rng.u8(..4) > 0 {
        hosts.push(vec!["*"]);
    }
    let hosts: Vec<Value> = hosts
        .into_iter()
        .enumerate()
        .map(|(v, domains)| {
            let mut routes: Vec<Value> = (0..rng.usize(2..9))
                .map(|r| route(rng, format!("{v}.{r}")))
                .collect();
            if rng.bool() {
                routes.push(json!({ "name": "last", "match": { "prefix": "/" }, "route": { "cluster": "d" } }));
            }
            let mut host = json!({ "name": format!("v{v}"), "domains": domains, "routes": routes });
            if rng.u8(..4) == 0 {
                host["request_headers_to_add"] =
                    json!([{ "header": { "key": "x-added", "value": "host" } }]);
                host["response_headers_to_add"] =
                    json!([{ "header": { "key": "x-route", "value": "host" },
                             "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }]);
            }
            if rng.u8(..6) == 0 {
                host["include_request_attempt_count"] = json!(true);
                host["include_attempt_count_in_response"] = json!(true);
            }
            host
        })
        .collect();
    json!({
        "name": "table",
        "virtual_hosts": hosts,
        "validate_clusters": false,
        "ignore_port_in_host_matching": rng.bool(),
        "most_specific_header_mutations_wins": rng.bool(),
        "request_headers_to_add": [{ "header": { "key": "x-added", "value": "all" } }],
        "response_headers_to_remove": ["x-nothing"],
    })
}

fn request(rng: &mut Rng) -> Vec<u8> {
    let method = pick(rng, &METHODS);
    let path = pick(rng, &PATHS);
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\n",
        pick(rng, &HOSTS)
    );
    let mut headers = HEADERS.to_vec();
    rng.shuffle(&mut headers);
    for header in &headers[..rng.usize(..4)] {
        text.push_str(header);
        text.push_str("\r\n");
    }
    if matches!(*method, "POST" | "PUT") {
        text.push_str("Content-Length: 5\r\n\r\nhello");
    } else {
        text.push_str("\r\n");
    }
    text.into_bytes()
}

#[test]
fn every_request_takes_the_route_it_takes_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let mut oracle: Option<Oracle> = None;
    let (mut asked, mut different) = (0, Vec::new());
    for seed in 0..TABLES {
        let mut rng = Rng::with_seed(seed);
        let setup = Setup::routes(table(&mut rng), &CLUSTERS);
        match &mut oracle {
            Some(oracle) => oracle.reconfigure(&setup)?,
            None => oracle = Some(Oracle::start(&setup)?),
        }
        let oracle = oracle.as_mut().expect("it was just started");
        for _ in 0..REQUESTS {
            let compared = oracle.ask(&request(&mut rng))?;
            asked += 1;
            if !compared.same() {
                different.push(format!("table {seed}, {compared}"));
            }
        }
    }
    println!("{asked} requests, {} differ", different.len());
    ensure!(
        different.is_empty(),
        "{} of {asked} requests differ from Envoy:\n{}",
        different.len(),
        different[..different.len().min(12)].join("\n")
    );
    Ok(())
}
