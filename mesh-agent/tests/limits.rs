//! Circuit breakers of services that the kernel balances.

mod common;

use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::{Connect, MeshAgent, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, apply, cluster_stat};

const FIVE: &str = ", circuit_breakers: {thresholds: [{max_connections: 5}]}";

#[test]
fn a_cluster_has_one_limit_wherever_it_stands_and_whoever_reigns() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let (app, other) = (
        Server::tcp(&pod, "app", 9000)?,
        Server::tcp(&pod, "other", 9001)?,
    );
    let vips: [SocketAddr; 2] = [(testbed.vip4(7), 700).into(), (testbed.vip4(8), 800).into()];
    // Two listeners before one cluster.
    let config = |endpoints: &[SocketAddr]| {
        Config::default()
            .enrol(&client, "")
            .tcp("c", vips[0], "")
            .tcp("c", vips[1], ", access_log: []")
            .cluster_with("c", endpoints, FIVE)
            .yaml()
            .replacen("name: c, traffic", "name: d, traffic", 1)
    };
    let agent = MeshAgent::start(&testbed, &config(&[app.addr4()]))?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"direct\"").count(), 2, "{services}");
    let held = [
        Connect::to(vips[0]).times(3).hold(&client)?,
        Connect::to(vips[1]).times(3).hold(&client)?,
    ];
    let made =
        |held: &mesh_testbed::Open| held.connections.iter().filter(|one| one.connected).count();
    assert_eq!(held.each_ref().map(made), [3, 2]);
    assert_eq!(held[1].connections[2].errno, libc::ECONNREFUSED);
    assert_eq!(cluster_stat(&agent, "c", "upstream_cx_active")?, 5);
    assert_eq!(cluster_stat(&agent, "c", "upstream_cx_overflow")?, 1);

    // Another endpoint instead, and another agent: still five.
    apply(&agent, &config(&[other.addr4()]))?;
    let refused = Connect::to(vips[0]).run_one(&client)?;
    assert_eq!(refused.errno, libc::ECONNREFUSED, "{refused:?}");
    agent.kill()?;
    let agent = MeshAgent::start(&testbed, &config(&[other.addr4()]))?;
    let refused = Connect::to(vips[0]).run_one(&client)?;
    assert_eq!(refused.errno, libc::ECONNREFUSED, "{refused:?}");
    let [first, second] = held;
    drop(first);
    eventually("three places are free", PATIENCE, || {
        cluster_stat(&agent, "c", "upstream_cx_active").is_ok_and(|active| active == 2)
    })?;
    assert!(Connect::to(vips[1]).run_one(&client)?.connected);
    drop(second);
    eventually(
        "the counts of the endpoint that is gone go, too",
        PATIENCE,
        || common::metric(&agent, "mesh_bpf_map_entries{map=\"CONNS\"}").is_ok_and(|n| n == 2),
    )
}

#[test]
fn each_endpoint_has_a_limit_and_a_low_one_of_waiting_connects_is_the_agents() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&pod, "app", 9000)?;
    let per_host = ", circuit_breakers: {per_host_thresholds: [{max_connections: 2}]}";
    let pending =
        ", circuit_breakers: {thresholds: [{max_connections: 9, max_pending_requests: 1}]}";
    let (six, four): (SocketAddr, SocketAddr) =
        ((testbed.vip6(7), 700).into(), (testbed.vip4(7), 700).into());
    let config = Config::default()
        .enrol(&client, "")
        .tcp("each", six, "")
        .tcp("pending", four, "")
        .cluster_with("each", &[app.addr6()], per_host)
        .cluster_with("pending", &[app.addr4()], pending);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let held = Connect::to(six).times(3).hold(&client)?;
    let made = held.connections.iter().filter(|one| one.connected).count();
    assert_eq!(made, 2);
    let services = agent.get("/services")?.body;
    assert!(
        services.contains("max_pending_requests is low"),
        "{services}"
    );
    Ok(())
}

#[test]
fn connections_to_endpoints_that_leave_go_on_or_are_reset_as_the_cluster_says() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let apps = [
        Server::tcp(&pod, "stays", 9000)?,
        Server::tcp(&pod, "goes", 9001)?,
    ];
    let vips: [[SocketAddr; 2]; 2] = [
        [(testbed.vip4(7), 700).into(), (testbed.vip6(7), 700).into()],
        [(testbed.vip4(8), 700).into(), (testbed.vip6(8), 700).into()],
    ];
    let config = |servers: &[Server]| {
        let mut config = Config::default().enrol(&client, "");
        let policies = ["", ", close_connections_on_host_health_failure: true"];
        for (number, (vips, policy)) in vips.iter().zip(policies).enumerate() {
            let (four, six) = (format!("four{number}"), format!("six{number}"));
            let all4: Vec<SocketAddr> = servers.iter().map(Server::addr4).collect();
            let all6: Vec<SocketAddr> = servers.iter().map(Server::addr6).collect();
            config = config
                .tcp(&four, vips[0], "")
                .tcp(&six, vips[1], "")
                .cluster_with(&four, &all4, policy)
                .cluster_with(&six, &all6, policy);
        }
        config.yaml()
    };
    let agent = MeshAgent::start(&testbed, &config(&apps))?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"direct\"").count(), 4, "{services}");
    let mut held = Vec::new();
    for vip in vips.concat() {
        held.push(Connect::to(vip).times(4).hold(&client)?);
    }
    apply(&agent, &config(&apps[..1]))?;
    for (open, alive) in held.iter_mut().zip([4, 4, 2, 2]) {
        eventually("connections live or die", PATIENCE, || {
            open.check().is_ok_and(|held| held.alive == alive)
        })?;
    }
    Ok(())
}
