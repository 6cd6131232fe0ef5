//! Copies of requests, path templates, subsets, and how long streams may stand still, asked of
//! Envoy and of the agent.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::oracle::{Compared, Oracle, Setup};
use mesh_testbed::wire::Echo;
use mesh_testbed::{Envoy, Talk, needs_root};
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

fn table(routes: Vec<Value>) -> Value {
    json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] })
}

fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: h.example:81\r\n{headers}\r\n").into_bytes()
}

/// What a mirror was asked, without what differs by nature.
fn told(echoes: Vec<Echo>) -> Vec<String> {
    echoes
        .into_iter()
        .map(|mut echo| {
            echo.headers.sort();
            let mut lines = vec![format!(
                "{} {} {:?} {}",
                echo.method, echo.path, echo.authority, echo.body_length
            )];
            for (name, value) in echo.headers {
                lines.push(match name.as_str() {
                    "x-request-id" | "x-forwarded-for" => name,
                    // The request's body is passed on as it comes in one, and whole in the other.
                    "transfer-encoding" | "content-length" => continue,
                    _ => format!("{name}: {value}"),
                });
            }
            lines.join("\n")
        })
        .collect()
}

#[test]
fn mirrors_get_what_envoys_mirrors_get() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let mirrored = |path: &str, mirrors: Value| {
        json!({ "match": { "path": path }, "route": {
            "cluster": "a", "timeout": "5s", "request_mirror_policies": mirrors,
            "prefix_rewrite": "/rewritten" } ,
            "request_headers_to_add": [{ "header": { "key": "x-added", "value": "yes" } }] })
    };
    let share = |numerator: u32| json!({ "default_value": { "numerator": numerator } });
    let setup = Setup::routes(
        table(vec![
            mirrored("/one", json!([{ "cluster": "b" }])),
            mirrored(
                "/two",
                json!([{ "cluster": "b" }, { "cluster": "c", "disable_shadow_host_suffix_append": true }]),
            ),
            mirrored(
                "/host",
                json!([{ "cluster": "b", "host_rewrite_literal": "other" }]),
            ),
            mirrored("/header", json!([{ "cluster_header": "x-to" }])),
            mirrored(
                "/never",
                json!([{ "cluster": "b", "runtime_fraction": share(0) }, { "cluster": "c" }]),
            ),
        ]),
        &["a", "b", "c"],
    );
    let mut oracle = Oracle::start(&setup)?;
    let mut direct = Talk::start(&oracle.client)?;
    let [envoy_at, agent_at] = oracle.ends();
    let big = "x".repeat(300_000);
    let cases: Vec<(&str, &str, &str, &[&str])> = vec![
        ("/one", "", "", &["b"]),
        ("/one", "", "hello", &["b"]),
        ("/one", "", &big, &["b"]),
        ("/two", "", "hello", &["b", "c"]),
        ("/host", "", "", &["b"]),
        ("/header", "x-to: c\r\n", "", &["c"]),
        ("/never", "", "", &["c"]),
    ];
    let mut compared = Vec::new();
    for (number, (path, headers, body, mirrors)) in cases.iter().enumerate() {
        let mut seen = Vec::new();
        for (who, at) in [("envoy", envoy_at), ("agent", agent_at)] {
            let key = format!("{who}-{number}");
            let request = format!(
                "POST {path}?q HTTP/1.1\r\nHost: h.example:81\r\nx-echo-remember: {key}\r\n{headers}content-length: {}\r\n\r\n{body}",
                body.len()
            );
            let answers = direct.ask(at, request.as_bytes())?;
            ensure!(
                answers
                    .responses
                    .first()
                    .is_some_and(|one| one.status == 200),
                "{path}: {answers:?}"
            );
            let mut copies = Vec::new();
            for mirror in *mirrors {
                let upstream = oracle.upstream(mirror).context("the mirror's upstream")?;
                let recall = format!("GET / HTTP/1.1\r\nHost: h\r\nx-echo-recall: {key}\r\n\r\n");
                let answers = direct.ask(upstream, recall.as_bytes())?;
                let body = &answers.responses.first().context("an answer")?.body;
                let echoes = told(serde_json::from_slice(body)?);
                ensure!(echoes.len() == 1, "{who} {path}: {mirror} got {echoes:?}");
                copies.push(echoes[0].replace(&key, "KEY"));
            }
            seen.push(copies);
        }
        ensure!(
            seen[0] == seen[1],
            "{path}: Envoy's mirrors got\n{}\nours\n{}",
            seen[0].join("\n--\n"),
            seen[1].join("\n--\n")
        );
        compared.push(oracle.ask(&get(path, headers))?);
    }
    all_same(&compared)
}

#[test]
fn path_templates_match_and_rewrite_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let template = |pattern: &str, rewrite: Option<&str>| {
        let mut route = json!({ "cluster": "a", "timeout": "0s" });
        if let Some(rewrite) = rewrite {
            route["path_rewrite_policy"] = json!({
                "name": "envoy.path.rewrite.uri_template.uri_template_rewriter",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
                    "path_template_rewrite": rewrite,
                },
            });
        }
        json!({ "name": pattern, "match": { "path_match_policy": {
            "name": "envoy.path.match.uri_template.uri_template_matcher",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "path_template": pattern,
            } } },
            "route": route,
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%ROUTE_NAME%" } }] })
    };
    let host_by_path = json!({ "match": { "prefix": "/host/" }, "route": {
        "cluster": "a", "timeout": "0s", "append_x_forwarded_host": true,
        "host_rewrite_path_regex": { "pattern": { "regex": "^/host/([^/]+).*$" }, "substitution": "\\1.example" } } });
    let setup = Setup::routes(
        table(vec![
            template("/exact", None),
            template("/one/*", Some("/uno")),
            template("/two/*/x", None),
            template("/v/{id}/{rest=**}", Some("/{rest}/of/{id}.html")),
            template("/n/{id=c/*}/end", Some("/got/{id}")),
            template("/any/**", None),
            template("/film/**.mpd", Some("/film")),
            template("/part/*.m4s", None),
            host_by_path,
        ]),
        &["a"],
    );
    let mut oracle = Oracle::start(&setup)?;
    let mut compared = Vec::new();
    for path in [
        "/exact",
        "/exact/",
        "/exact?q=1",
        "/EXACT",
        "/one/x",
        "/one/",
        "/one/x/y",
        "/one/a%20b?c=d",
        "/one/a=b",
        "/one/a*b",
        "/one/a'b",
        "/two/1/x",
        "/two/1/2/x",
        "/v/1/",
        "/v/1/a",
        "/v/1/a/b?x",
        "/v//a",
        "/v/1",
        "/n/c/7/end",
        "/n/d/7/end",
        "/any/",
        "/any",
        "/any/x/y/z",
        "/any//",
        "/film/a/b.mpd",
        "/film/ampd",
        "/film/.mpd",
        "/part/1.m4s",
        "/part/.m4s",
        "/host/blue/x?y",
        "/host/",
        "/",
    ] {
        compared.push(oracle.ask(&get(path, ""))?);
    }
    all_same(&compared)
}

/// Streams that stand still, requests that do not arrive, and heads that do not end.
#[test]
fn streams_stand_still_as_long_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let route = |path: &str, fields: Value| {
        let mut route = fields;
        route["cluster"] = json!("a");
        route["timeout"] = json!("0s");
        json!({ "match": { "path": path }, "route": route,
            "response_headers_to_add": [{ "header": { "key": "x-by", "value": "route" } }] })
    };
    let table = table(vec![
        route("/all", json!({})),
        route("/short", json!({ "idle_timeout": "0.15s" })),
        route("/long", json!({ "idle_timeout": "3s" })),
        route("/never", json!({ "idle_timeout": "0s" })),
    ]);
    let setup = Setup::routes(table, &["a"])
        .hcm("stream_idle_timeout", json!("0.4s"))
        .hcm("via", json!("mesh"));
    let mut oracle = Oracle::start(&setup)?;
    oracle.set_patience(Duration::from_secs(3));
    let mut compared = Vec::new();
    for path in ["/all", "/short", "/long", "/never"] {
        for headers in [
            "",
            "via: 1.1 other\r\n",
            "x-echo-delay-ms: 250\r\n",
            "x-echo-delay-ms: 800\r\n",
            "x-echo-delay-ms: 800\r\ncontent-type: application/grpc\r\n",
        ] {
            compared.push(oracle.ask(&get(path, headers))?);
        }
        let half = format!("POST {path} HTTP/1.1\r\nHost: h\r\ncontent-length: 9\r\n\r\nhalf");
        if matches!(path, "/all" | "/short") {
            compared.push(oracle.ask(half.as_bytes())?);
        }
    }
    all_same(&compared)?;
    let setup = setup
        .hcm("stream_idle_timeout", json!("0s"))
        .hcm("request_timeout", json!("0.3s"));
    oracle.reconfigure(&setup)?;
    oracle.set_patience(Duration::from_secs(3));
    let mut compared = Vec::new();
    for request in [
        "GET /all HTTP/1.1\r\nHost: h\r\nx-echo-delay-ms: 600\r\n\r\n",
        "POST /all HTTP/1.1\r\nHost: h\r\ncontent-length: 9\r\n\r\nhalf",
        "POST /all HTTP/1.1\r\nHost: h\r\ncontent-length: 4\r\nx-echo-delay-ms: 600\r\n\r\nfull",
        "GET /all HTTP/1.1\r\nHost: h\r\n",
    ] {
        compared.push(oracle.ask(request.as_bytes())?);
    }
    all_same(&compared)?;
    let setup = setup
        .hcm("request_timeout", json!("0s"))
        .hcm("request_headers_timeout", json!("0.2s"));
    oracle.reconfigure(&setup)?;
    oracle.set_patience(Duration::from_secs(3));
    let mut compared = Vec::new();
    for request in ["GET /all HTTP/1.1\r\nHost: h\r\n", "GET /a"] {
        compared.push(oracle.ask(request.as_bytes())?);
    }
    all_same(&compared)
}

/// What becomes of headers that a connection manager has an opinion on.
#[test]
fn hosts_and_underscores_are_treated_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let all = table(vec![
        json!({ "match": { "prefix": "/" }, "route": { "cluster": "a", "timeout": "0s" } }),
    ]);
    let mut oracle: Option<Oracle> = None;
    let mut compared = Vec::new();
    for action in ["ALLOW", "REJECT_REQUEST", "DROP_HEADER"] {
        let setup = Setup::routes(all.clone(), &["a"])
            .hcm(
                "common_http_protocol_options",
                json!({ "headers_with_underscores_action": action }),
            )
            .hcm("strip_trailing_host_dot", json!(true));
        match &mut oracle {
            Some(oracle) => oracle.reconfigure(&setup)?,
            None => oracle = Some(Oracle::start(&setup)?),
        }
        let oracle = oracle.as_mut().expect("it was just started");
        for request in [
            "GET / HTTP/1.1\r\nHost: h\r\nx_y: 1\r\nx-y: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h.\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h.:81\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h..\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: .\r\n\r\n",
        ] {
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    all_same(&compared)
}

fn endpoint(at: std::net::SocketAddr, metadata: Value) -> Value {
    json!({
        "endpoint": { "address": { "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } } },
        "metadata": { "filter_metadata": { "envoy.lb": metadata } },
    })
}

/// A subset with one endpoint leads there each time; who is asked for what nobody has goes where
/// the fallbacks say.
#[test]
fn subsets_are_chosen_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let start = Setup::routes(
        table(vec![
            json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" } }),
        ]),
        &["a", "b", "c"],
    );
    let mut oracle = Oracle::start(&start)?;
    let at = |oracle: &Oracle, name: &str| oracle.upstream(name).context("an upstream");
    let endpoints = json!([
        endpoint(
            at(&oracle, "a")?,
            json!({ "version": "1", "stage": "prod", "canary": false })
        ),
        endpoint(
            at(&oracle, "b")?,
            json!({ "version": "2", "stage": "prod", "canary": true, "tags": ["x", "y"] })
        ),
        endpoint(
            at(&oracle, "c")?,
            json!({ "version": "3", "stage": "dev", "number": 7 })
        ),
    ]);
    let wanted: [(&str, Value); 9] = [
        ("/one", json!({ "version": "1" })),
        ("/two", json!({ "version": "2", "stage": "prod" })),
        ("/three", json!({ "stage": "dev", "version": "3" })),
        ("/nobody", json!({ "version": "9" })),
        ("/keys", json!({ "version": "9", "stage": "dev" })),
        ("/unknown", json!({ "colour": "red" })),
        ("/bool", json!({ "canary": true })),
        ("/number", json!({ "number": 7 })),
        ("/tag", json!({ "tags": "y" })),
    ];
    let matching = |metadata: &Value| json!({ "filter_metadata": { "envoy.lb": metadata } });
    let mut routes: Vec<Value> = wanted
        .iter()
        .map(|(path, metadata)| {
            json!({ "match": { "path": path }, "route": {
                "cluster": "parts", "timeout": "0s", "metadata_match": matching(metadata) } })
        })
        .collect();
    routes.push(json!({ "match": { "path": "/weighted" }, "route": {
        "timeout": "0s",
        "metadata_match": matching(&json!({ "stage": "prod", "version": "1" })),
        "weighted_clusters": { "clusters": [
            { "name": "parts", "weight": 1, "metadata_match": matching(&json!({ "version": "2" })) } ] } } }));
    routes.push(
        json!({ "match": { "path": "/plain" }, "route": { "cluster": "parts", "timeout": "0s" } }),
    );
    let selectors = json!([
        { "keys": ["version"] },
        { "keys": ["stage", "version"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["stage"] },
        { "keys": ["stage"], "fallback_policy": "NO_FALLBACK" },
        { "keys": ["canary"] },
        { "keys": ["number"], "fallback_policy": "DEFAULT_SUBSET" },
        { "keys": ["tags"] },
    ]);
    let mut compared = Vec::new();
    for fields in [
        json!({}),
        json!({ "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "version": "2" } }),
        json!({ "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "version": "3" }, "list_as_any": true }),
    ] {
        let mut subsets = fields;
        subsets["subset_selectors"] = selectors.clone();
        let mut setup = Setup::routes(table(routes.clone()), &["a", "b", "c"]);
        setup.clusters.push((
            "parts".into(),
            json!({
                "lb_subset_config": subsets,
                "load_assignment": { "cluster_name": "parts", "endpoints": [{ "lb_endpoints": endpoints }] },
            }),
        ));
        oracle.reconfigure(&setup)?;
        for (path, _) in &wanted {
            for _ in 0..3 {
                compared.push(oracle.ask(&get(path, ""))?);
            }
        }
        compared.push(oracle.ask(&get("/weighted", ""))?);
        compared.push(oracle.ask(&get("/plain", ""))?);
    }
    all_same(&compared)
}
