//! The admin pages, metrics and readiness of a running agent, as an operator asks for them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_testbed::{MeshAgent, Testbed, eventually, needs_root};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(10);

const CONFIG: &str = r#"
workloads:
- { name: gone, namespace: shop, netns: no-such-namespace }
static_resources:
  listeners:
  - name: ledger
    address: { socket_address: { address: 192.0.2.10, port_value: 9000 } }
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: ledger
          cluster: ledger
  clusters:
  - name: ledger
    load_assignment:
      cluster_name: ledger
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 192.0.2.21, port_value: 9000 } } }
        - endpoint: { address: { socket_address: { address: 192.0.2.22, port_value: 9000 } } }
"#;

fn json(agent: &MeshAgent, path: &str) -> Result<Value> {
    let page = agent.get(path)?;
    assert_eq!(page.status, 200, "{path}: {}", page.body);
    serde_json::from_str(&page.body).with_context(|| format!("{path} is not JSON: {}", page.body))
}

#[test]
fn pages_show_what_runs_where_and_why() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let agent = MeshAgent::start(&testbed, CONFIG)?;

    let services = json(&agent, "/services")?;
    assert_eq!(services[0]["name"], "ledger");
    assert_eq!(services[0]["verdict"], "direct");
    assert!(
        services[0]["why"]
            .as_str()
            .is_some_and(|why| !why.is_empty())
    );
    assert_eq!(services[0]["backends"].as_array().map(Vec::len), Some(2));

    let workloads = json(&agent, "/workloads")?;
    assert_eq!(workloads[0]["state"], "waiting");
    let reason = workloads[0]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("no-such-namespace"), "{reason}");

    assert_eq!(workloads[0]["capture"]["include_outbound_cidrs"], "*");

    let dump = json(&agent, "/config_dump")?;
    let cluster = &dump["configs"][0]["static_clusters"][0]["cluster"];
    assert_eq!(cluster["load_assignment"]["cluster_name"], "ledger");

    let clusters = agent.get("/clusters")?.body;
    assert!(
        clusters.contains("ledger::192.0.2.22:9000::health_flags::healthy\n"),
        "{clusters}"
    );
    let listeners = agent.get("/listeners")?.body;
    assert_eq!(listeners, "ledger::192.0.2.10:9000\n");

    let status = agent.command("status")?;
    for shown in [
        "shop/gone",
        "waiting",
        "ledger",
        "direct",
        "192.0.2.10:9000",
    ] {
        assert!(status.contains(shown), "no {shown} in:\n{status}");
    }
    Ok(())
}

#[test]
fn only_a_post_changes_something() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let agent = MeshAgent::builder(&testbed)?
        .arg("--drain-duration=0s")
        .start(CONFIG)?;
    let page = agent.get("/no-such-page")?;
    assert_eq!(page.status, 404);
    assert!(page.body.contains("/config_dump"), "{}", page.body);
    assert_eq!(agent.get("/quitquitquit")?.status, 405);
    assert_eq!(agent.get("/ready")?.status, 200);
    assert_eq!(agent.post("/quitquitquit")?.status, 200);
    assert!(agent.wait(PATIENCE)?.success());
    Ok(())
}

#[test]
fn a_refused_reload_is_counted_and_shown() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let agent = MeshAgent::start(&testbed, CONFIG)?;
    agent.reconfigure(&CONFIG.replace("cluster: ledger", "cluster: absent"))?;
    eventually("the failure is counted", PATIENCE, || {
        agent
            .get("/stats/prometheus")
            .is_ok_and(|page| page.body.contains("mesh_config_reload_failures_total 1\n"))
    })?;
    let status = agent.command("status")?;
    assert!(status.contains("absent"), "{status}");
    assert_eq!(json(&agent, "/services")?[0]["verdict"], "direct");
    Ok(())
}
