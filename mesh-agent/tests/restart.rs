//! Agents that are killed, and those that come after them: what the kernel does goes on.

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use mesh_testbed::{Connect, Curl, MeshAgent, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, greeted_by, metric};

/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

/// A client with services that the kernel balances and that the agent carries, in both families.
struct Bed {
    client: Pod,
    server: Pod,
    app: Server,
    direct: [SocketAddr; 2],
    carried: [SocketAddr; 2],
    testbed: Testbed,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let server = testbed.pod("server")?;
        let vips = |number| {
            [
                SocketAddr::new(testbed.vip4(number).into(), 700),
                SocketAddr::new(testbed.vip6(number).into(), 700),
            ]
        };
        Ok(Self {
            client: testbed.pod("client")?,
            app: Server::tcp(&server, "app", 9000)?,
            direct: vips(7),
            carried: vips(8),
            server,
            testbed,
        })
    }

    fn config(&self) -> Config {
        Config::default()
            .enrol(&self.client, "")
            .tcp("direct", self.direct[0], "")
            .tcp("direct-six", self.direct[1], "")
            .tcp("carried", self.carried[0], IN_AGENT)
            .tcp("carried-six", self.carried[1], IN_AGENT)
            .cluster("direct", &[self.app.addr4()])
            .cluster("direct-six", &[self.app.addr6()])
            .cluster("carried", &[self.app.addr4()])
            .cluster("carried-six", &[self.app.addr6()])
    }

    fn start(&self) -> Result<MeshAgent> {
        MeshAgent::start(&self.testbed, &self.config().yaml())
    }

    fn served(&self, vip: SocketAddr) -> bool {
        Connect::to(vip)
            .run_one(&self.client)
            .and_then(|one| greeted_by(&one))
            .is_ok_and(|name| name == "app")
    }
}

/// Files below a directory.
fn pins(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(pins(&entry.path()));
        }
        found.push(entry.path().display().to_string());
    }
    found
}

#[test]
fn a_killed_agent_leaves_the_kernels_services_and_refuses_its_own() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start()?;
    let mut held = Vec::new();
    for vip in bed.direct {
        held.push(Connect::to(vip).times(3).hold(&bed.client)?);
    }
    let mut lost = Connect::to(bed.carried[0]).times(3).hold(&bed.client)?;
    let before = metric(
        &agent,
        "mesh_datapath_connections_total{outcome=\"direct\"}",
    )?;
    agent.kill()?;
    for vip in bed.direct {
        assert!(bed.served(vip), "{vip} needs no agent");
    }
    for vip in bed.carried {
        let one = Connect::to(vip).run_one(&bed.client)?;
        assert_eq!(one.errno, libc::ECONNREFUSED, "{vip}: {one:?}");
    }
    assert_eq!(
        lost.check()?.alive,
        0,
        "those that went through it are gone"
    );

    let agent = bed.start()?;
    for vip in bed.carried.into_iter().chain(bed.direct) {
        assert!(bed.served(vip), "{vip} with the next agent");
    }
    for held in &mut held {
        assert_eq!(held.check()?.alive, 3, "direct connections noticed nothing");
    }
    let now = metric(
        &agent,
        "mesh_datapath_connections_total{outcome=\"direct\"}",
    )?;
    assert_eq!(now, before + 4, "counts go on");
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"active\": 3").count(), 4, "{services}");
    drop(held);
    eventually("connections of before are given back", PATIENCE, || {
        agent
            .get("/services")
            .is_ok_and(|page| !page.body.contains("\"active\": 3"))
    })?;
    agent.terminate()?;
    assert_eq!(pins(bed.testbed.bpffs()), Vec::<String>::new());
    assert!(!bed.served(bed.direct[0]), "the VIP has no route any more");
    Ok(())
}

#[test]
fn what_changed_while_no_agent_was_there_is_taken_up() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let gone = bed.testbed.pod("gone")?;
    let other = Server::tcp(&bed.server, "other", 9001)?;
    let extra = SocketAddr::new(bed.testbed.vip4(9).into(), 900);
    let capture =
        ", capture: {exclude_outbound_ports: [9], exclude_outbound_cidrs: [192.0.2.0/24]}";
    let config = bed
        .config()
        .enrol(&gone, capture)
        .tcp("extra", extra, "")
        .cluster("extra", &[other.addr4()]);
    MeshAgent::start(&bed.testbed, &config.yaml())?.kill()?;
    assert!(Connect::to(extra).run_one(&gone)?.connected);
    // Without the pod, without the service, and with another endpoint.
    let config = Config::default()
        .enrol(&bed.client, "")
        .tcp("direct", bed.direct[0], "")
        .cluster("direct", &[other.addr4()]);
    let agent = MeshAgent::start(&bed.testbed, &config.yaml())?;
    let one = Connect::to(bed.direct[0]).run_one(&bed.client)?;
    assert_eq!(greeted_by(&one)?, "other");
    for pod in [&bed.client, &gone] {
        let plain = Connect::to(extra).run_one(pod)?;
        assert!(!plain.connected, "{plain:?}");
    }
    for (map, entries) in [
        ("PODS", 1),
        ("CIDRS", 0),
        ("PORTS", 0),
        ("SVC", 1),
        ("SLOTS", 1),
        ("BACK", 1),
        // The cluster, and its one endpoint.
        ("CONNS", 2),
    ] {
        let now = metric(&agent, &format!("mesh_bpf_map_entries{{map=\"{map}\"}}"))?;
        assert_eq!(now, entries, "{map}");
    }
    Ok(())
}

#[test]
fn direct_connections_never_fail_while_agents_are_killed() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let mut held = Connect::to(bed.direct[0]).times(5).hold(&bed.client)?;
    assert_eq!(
        held.connections.iter().filter(|one| one.connected).count(),
        0
    );
    let first = bed.start()?;
    held = Connect::to(bed.direct[0]).times(5).hold(&bed.client)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let traffic = scope.spawn(|| -> Result<usize> {
            let mut made = 0;
            while !done.load(Ordering::Relaxed) {
                for vip in bed.direct {
                    for one in Connect::to(vip).times(20).run(&bed.client)? {
                        greeted_by(&one).with_context(|| format!("after {made}"))?;
                        made += 1;
                    }
                }
            }
            Ok(made)
        });
        let chaos = || -> Result<()> {
            let mut agent = first;
            for _ in 0..8 {
                agent.kill()?;
                agent = bed.start()?;
            }
            agent.kill()
        };
        let result = chaos();
        done.store(true, Ordering::Relaxed);
        let made = traffic
            .join()
            .map_err(|_| anyhow::anyhow!("the traffic panicked"))??;
        result?;
        assert!(made > 200, "only {made} connections were tried");
        Ok(())
    })?;
    assert_eq!(held.check()?.alive, 5);
    Ok(())
}

#[test]
fn inbound_capture_is_taken_over() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let web = Server::http(&bed.server, "web", "v1", 8080)?;
    let routes = "{match: {path: /denied}, direct_response: {status: 403}}, \
                  {match: {prefix: /}, route: {cluster: here}}";
    let config = Config::default()
        .enrol(&bed.server, "")
        .http("inbound", "0.0.0.0:15006".parse()?, "INBOUND", routes)
        .original_dst("here")
        .yaml();
    let ask = |path: &str| {
        let url = format!("http://{}{path}", web.addr4());
        Curl::get(&bed.client, &url).send().map(|page| page.status)
    };
    for _ in 0..3 {
        let agent = MeshAgent::start(&bed.testbed, &config)?;
        assert_eq!((ask("/denied")?, ask("/")?), (403, 200));
        agent.kill()?;
        // Without a listener inbound connections are the application's again.
        assert_eq!(ask("/denied")?, 200);
    }
    Ok(())
}

#[test]
fn pins_of_a_running_agent_and_of_other_layouts_are_told_apart() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    std::fs::create_dir_all(bed.testbed.bpffs().join("mesh-v0/maps"))?;
    let agent = bed.start()?;
    assert!(!bed.testbed.bpffs().join("mesh-v0").exists());
    let second = bed.start().expect_err("there is an agent already");
    let text = format!("{second:#}");
    assert!(text.contains("is in use by another agent"), "{text}");
    assert!(bed.served(bed.carried[0]), "the first one goes on");
    drop(agent);
    let nowhere = MeshAgent::builder(&bed.testbed)?
        .bpffs(Path::new("/tmp"))
        .start(&bed.config().yaml())
        .expect_err("no bpf file system");
    let text = format!("{nowhere:#}");
    assert!(text.contains("mount -t bpf bpf"), "{text}");
    Ok(())
}
