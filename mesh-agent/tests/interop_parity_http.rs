//! HTTP beyond the choice of a route, asked of Envoy and of the agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::oracle::{Compared, Oracle, Seen, SeenResponse, Setup};
use mesh_testbed::wire::End;
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

fn routes(routes: Value) -> Setup {
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] });
    Setup::routes(table, &["a", "raw"])
}

fn all_same(compared: Vec<Compared>) -> Result<()> {
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

/// Headers that came several times.
#[test]
fn repeated_headers_match_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let matchers = [
        json!({ "string_match": { "exact": "5" } }),
        json!({ "string_match": { "exact": "5,5x" } }),
        json!({ "string_match": { "prefix": "5," } }),
        json!({ "string_match": { "suffix": "5x" } }),
        json!({ "string_match": { "safe_regex": { "regex": "5" } } }),
        json!({ "range_match": { "start": -5, "end": 10 } }),
        json!({ "present_match": true }),
        json!({ "present_match": false }),
        json!({ "exact_match": "5" }),
    ];
    let mut table = Vec::new();
    for (i, matcher) in matchers.iter().enumerate() {
        for invert in [false, true] {
            for missing in [false, true] {
                let mut matcher = matcher.clone();
                matcher["name"] = json!("x-number");
                matcher["invert_match"] = json!(invert);
                matcher["treat_missing_header_as_empty"] = json!(missing);
                table.push(json!({
                    "match": { "path": format!("/{i}/{invert}/{missing}"), "headers": [matcher] },
                    "direct_response": { "status": 200 },
                }));
            }
        }
    }
    let paths: Vec<String> = table
        .iter()
        .map(|route| {
            route["match"]["path"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    let mut oracle = Oracle::start(&routes(json!(table)))?;
    let mut compared = Vec::new();
    for values in [
        &["5", "5x"][..],
        &["5x", "10", "5"],
        &["5"],
        &["5x"],
        &[""],
        &[],
        &["", "5"],
        &["7", "8"],
        &["11"],
        &[" 5 "],
    ] {
        let headers: String = values
            .iter()
            .map(|value| format!("x-number: {value}\r\n"))
            .collect();
        for path in &paths {
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    all_same(compared)
}

/// How an answer of ours stands to Envoy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The same.
    Same,
    /// Envoy takes it, we refuse it.
    Stricter,
    /// Neither.
    Other,
}

/// What differs, each with its reason in `docs/envoy-parity.md`.
const KNOWN: &[(&str, Kind)] = &[
    ("a folded header", Kind::Stricter),
    ("folded transfer-encoding", Kind::Stricter),
    ("bare LF", Kind::Stricter),
    ("bare LF after a header", Kind::Stricter),
    ("bare CR in a value", Kind::Stricter),
    ("a chunk longer than said", Kind::Stricter),
    ("a chunk ended by LF", Kind::Stricter),
    ("two hosts", Kind::Stricter),
    ("two spaces", Kind::Stricter),
];

/// No request of the connection reached an upstream, and it was closed.
fn refused(seen: &Seen) -> bool {
    let refusal = |response: &SeenResponse| matches!(response.status, 400 | 404 | 426 | 431 | 501);
    seen.responses.len() <= 1 && seen.responses.iter().all(refusal) && (seen.end != End::Silent)
}

/// Requests as attackers and broken clients send them. `POST /next` stands behind many of them:
/// who reads the one before it wrongly answers it, or forwards a part of it as a request.
#[test]
fn malformed_requests_are_answered_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let next = "GET /next HTTP/1.1\r\nHost: h\r\n\r\n";
    let chunked = "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = "x".repeat(70_000);
    let many = "x: y\r\n".repeat(150);
    let cases: Vec<(&str, String)> = vec![
        ("both lengths, CL.TE", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{next}")),
        ("both lengths, TE.CL", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n8\r\nSMUGGLED\r\n0\r\n\r\n{next}")),
        ("two lengths", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello{next}")),
        ("two equal lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into()),
        ("a list of lengths", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello{next}")),
        ("a negative length", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n{next}")),
        ("a signed length", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello{next}")),
        ("a hexadecimal length", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello{next}")),
        ("a length too large", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n{next}")),
        ("an empty length", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n{next}")),
        ("space before the colon", format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\nhello{next}")),
        ("space before the colon of transfer-encoding", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{next}")),
        ("a folded header", format!("GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n{next}")),
        ("a folded first header", format!("GET / HTTP/1.1\r\n Host: h\r\n\r\n{next}")),
        ("folded transfer-encoding", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{next}")),
        ("bare LF", "GET / HTTP/1.1\nHost: h\n\n".into()),
        ("bare LF after a header", "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n".into()),
        ("bare CR in a value", format!("GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n{next}")),
        ("a NUL in a value", format!("GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n{next}")),
        ("a control character in a value", format!("GET / HTTP/1.1\r\nHost: h\r\nX: a\x01b\r\n\r\n{next}")),
        ("a name with a space", format!("GET / HTTP/1.1\r\nHost: h\r\nX Y: a\r\n\r\n{next}")),
        ("a name with a bracket", format!("GET / HTTP/1.1\r\nHost: h\r\nX(Y: a\r\n\r\n{next}")),
        ("no name", format!("GET / HTTP/1.1\r\nHost: h\r\n: a\r\n\r\n{next}")),
        ("no colon", format!("GET / HTTP/1.1\r\nHost: h\r\nabc\r\n\r\n{next}")),
        ("transfer-encoding identity", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n{next}")),
        ("transfer-encoding chunked twice", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{next}")),
        ("transfer-encoding gzip, chunked", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{next}")),
        ("transfer-encoding xchunked", format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{next}")),
        ("transfer-encoding with a tab", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\tchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into()),
        ("transfer-encoding in capitals", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into()),
        ("chunks", format!("{chunked}3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")),
        ("a chunk extension", format!("{chunked}3;a=b\r\nabc\r\n0\r\n\r\n")),
        ("trailers", format!("{chunked}3\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n")),
        ("a chunk size that is not a number", format!("{chunked}zz\r\nabc\r\n0\r\n\r\n{next}")),
        ("a negative chunk size", format!("{chunked}-3\r\nabc\r\n0\r\n\r\n{next}")),
        ("a chunk size with 0x", format!("{chunked}0x3\r\nabc\r\n0\r\n\r\n{next}")),
        ("a chunk size with a space before", format!("{chunked} 3\r\nabc\r\n0\r\n\r\n{next}")),
        ("a chunk size with a space behind", format!("{chunked}3 \r\nabc\r\n0\r\n\r\n")),
        ("a chunk size too large", format!("{chunked}fffffffffffffffff\r\nabc\r\n0\r\n\r\n{next}")),
        ("a chunk longer than said", format!("{chunked}3\r\nabcd\r\n0\r\n\r\n{next}")),
        ("a chunk size ended by LF", format!("{chunked}3\nabc\r\n0\r\n\r\n{next}")),
        ("a chunk ended by LF", format!("{chunked}3\r\nabc\n0\r\n\r\n{next}")),
        ("an empty chunk size", format!("{chunked}\r\nabc\r\n0\r\n\r\n{next}")),
        ("a header too long", format!("GET / HTTP/1.1\r\nHost: h\r\nX: {long}\r\n\r\n{next}")),
        ("a path too long", format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("too many headers", format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n{next}")),
        ("no host", format!("GET / HTTP/1.1\r\n\r\n{next}")),
        ("two hosts", format!("GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n{next}")),
        ("an empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".into()),
        ("a host with a path", "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n".into()),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n".into()),
        ("a host with a space", format!("GET / HTTP/1.1\r\nHost: a b\r\n\r\n{next}")),
        ("an absolute target", "GET http://other/x?y HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("an absolute target without a path", "GET http://other HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("an absolute target of https", "GET https://other/x HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a relative target", format!("GET x HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("a fragment", format!("GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("a target with a NUL", format!("GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("a target with UTF-8", "GET /ä HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a target with brackets", "GET /a<b>{c}|`^\\ HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a target with a space", format!("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("two spaces", format!("GET  / HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("no target", format!("GET HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("HTTP/0.9", "GET /\r\n".into()),
        ("HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".into()),
        ("HTTP/1.2", format!("GET / HTTP/1.2\r\nHost: h\r\n\r\n{next}")),
        ("HTTP/2.0 in a request line", format!("GET / HTTP/2.0\r\nHost: h\r\n\r\n{next}")),
        ("HTTP/3.7", format!("GET / HTTP/3.7\r\nHost: h\r\n\r\n{next}")),
        ("http/1.1 in small letters", format!("GET / http/1.1\r\nHost: h\r\n\r\n{next}")),
        ("an unknown method", "BREW / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a method in small letters", "get / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("a method with a bracket", format!("GE(T / HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("no method", format!(" / HTTP/1.1\r\nHost: h\r\n\r\n{next}")),
        ("empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("garbage", "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".into()),
        ("CONNECT without a route for it", format!("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n{next}")),
        ("TRACE", "TRACE / HTTP/1.1\r\nHost: h\r\n\r\n".into()),
        ("GET with a body", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello".into()),
        ("a name with an underscore", "GET / HTTP/1.1\r\nHost: h\r\nContent_Length: 5\r\n\r\n".into()),
        ("UTF-8 in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: \u{e4}\r\n\r\n".into()),
    ];
    let setup = routes(json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }]));
    let mut oracle = Oracle::start(&setup.hcm("delayed_close_timeout", json!("0.05s")))?;
    oracle.set_patience(Duration::from_millis(1500));
    let mut wrong = Vec::new();
    for (what, request) in &cases {
        let bytes = mesh_testbed::wire::bytes_of(request);
        let methods: &[&str] = if request.contains("/next") {
            &["GET", "GET"]
        } else {
            &["GET"]
        };
        let one = oracle.say(&[&bytes], methods)?;
        let kind = if one.same() {
            Kind::Same
        } else if refused(&one.agent) {
            if refused(&one.envoy) {
                Kind::Other
            } else {
                Kind::Stricter
            }
        } else {
            Kind::Other
        };
        let known = KNOWN
            .iter()
            .find(|(name, _)| name == what)
            .map_or(Kind::Same, |(_, kind)| *kind);
        if kind != known {
            wrong.push(format!("{what}: {kind:?}, not {known:?}\n{one}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let page = oracle.agent.get("/stats/prometheus")?.body;
    ensure!(oracle.agent.get("/ready")?.status == 200, "{page}");
    Ok(())
}

fn through(setup: &Setup, requests: &[String]) -> Result<()> {
    let mut oracle = Oracle::start(setup)?;
    oracle.set_patience(Duration::from_secs(3));
    let compared = requests
        .iter()
        .map(|request| oracle.ask(request.as_bytes()))
        .collect::<Result<_>>()?;
    all_same(compared)
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n")
}

/// Requests of every shape, and what becomes of their headers on the way.
#[test]
fn requests_are_passed_on_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let setup = routes(json!([
        { "match": { "prefix": "/slow" }, "route": { "cluster": "a", "timeout": "0.2s" } },
        { "match": { "prefix": "/forever" }, "route": { "cluster": "a", "timeout": "0s" } },
        { "match": { "prefix": "/ws" },
          "route": { "cluster": "a", "upgrade_configs": [{ "upgrade_type": "websocket" }] } },
        { "match": { "prefix": "/off" }, "route": { "cluster": "a",
          "upgrade_configs": [{ "upgrade_type": "Foo", "enabled": false }] } },
        { "match": { "prefix": "/direct" }, "direct_response": { "status": 200, "body": { "inline_string": "here" } } },
        { "match": { "prefix": "/" }, "route": { "cluster": "a" } },
    ]))
    .hcm("upgrade_configs", json!([{ "upgrade_type": "foo" }]));
    let post = |path: &str, headers: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )
    };
    let upgrade =
        |path: &str, to: &str| get(path, &format!("Connection: Upgrade\r\nUpgrade: {to}\r\n"));
    let requests = [
        get("/", ""),
        get("/", "Connection: close\r\n"),
        get("/", "Connection: keep-alive, x-a\r\nX-A: 1\r\nKeep-Alive: timeout=5\r\n"),
        get("/", "Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 2\r\n"),
        get("/", "TE: trailers\r\n"),
        get("/", "TE: gzip\r\n"),
        get("/", "TE: trailers, deflate;q=0.5\r\nConnection: te\r\n"),
        get("/", "Proxy-Connection: keep-alive\r\n"),
        get("/", "Upgrade: websocket\r\n"),
        get("/", "X-Request-Id: mine\r\n"),
        get("/", "X-Forwarded-Proto: https\r\n"),
        get("/", "X-Forwarded-For: 1.2.3.4\r\n"),
        get("/", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 10.0.0.9\r\n"),
        get("/", "X-Envoy-Internal: true\r\nX-Envoy-Retry-On: 5xx\r\nX-Envoy-Max-Retries: 3\r\n"),
        get("/", "X-Envoy-Upstream-Rq-Timeout-Ms: 100\r\nx-echo-delay-ms: 400\r\n"),
        get("/", "X-Envoy-Expected-Rq-Timeout-Ms: 7\r\n"),
        get("/", "X-Envoy-Original-Path: /x\r\nX-Envoy-Original-Host: y\r\n"),
        get("/", "Cookie: a=b\r\nCookie: c=d\r\n"),
        get("/", "Accept: a\r\nAccept: b\r\nAccept-Encoding: gzip\r\nAccept-Encoding: br\r\n"),
        get("/", "Cache-Control: no-cache\r\nCache-Control: no-store\r\n"),
        get("/", "Authorization: a\r\nAuthorization: b\r\nUser-Agent: c\r\nUser-Agent: d\r\n"),
        get("/", "Expect: 100-continue\r\n"),
        get("/", "Date: yesterday\r\nServer: me\r\nVia: 1.0 x\r\n"),
        get("/", "x-echo-status: 204\r\n"),
        get("/", "x-echo-status: 304\r\n"),
        get("/", "x-echo-status: 404\r\n"),
        get("/", "x-echo-status: 500\r\n"),
        get("/", "x-echo-status: 503\r\n"),
        get("/", "x-echo-bytes: 0\r\n"),
        get("/", "x-echo-bytes: 200000\r\n"),
        "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n".into(),
        "HEAD /direct HTTP/1.1\r\nHost: h\r\n\r\n".into(),
        "HEAD /none HTTP/1.1\r\nHost: h\r\nx-echo-bytes: 10\r\n\r\n".into(),
        "OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n".into(),
        "DELETE / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi".into(),
        "PUT / HTTP/1.1\r\nHost: h\r\n\r\n".into(),
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        post("/", "", ""),
        post("/", "", "hello"),
        post("/", "x-echo: body\r\n", "hello"),
        post("/", "x-echo: body\r\n", &"x".repeat(100_000)),
        "POST / HTTP/1.1\r\nHost: h\r\nx-echo: body\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(),
        post("/direct", "", "hello"),
        post("/", "Expect: 100-continue\r\n", "hello"),
        post("/", "Content-Type: application/grpc\r\n", "hello"),
        get("/slow", "x-echo-delay-ms: 1000\r\n"),
        get("/slow", "x-echo-delay-ms: 1000\r\nContent-Type: application/grpc\r\n"),
        get("/forever", "x-echo-delay-ms: 300\r\n"),
        upgrade("/ws", "websocket"),
        upgrade("/ws", "WebSocket"),
        upgrade("/ws", "foo"),
        upgrade("/ws", "bar"),
        upgrade("/", "websocket"),
        upgrade("/", "foo"),
        upgrade("/off", "foo"),
        upgrade("/direct", "foo"),
        upgrade("/direct", "h2c"),
        upgrade("/", "h2c"),
        upgrade("/", "TLS/1.2"),
    ];
    through(&setup, &requests)
}

/// Upstreams that answer wrongly, late or not at all.
#[test]
fn upstreams_are_passed_on_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let setup = routes(json!([
        { "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
        { "match": { "prefix": "/empty" }, "route": { "cluster": "empty" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "raw", "timeout": "1s" } },
    ]));
    let mut setup = setup;
    let nobody = json!({ "load_assignment": { "cluster_name": "dead", "endpoints": [{ "lb_endpoints": [
        { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 9 } } } } ] }] } });
    setup.clusters.push(("dead".into(), nobody));
    let none = json!({ "load_assignment": { "cluster_name": "empty" } });
    setup.clusters.push(("empty".into(), none));
    let reply = |reply: &str, end: &str| {
        let encoded: String = reply.bytes().map(|byte| format!("%{byte:02X}")).collect();
        get("/", &format!("x-reply: {encoded}\r\nx-end: {end}\r\n"))
    };
    let ok = "HTTP/1.1 200 OK\r\n";
    let requests = [
        reply(&format!("{ok}content-length: 2\r\n\r\nhi"), "keep"),
        reply(&format!("{ok}content-length: 2\r\n\r\nhi"), "close"),
        reply(&format!("{ok}\r\nuntil the end"), "close"),
        reply(
            &format!("{ok}transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
            "keep",
        ),
        reply(
            &format!("{ok}transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-trailer: t\r\n\r\n"),
            "keep",
        ),
        reply(
            &format!("{ok}connection: close\r\nkeep-alive: x\r\ncontent-length: 0\r\n\r\n"),
            "close",
        ),
        reply(
            &format!(
                "{ok}date: then\r\nserver: them\r\nvia: x\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n"
            ),
            "keep",
        ),
        reply(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "keep",
        ),
        reply("HTTP/1.1 204 No Content\r\n\r\n", "keep"),
        reply(
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n",
            "keep",
        ),
        reply(
            "HTTP/1.1 299 Odd Words Here\r\ncontent-length: 0\r\n\r\n",
            "keep",
        ),
        reply("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", "close"),
        reply("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", "keep"),
        reply("garbage\r\n\r\n", "close"),
        reply("HTTP/1.1 abc OK\r\n\r\n", "close"),
        reply(
            &format!("{ok}content-length: 2\r\ncontent-length: 3\r\n\r\nhi"),
            "close",
        ),
        reply(&format!("{ok}content-length: x\r\n\r\nhi"), "close"),
        reply(&format!("{ok}bad header\r\n\r\n"), "close"),
        reply(&format!("{ok}x: {}\r\n\r\n", "y".repeat(80_000)), "close"),
        reply("", "close"),
        reply("", "reset"),
        reply("", "hang"),
        reply("HTTP/1.1 200 OK\r\ncontent-le", "close"),
        reply("HTTP/1.1 200 OK\r\ncontent-le", "hang"),
        get("/dead", ""),
        get("/dead", "Content-Type: application/grpc\r\n"),
        get("/empty", ""),
    ];
    through(&setup, &requests)
}

/// A response that breaks off is not made to look whole.
#[test]
fn broken_responses_stay_broken() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let setup = routes(json!([
        { "match": { "prefix": "/" }, "route": { "cluster": "raw", "timeout": "0.5s" } },
    ]));
    let mut oracle = Oracle::start(&setup)?;
    for (reply, end) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", "close"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", "reset"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", "hang"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhi",
            "close",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "close",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n",
            "hang",
        ),
    ] {
        let encoded: String = reply.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let one =
            oracle.ask(get("/", &format!("x-reply: {encoded}\r\nx-end: {end}\r\n")).as_bytes())?;
        for (who, seen) in [("envoy", &one.envoy), ("agent", &one.agent)] {
            let whole = seen.responses.iter().any(|response| response.whole);
            ensure!(
                !whole && matches!(seen.end, End::Closed | End::Reset),
                "{who} made {reply:?} ({end}) look whole, or left the client waiting: {seen:?}"
            );
        }
    }
    Ok(())
}
