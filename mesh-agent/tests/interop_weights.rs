//! Endpoints that report their load get requests by it, as through Envoy.

#[path = "common/filters.rs"]
#[expect(dead_code, reason = "shared with the tests of filters")]
mod filters;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use filters::envoy;
use mesh_testbed::oracle::{Oracle, Setup};
use mesh_testbed::wire::Echo;
use mesh_testbed::{Talk, needs_root};
use serde_json::{Value, json};

const POLICY: &str = "type.googleapis.com/envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";
const ROUND: usize = 140;

/// Who answered how many of a round's requests.
fn round(
    talk: &mut Talk,
    to: std::net::SocketAddr,
    reports: &str,
) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\n{reports}\r\n");
    for _ in 0..ROUND {
        let answers = talk.ask(to, request.as_bytes())?;
        let response = answers.responses.first().context("an answer")?;
        let echo: Echo = serde_json::from_slice(&response.body)?;
        *counts.entry(echo.name).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn reports_decide_over_shares_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": "a" } } ] }] });
    let mut oracle = Oracle::start(&Setup::routes(table, &["a", "b", "c"]))?;
    let endpoints: Vec<Value> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let at = oracle.upstream(name).context("an upstream")?;
            Ok(json!({ "endpoint": { "address": { "socket_address": {
                "address": at.ip().to_string(), "port_value": at.port() } } } }))
        })
        .collect::<Result<_>>()?;
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "prefix": "/" }, "route": { "cluster": "weighted" } } ] }] });
    let mut setup = Setup::routes(table, &["a", "b", "c"]);
    setup.clusters.push((
        "weighted".into(),
        json!({
            "load_balancing_policy": { "policies": [{ "typed_extension_config": {
                "name": "envoy.load_balancing_policies.client_side_weighted_round_robin",
                "typed_config": {
                    "@type": POLICY,
                    "blackout_period": "0.2s",
                    "weight_update_period": "0.2s",
                    "metric_names_for_computing_utilization": ["named_metrics.queue"],
                },
            } }] },
            "load_assignment": { "cluster_name": "weighted", "endpoints": [{ "lb_endpoints": endpoints }] },
        }),
    ));
    oracle.reconfigure(&setup)?;
    let mut talk = Talk::start(&oracle.client)?;
    // By weights of 200, 100 and 400; the named metric counts before all others.
    let uneven = "x-echo-header-a: endpoint-load-metrics=TEXT application_utilization=0.5;rps_fractional=100\r\n\
        x-echo-header-b: endpoint-load-metrics=JSON {\"cpu_utilization\":1.0;\"rps_fractional\":100}\r\n\
        x-echo-header-c: endpoint-load-metrics=TEXT cpu_utilization=0.9;named_metrics.queue=0.25;rps_fractional=100\r\n"
        .replace(';', "%2C");
    let even =
        "x-echo-header: endpoint-load-metrics=TEXT cpu_utilization=0.5%2Crps_fractional=100\r\n";
    for (reports, expected) in [
        (uneven.as_str(), [("a", 40), ("b", 20), ("c", 80)]),
        (even, [("a", 47), ("b", 47), ("c", 46)]),
    ] {
        for (who, to) in ["Envoy", "the agent"].into_iter().zip(oracle.ends()) {
            // Weights follow reports at intervals, so the first rounds may show the old ones.
            let patience = Instant::now() + Duration::from_secs(30);
            loop {
                let counts = round(&mut talk, to, reports)?;
                let near = expected.iter().all(|(name, share)| {
                    let count = counts.get(*name).copied().unwrap_or(0);
                    count.abs_diff(*share) <= 7
                });
                if near {
                    break;
                }
                ensure!(
                    Instant::now() < patience,
                    "{who} gave {counts:?} where {expected:?} was to be seen"
                );
            }
        }
    }
    Ok(())
}
