//! Upstream connections of HTTP: how many there are, who waits for one, and when they end.

mod common;

use std::net::SocketAddr;
use std::thread;

use anyhow::{Result, ensure};
use mesh_testbed::{Curl, MeshAgent, Pod, Response, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, apply, cluster_stat};

/// So many requests at once, each of which the upstream answers after a while.
fn at_once(client: &Pod, at: SocketAddr, count: usize) -> Result<Vec<Response>> {
    thread::scope(|scope| {
        let asking: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    Curl::get(client, &format!("http://{at}/"))
                        .header("x-echo-delay-ms: 400")
                        .send()
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|asked| asked.join().expect("curl does not panic"))
            .collect()
    })
}

fn route(cluster: &str) -> String {
    format!("{{match: {{prefix: /}}, route: {{cluster: {cluster}, timeout: 30s}}}}")
}

#[test]
fn requests_wait_for_a_connection_and_too_many_are_refused() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&pod, "app", "v1", 0)?;
    let at = |number| SocketAddr::from((testbed.vip4(number), 80));
    let limits = |limits: &str| format!(", circuit_breakers: {{thresholds: [{{{limits}}}]}}");
    let http2 = ", http2_protocol_options: {max_concurrent_streams: 1}";
    let config = |endpoints: &[SocketAddr]| {
        Config::default()
            .enrol(&client, "")
            .http("wait", at(1), "OUTBOUND", &route("wait"))
            .http("full", at(2), "OUTBOUND", &route("full"))
            .http("many", at(3), "OUTBOUND", &route("many"))
            .http("one", at(4), "OUTBOUND", &route("one"))
            .cluster_with("wait", endpoints, &limits("max_connections: 1"))
            .cluster_with(
                "full",
                endpoints,
                &limits("max_connections: 1, max_pending_requests: 1"),
            )
            .cluster_with("many", endpoints, http2)
            .cluster_with("one", endpoints, ", http2_protocol_options: {}")
            .yaml()
    };
    let agent = MeshAgent::start(&testbed, &config(&[app.addr4()]))?;
    let connections = |cluster| cluster_stat(&agent, cluster, "upstream_cx_total");

    // Each of the workers may have one connection, whatever the limit says.
    let workers = thread::available_parallelism()?.get();
    let waited = at_once(&client, at(1), 8)?;
    let statuses: Vec<u16> = waited.iter().map(|answer| answer.status).collect();
    ensure!(statuses == [200; 8], "{statuses:?}");
    ensure!(connections("wait")? as usize <= workers);

    let refused = at_once(&client, at(2), 4 * workers + 4)?;
    let over: Vec<&Response> = refused.iter().filter(|one| one.status == 503).collect();
    ensure!(!over.is_empty(), "nobody was refused");
    ensure!(over.len() < refused.len(), "everybody was refused");
    for one in &over {
        ensure!(one.header("x-envoy-overloaded") == Some("true"), "{one:?}");
        ensure!(
            one.text().ends_with("reset reason: overflow"),
            "{}",
            one.text()
        );
    }
    let counted = cluster_stat(&agent, "full", "upstream_rq_pending_overflow")?;
    ensure!(counted as usize == over.len(), "{counted} were counted");

    // One stream a connection, or all on one.
    let apart = at_once(&client, at(3), 6)?;
    ensure!(apart.iter().all(|one| one.status == 200));
    ensure!(connections("many")? == 6, "{}", connections("many")?);
    let together = at_once(&client, at(4), 6)?;
    ensure!(together.iter().all(|one| one.status == 200));
    ensure!(connections("one")? as usize <= workers);

    // Connections to an endpoint that is gone do not wait for its next request.
    let other = Server::http(&pod, "other", "v1", 0)?;
    apply(&agent, &config(&[other.addr4()]))?;
    eventually("idle connections to the old endpoint end", PATIENCE, || {
        ["wait", "full", "many", "one"]
            .iter()
            .all(|name| cluster_stat(&agent, name, "upstream_cx_active").is_ok_and(|n| n == 0))
    })
}
