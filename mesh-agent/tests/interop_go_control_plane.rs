//! Configuration from go-control-plane, the server library behind many control planes, in both
//! protocol variants and under traffic.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::ads::{CLUSTER, ENDPOINTS, LISTENER, ROUTES};
use mesh_testbed::{Curl, GoControlPlane, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::resources::{cluster, endpoints, http_listener, routes, tcp_listener, typed};
use common::traffic::Traffic;

const PATIENCE: Duration = Duration::from_secs(30);
const NODE: &str = "node-1";

struct Scene {
    go: GoControlPlane,
    agent: MeshAgent,
    web: SocketAddr,
    tcp: SocketAddr,
    one: Server,
    two: Server,
    client: Pod,
    _server: Pod,
    _testbed: Testbed,
}

impl Scene {
    fn start(mode: &str) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        let one = Server::http(&server, "one", "v1", 0)?;
        let two = Server::http(&server, "two", "v1", 0)?;
        let web = SocketAddr::new(testbed.vip4(1).into(), 80);
        let tcp = SocketAddr::new(testbed.vip4(2).into(), 700);
        let go = GoControlPlane::start()?;
        go.put(
            NODE,
            "1",
            &everything(web, tcp, "one", one.addr4(), two.addr4()),
        )?;
        let config = json!({ "workloads": [{ "name": "client", "netns": client.netns_path() }] });
        let agent = MeshAgent::builder(&testbed)?
            .arg("--xds")
            .arg(go.address())
            .arg("--xds-mode")
            .arg(mode)
            .arg("--node-id")
            .arg(NODE)
            .start(&config.to_string())?;
        Ok(Self {
            go,
            agent,
            web,
            tcp,
            one,
            two,
            client,
            _server: server,
            _testbed: testbed,
        })
    }

    /// Everything, with the web service behind this cluster.
    fn put(&self, version: &str, web: &str) -> Result<()> {
        let (one, two) = (self.one.addr4(), self.two.addr4());
        self.go.put(
            NODE,
            version,
            &everything(self.web, self.tcp, web, one, two),
        )
    }

    fn served_by(&self, at: SocketAddr) -> Result<String> {
        let response = Curl::get(&self.client, &format!("http://{at}/")).send()?;
        Ok(response
            .echo()
            .map_or_else(|_| format!("status {}", response.status), |echo| echo.name))
    }

    fn eventually_served_by(&self, at: SocketAddr, name: &str) -> Result<()> {
        eventually(&format!("{name} answers at {at}"), PATIENCE, || {
            self.served_by(at).is_ok_and(|served| served == name)
        })
    }
}

fn everything(
    web: SocketAddr,
    tcp: SocketAddr,
    to: &str,
    one: SocketAddr,
    two: SocketAddr,
) -> Vec<Value> {
    vec![
        typed(LISTENER, http_listener("web", web, "web")),
        typed(LISTENER, tcp_listener("tcp", tcp, "one")),
        typed(ROUTES, routes("web", to)),
        typed(CLUSTER, cluster("one")),
        typed(CLUSTER, cluster("two")),
        typed(ENDPOINTS, endpoints("one", &[one])),
        typed(ENDPOINTS, endpoints("two", &[two])),
    ]
}

/// Runs in both variants.
fn both(test: impl Fn(&str) -> Result<()>) -> Result<()> {
    if GoControlPlane::program().is_none() {
        mesh_testbed::skipped("needs go-control-plane (MESH_GO_CONTROL_PLANE)");
        return Ok(());
    }
    for mode in ["delta", "sotw"] {
        test(mode).with_context(|| format!("in {mode}"))?;
    }
    Ok(())
}

#[test]
fn every_kind_comes_changes_and_goes() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode)?;
        let traffic = Traffic::start(&scene.client, scene.web)?;
        assert_eq!(scene.served_by(scene.web)?, "one");
        assert_eq!(scene.served_by(scene.tcp)?, "one");
        let status = scene.agent.command("status")?;
        ensure!(
            status
                .lines()
                .any(|line| line.starts_with("tcp ") && line.contains("direct")),
            "the kernel serves the TCP listener:\n{status}"
        );
        for (version, web) in [("2", "two"), ("3", "one"), ("4", "two")] {
            scene.put(version, web)?;
            scene.eventually_served_by(scene.web, web)?;
        }
        // One listener and one cluster less.
        let (one, two) = (scene.one.addr4(), scene.two.addr4());
        let fewer: Vec<Value> = everything(scene.web, scene.tcp, "two", one, two)
            .into_iter()
            .filter(|resource| resource["name"] != "tcp")
            .filter(|resource| resource["name"] != "one" && resource["cluster_name"] != "one")
            .collect();
        scene.go.put(NODE, "5", &fewer)?;
        scene.eventually_served_by(scene.tcp, "status 0")?;
        assert_eq!(scene.served_by(scene.web)?, "two");
        let asked = traffic.end()?;
        let log = scene.go.log()?;
        ensure!(
            log.iter()
                .all(|entry| entry["variant"] == mode && entry["error"] == ""),
            "{log:#?}"
        );
        let kinds = [LISTENER, ROUTES, CLUSTER, ENDPOINTS];
        for kind in kinds {
            let answered = log
                .iter()
                .any(|entry| entry["type"] == kind && entry["nonce"] != "");
            ensure!(answered, "{kind} was not acknowledged: {log:#?}");
        }
        println!("{mode}: {asked} requests, none failed");
        Ok(())
    })
}

#[test]
fn a_rejected_snapshot_is_recovered_from() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode)?;
        let traffic = Traffic::start(&scene.client, scene.web)?;
        let (one, two) = (scene.one.addr4(), scene.two.addr4());
        let mut wrong = everything(scene.web, scene.tcp, "two", one, two);
        wrong.push(typed(
            CLUSTER,
            json!({ "name": "wrong", "type": "STRICT_DNS", "dns_refresh_rate": "-1s" }),
        ));
        scene.go.put(NODE, "2", &wrong)?;
        let mut error = String::new();
        eventually("it is rejected", PATIENCE, || {
            let log = scene.go.log().unwrap_or_default();
            let rejected = log.iter().find(|entry| entry["error"] != "");
            error = rejected.map_or_else(String::new, |entry| entry["error"].to_string());
            !error.is_empty()
        })?;
        ensure!(error.contains("wrong: dns_refresh_rate"), "{error}");
        // What is right of it is in force.
        scene.eventually_served_by(scene.web, "two")?;
        scene.put("3", "one")?;
        scene.eventually_served_by(scene.web, "one")?;
        traffic.end()?;
        // Requests show the routes only, which may be acknowledged before the clusters are.
        eventually("the recovery is accepted", PATIENCE, || {
            let log = scene.go.log().unwrap_or_default();
            let last = log.iter().rev().find(|entry| entry["type"] == CLUSTER);
            // Delta has no version of the whole.
            last.is_some_and(|entry| {
                entry["error"] == "" && (mode == "delta" || entry["version"] == "3")
            })
        })
        .with_context(|| format!("{:#?}", scene.go.log()))?;
        Ok(())
    })
}

#[test]
fn a_server_killed_and_started_again_loses_no_request() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let mut scene = Scene::start(mode)?;
        let traffic = Traffic::start(&scene.client, scene.web)?;
        for version in ["2", "3"] {
            scene.go.stop();
            eventually("the agent notices", PATIENCE, || {
                scene.agent.log().matches("the xDS stream ended").count()
                    > usize::from(version == "3")
            })?;
            assert_eq!(
                scene.served_by(scene.web)?,
                if version == "2" { "one" } else { "two" }
            );
            scene.go.resume()?;
            let to = if version == "2" { "two" } else { "one" };
            scene.put(version, to)?;
            scene.eventually_served_by(scene.web, to)?;
        }
        traffic.end()?;
        Ok(())
    })
}
