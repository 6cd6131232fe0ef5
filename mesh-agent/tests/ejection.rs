//! Outlier detection of services that the kernel balances.

mod common;

use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::{Connect, MeshAgent, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, cluster_stat, greeted_by};

#[test]
fn an_endpoint_that_refuses_is_left_alone_for_a_while() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&pod, "app", 9000)?;
    let outlier = ", outlier_detection: {consecutive_5xx: 3, interval: 0.5s, base_ejection_time: \
                   1s, max_ejection_time_jitter: 0s, max_ejection_percent: 100}";
    let vips: [SocketAddr; 2] = [(testbed.vip4(7), 700).into(), (testbed.vip6(7), 700).into()];
    let closed = |at: SocketAddr| SocketAddr::new(at.ip(), 9001);
    let config = Config::default()
        .enrol(&client, "")
        .tcp("four", vips[0], "")
        .tcp("six", vips[1], "")
        .cluster_with("four", &[app.addr4(), closed(app.addr4())], outlier)
        .cluster_with("six", &[app.addr6(), closed(app.addr6())], outlier);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"direct\"").count(), 2, "{services}");
    let all_well = |vip| {
        let made = Connect::to(vip).times(6).run(&client);
        made.is_ok_and(|made| made.iter().all(|one| greeted_by(one).is_ok()))
    };
    for (vip, cluster) in vips.into_iter().zip(["four", "six"]) {
        assert!(!all_well(vip), "one of two endpoints is closed");
        eventually("the endpoint is ejected", PATIENCE, || all_well(vip))?;
        assert!(cluster_stat(&agent, cluster, "upstream_cx_connect_fail")? >= 3);
    }
    let _back = Server::tcp(&pod, "back", 9001)?;
    for vip in vips {
        eventually("the endpoint is used again", PATIENCE, || {
            let made = Connect::to(vip).times(4).run(&client).unwrap_or_default();
            made.iter()
                .any(|one| greeted_by(one).is_ok_and(|name| name == "back"))
        })?;
    }
    Ok(())
}
