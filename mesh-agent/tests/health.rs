//! Endpoints that stop answering their health checks, and come back.

mod common;

use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::{Connect, Curl, MeshAgent, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, greeted_by};

const CHECK: &str = ", health_checks: [{timeout: 1s, interval: 0.1s, no_traffic_interval: 0.1s, \
                     unhealthy_threshold: 2, healthy_threshold: 1";

/// The agent balances HTTP, the kernel TCP; both leave an endpoint alone that is not well.
#[test]
fn an_endpoint_that_does_not_answer_is_left_alone_until_it_does() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let (stays, goes) = (
        Server::http(&pod, "stays", "v1", 9000)?,
        Server::http(&pod, "goes", "v1", 9001)?,
    );
    let (tcp_stays, tcp_goes) = (
        Server::tcp(&pod, "stays", 9100)?,
        Server::tcp(&pod, "goes", 9101)?,
    );
    let http_at: SocketAddr = (testbed.vip4(7), 80).into();
    let tcp_at: SocketAddr = (testbed.vip4(8), 700).into();
    let config = Config::default()
        .enrol(&client, "")
        .http(
            "web",
            http_at,
            "OUTBOUND",
            "{match: {prefix: /}, route: {cluster: web}}",
        )
        .tcp("plain", tcp_at, "")
        .cluster_with(
            "web",
            &[stays.addr4(), goes.addr4()],
            &format!("{CHECK}, http_health_check: {{path: /}}}}]"),
        )
        .cluster_with(
            "plain",
            &[tcp_stays.addr4(), tcp_goes.addr4()],
            &format!("{CHECK}, tcp_health_check: {{}}}}]"),
        );
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let web = || -> Vec<String> {
        (0..8)
            .filter_map(|_| {
                let answer = Curl::get(&client, &format!("http://{http_at}/"))
                    .send()
                    .ok()?;
                Some(answer.echo().ok()?.name)
            })
            .collect()
    };
    let plain = || -> Vec<String> {
        let made = Connect::to(tcp_at)
            .times(8)
            .run(&client)
            .unwrap_or_default();
        made.iter().filter_map(|one| greeted_by(one).ok()).collect()
    };
    let names = |answers: &[String], name: &str| {
        answers
            .iter()
            .filter(|answer| answer.contains(name))
            .count()
    };
    eventually("both endpoints serve", PATIENCE, || {
        let (web, plain) = (web(), plain());
        ["stays", "goes"]
            .iter()
            .all(|name| names(&web, name) > 0 && names(&plain, name) > 0)
    })?;
    drop((goes, tcp_goes));
    eventually("only one endpoint serves", PATIENCE, || {
        names(&web(), "stays") == 8 && names(&plain(), "stays") == 8
    })?;
    let clusters = agent.get("/clusters")?.body;
    assert_eq!(
        clusters.matches("/failed_active_hc").count(),
        2,
        "{clusters}"
    );
    let _back = Server::http(&pod, "goes", "v1", 9001)?;
    let _tcp_back = Server::tcp(&pod, "goes", 9101)?;
    eventually("both endpoints serve again", PATIENCE, || {
        names(&web(), "goes") > 0 && names(&plain(), "goes") > 0
    })
}
