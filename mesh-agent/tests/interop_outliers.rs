//! Endpoints that fail are left alone: the same requests through Envoy and through the agent, and
//! who answered them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::oracle::{Oracle, SeenBody, Setup};
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

/// What a hundred requests came to: answers by status and upstream.
type Tally = BTreeMap<String, u32>;

fn tally(oracle: &mut Oracle, request: &str, count: u32) -> Result<[Tally; 2]> {
    let mut tallies = [Tally::new(), Tally::new()];
    for _ in 0..count {
        let compared = oracle.ask(request.as_bytes())?;
        for (seen, tally) in [compared.envoy, compared.agent]
            .into_iter()
            .zip(&mut tallies)
        {
            let response = seen.responses.first().context("no answer")?;
            let who = match &response.body {
                SeenBody::Echo(asked) => asked.name.clone(),
                SeenBody::Text(text) => text.clone(),
            };
            *tally
                .entry(format!("{} {who}", response.status))
                .or_default() += 1;
        }
    }
    Ok(tallies)
}

fn endpoint(at: SocketAddr) -> Value {
    json!({ "endpoint": { "address": { "socket_address": {
        "address": at.ip().to_string(), "port_value": at.port() } } } })
}

/// One live endpoint and two that nobody listens at.
fn setup(live: SocketAddr, outlier: &Value, fields: &Value) -> Setup {
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": "both" } } ] }] });
    let mut setup = Setup::routes(table, &["a"]);
    let dead = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut cluster = json!({
        "outlier_detection": outlier,
        "load_assignment": { "cluster_name": "both", "endpoints": [{
            "lb_endpoints": [endpoint(live), endpoint(dead(9)), endpoint(dead(11))] }] },
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        cluster[name] = value.clone();
    }
    setup.clusters.push(("both".into(), cluster));
    setup
}

/// The dead endpoints are ejected after the same number of failures, and no sooner.
#[test]
fn failing_endpoints_are_ejected_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let plain = Setup::routes(json!({ "virtual_hosts": [] }), &["a"]);
    let mut oracle = Oracle::start(&plain)?;
    oracle.set_patience(Duration::from_secs(3));
    let live = oracle.upstream("a").context("the upstream")?;
    let get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let long = json!("1000s");
    let cases = [
        // Both are ejected after three failures each.
        (
            json!({ "consecutive_5xx": 3, "max_ejection_percent": 100, "base_ejection_time": long }),
            json!({}),
            true,
        ),
        // Only one of three may be.
        (
            json!({ "consecutive_5xx": 3, "max_ejection_percent": 34, "base_ejection_time": long }),
            json!({}),
            true,
        ),
        // None may be.
        (
            json!({ "consecutive_5xx": 3, "base_ejection_time": long }),
            json!({}),
            true,
        ),
        // One may be whatever the share.
        (
            json!({ "consecutive_5xx": 3, "always_eject_one_host": true, "base_ejection_time": long }),
            json!({}),
            true,
        ),
        // It is looked at, not done.
        (
            json!({ "consecutive_5xx": 3, "enforcing_consecutive_5xx": 0, "max_ejection_percent": 100 }),
            json!({}),
            true,
        ),
        // Failures without a response count by themselves.
        (
            json!({ "consecutive_5xx": 1, "consecutive_local_origin_failure": 4, "split_external_local_origin_errors": true,
                 "max_ejection_percent": 100, "base_ejection_time": long }),
            json!({}),
            true,
        ),
        (
            json!({ "consecutive_5xx": 0, "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100,
                 "max_ejection_percent": 100, "base_ejection_time": long }),
            json!({}),
            true,
        ),
        // Two of three are sick: panic is off, so the one that is well serves.
        (
            json!({ "consecutive_5xx": 2, "max_ejection_percent": 100, "base_ejection_time": long }),
            json!({ "common_lb_config": { "update_merge_window": "0s", "healthy_panic_threshold": { "value": 0 } } }),
            true,
        ),
    ];
    for (outlier, fields, same) in cases {
        let no_panic = json!({ "common_lb_config": { "update_merge_window": "0s", "healthy_panic_threshold": { "value": 0 } } });
        let fields = if fields == json!({}) {
            no_panic
        } else {
            fields
        };
        oracle.reconfigure(&setup(live, &outlier, &fields))?;
        let [envoy, agent] = tally(&mut oracle, get, 60)?;
        let failed = |tally: &Tally| -> u32 {
            tally
                .iter()
                .filter(|(what, _)| what.starts_with("503"))
                .map(|(_, count)| *count)
                .sum()
        };
        // Turns begin anywhere: a failure more or less is chance when the rest go on failing.
        let (envoys, agents) = (failed(&envoy), failed(&agent));
        let near = envoys.abs_diff(agents) <= if envoys > 20 { 4 } else { 0 };
        ensure!(
            near == same,
            "{outlier}: envoy {envoy:?}, agent {agent:?}\n{}",
            oracle.envoys_page("/clusters")?.body
        );
    }
    Ok(())
}

/// Who was ejected comes back when its time is over, and is seen meanwhile.
#[test]
fn an_ejection_ends() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let plain = Setup::routes(json!({ "virtual_hosts": [] }), &["a"]);
    let mut oracle = Oracle::start(&plain)?;
    let live = oracle.upstream("a").context("the upstream")?;
    let outlier = json!({ "consecutive_5xx": 2, "max_ejection_percent": 100, "interval": "0.1s", "base_ejection_time": "0.5s" });
    let fields = json!({ "common_lb_config": { "update_merge_window": "0s", "healthy_panic_threshold": { "value": 0 } } });
    oracle.reconfigure(&setup(live, &outlier, &fields))?;
    let get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    tally(&mut oracle, get, 12)?;
    let page = oracle.agent.get("/clusters")?.body;
    ensure!(
        page.contains("127.0.0.1:9::health_flags::/failed_outlier_check"),
        "{page}"
    );
    mesh_testbed::eventually("the endpoints are back", Duration::from_secs(5), || {
        let page = oracle
            .agent
            .get("/clusters")
            .map(|page| page.body)
            .unwrap_or_default();
        page.contains("127.0.0.1:9::health_flags::healthy")
    })?;
    let [_, agent] = tally(&mut oracle, get, 3)?;
    ensure!(
        agent.keys().any(|what| what.starts_with("503")),
        "{agent:?}"
    );
    Ok(())
}
