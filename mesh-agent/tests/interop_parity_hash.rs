//! The same keys lead to the same endpoints as in Envoy.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::oracle::{Compared, Oracle, Setup};
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

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn endpoint(at: SocketAddr, weight: u32) -> Value {
    json!({
        "endpoint": { "hostname": format!("host-{weight}-{}", at.port()), "address": { "socket_address": {
            "address": at.ip().to_string(), "port_value": at.port() } } },
        "load_balancing_weight": weight,
    })
}

fn policy() -> Value {
    json!([
        { "header": { "header_name": "x-key" }, "terminal": true },
        { "header": { "header_name": "x-rewritten", "regex_rewrite": {
            "pattern": { "regex": "^([a-z]+).*" }, "substitution": "\\1" } } },
        { "query_parameter": { "name": "key" } },
        { "cookie": { "name": "session" } },
        { "cookie": { "name": "given", "ttl": "60s", "path": "/p", "attributes": [
            { "name": "SameSite", "value": "Lax" }, { "name": "Secure" }] } },
    ])
}

fn setup(live: &[SocketAddr], fields: &Value, weights: [u32; 5]) -> Setup {
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": "all", "hash_policy": policy() } } ] }] });
    let mut setup = Setup::routes(table, &NAMES);
    let endpoints: Vec<Value> = live
        .iter()
        .zip(weights)
        .map(|(at, weight)| endpoint(*at, weight))
        .collect();
    let mut cluster = fields.clone();
    cluster["load_assignment"] =
        json!({ "cluster_name": "all", "endpoints": [{ "lb_endpoints": endpoints }] });
    setup.clusters.push(("all".into(), cluster));
    setup
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
        different[..different.len().min(20)].join("\n")
    );
    Ok(())
}

#[test]
fn the_same_keys_lead_to_the_same_endpoints() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let plain = Setup::routes(json!({ "virtual_hosts": [] }), &NAMES);
    let mut oracle = Oracle::start(&plain)?;
    oracle.set_patience(Duration::from_secs(3));
    let live = NAMES
        .iter()
        .map(|name| oracle.upstream(name).context("an upstream"))
        .collect::<Result<Vec<_>>>()?;
    let ring = |fields: Value| json!({ "lb_policy": "RING_HASH", "ring_hash_lb_config": fields });
    let typed = |name: &str, config: Value| {
        let mut config = config;
        config["@type"] = json!(format!(
            "type.googleapis.com/envoy.extensions.load_balancing_policies.{name}"
        ));
        json!({ "load_balancing_policy": { "policies": [{ "typed_extension_config": {
            "name": "p", "typed_config": config } }] } })
    };
    let cases = [
        (ring(json!({})), [1, 1, 1, 1, 1]),
        (
            ring(json!({ "minimum_ring_size": 50, "hash_function": "MURMUR_HASH_2" })),
            [1, 2, 3, 4, 5],
        ),
        (
            json!({ "type": "STRICT_DNS", "lb_policy": "RING_HASH", "common_lb_config": { "consistent_hashing_lb_config": { "use_hostname_for_hashing": true } } }),
            [1, 2, 1, 2, 1],
        ),
        (json!({ "lb_policy": "MAGLEV" }), [1, 1, 1, 1, 1]),
        (
            json!({ "lb_policy": "MAGLEV", "maglev_lb_config": { "table_size": 10007 } }),
            [5, 4, 3, 2, 1],
        ),
        (
            typed("ring_hash.v3.RingHash", json!({ "minimum_ring_size": 200 })),
            [2, 2, 1, 1, 1],
        ),
        (typed("maglev.v3.Maglev", json!({})), [7, 1, 1, 1, 1]),
    ];
    for (fields, weights) in &cases {
        oracle.reconfigure(&setup(&live, fields, *weights))?;
        let mut compared = Vec::new();
        let mut ask = |oracle: &mut Oracle, path: &str, headers: &str| -> Result<()> {
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
            compared.push(oracle.ask(request.as_bytes())?);
            Ok(())
        };
        for i in 0..40 {
            ask(&mut oracle, "/", &format!("x-key: user-{i}\r\n"))?;
        }
        for i in 0..10 {
            let given = "cookie: given=\"x\"\r\n";
            ask(&mut oracle, "/", &format!("x-rewritten: abc{i}\r\n{given}"))?;
            ask(&mut oracle, &format!("/?a=b&key=k{i}"), given)?;
            ask(
                &mut oracle,
                "/",
                &format!("cookie: a=b; session=\"s{i}\"; given=y\r\n"),
            )?;
            ask(
                &mut oracle,
                &format!("/?key=k{i}"),
                &format!("x-rewritten: q{i}\r\ncookie: session=z; given=1\r\n"),
            )?;
            ask(&mut oracle, "/", &format!("x-key: b{i}\r\nx-key: a{i}\r\n"))?;
        }
        all_same(&compared).with_context(|| fields.to_string())?;
    }
    Ok(())
}

/// Who has no cookie is given one, and comes back to the same endpoint with it.
#[test]
fn a_cookie_is_given_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let plain = Setup::routes(json!({ "virtual_hosts": [] }), &NAMES);
    let mut oracle = Oracle::start(&plain)?;
    let live = NAMES
        .iter()
        .map(|name| oracle.upstream(name).context("an upstream"))
        .collect::<Result<Vec<_>>>()?;
    oracle.reconfigure(&setup(&live, &json!({ "lb_policy": "MAGLEV" }), [1; 5]))?;
    let compared = oracle.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    let form = |seen: &mesh_testbed::oracle::Seen| -> Option<String> {
        let response = seen.responses.first()?;
        let (_, cookie) = response
            .headers
            .iter()
            .find(|(name, _)| name == "set-cookie")?;
        let (name, rest) = cookie.split_once('"')?;
        let (value, rest) = rest.split_once('"')?;
        // Addresses and ports are hashed.
        let hex = value.len() == 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(format!("{name}{hex}{rest}"))
    };
    let envoys = form(&compared.envoy).context("Envoy gives a cookie")?;
    ensure!(
        form(&compared.agent).as_ref() == Some(&envoys),
        "{compared}\n{envoys}"
    );
    Ok(())
}
