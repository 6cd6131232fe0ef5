//! What the kernel's connections leave behind: Istio's TCP metrics, and refusals.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use mesh_testbed::wire::Connection;
use mesh_testbed::{Connect, MeshAgent, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE};

struct Bed {
    client: Pod,
    app: Server,
    vips: [SocketAddr; 2],
    _server: Pod,
    testbed: Testbed,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let server = testbed.pod("server")?;
        Ok(Self {
            client: testbed.pod("client")?,
            app: Server::tcp(&server, "app", 9000)?,
            vips: [(testbed.vip4(7), 700).into(), (testbed.vip6(7), 700).into()],
            _server: server,
            testbed,
        })
    }

    fn config(&self) -> Config {
        let labels = ", namespace: shop, labels: {app: till, version: v7}";
        let cluster = "\"outbound|700||db.prod.svc.cluster.local\"";
        Config::default()
            .enrol(&self.client, labels)
            .enrol(&self._server, ", labels: {app: store}")
            .tcp(cluster, self.vips[0], "")
            .tcp("six", self.vips[1], "")
            .cluster(cluster, &[self.app.addr4()])
            .cluster("six", &[self.app.addr6()])
    }

    fn start(&self) -> Result<MeshAgent> {
        MeshAgent::start(&self.testbed, &self.config().yaml())
    }

    /// So many connections that send five bytes, read all, and close.
    fn talk(&self, vip: SocketAddr, times: usize) -> Result<Vec<Connection>> {
        let connect = Connect::to(vip).option("--send", "hello");
        connect.flag("--until-close").times(times).run(&self.client)
    }
}

/// The sum of a metric's samples that have these labels.
fn sum(agent: &MeshAgent, metric: &str, labels: &[&str]) -> Result<u64> {
    let page = agent.get("/stats/prometheus")?.body;
    page.lines()
        .filter(|line| line.starts_with(metric) && labels.iter().all(|label| line.contains(label)))
        .map(|line| {
            let value = line.rsplit(' ').next().context("a value")?;
            Ok(value.parse::<u64>()?)
        })
        .sum()
}

/// Both sides tell: the client's pod and the server's.
fn closed(agent: &MeshAgent, service: &str, times: u64) -> Result<()> {
    let label = format!("destination_service=\"{service}\"");
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        eventually("the connections are counted", PATIENCE, || {
            let labels = [reporter, &label];
            sum(agent, "istio_tcp_connections_closed_total", &labels).is_ok_and(|n| n == times)
        })
        .with_context(|| reporter.to_owned())?;
    }
    Ok(())
}

#[test]
fn bytes_and_connections_are_counted_to_the_byte() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start()?;
    for (vip, service) in bed
        .vips
        .into_iter()
        .zip(["db.prod.svc.cluster.local", "six"])
    {
        let all = bed.talk(vip, 50)?;
        let received: usize = all.iter().map(|one| one.received.len()).sum();
        assert!(
            all.iter()
                .all(|one| one.closed && one.received.ends_with("hello"))
        );
        // One that does not read what was sent, and one that cannot connect.
        let unread = Connect::to(vip).flag("--no-read").run_one(&bed.client)?;
        assert!(unread.connected);
        closed(&agent, service, 51)?;
        let label = format!("destination_service=\"{service}\"");
        for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
            let labels = [reporter, &label];
            assert_eq!(
                sum(&agent, "istio_tcp_connections_opened_total", &labels)?,
                51
            );
            assert_eq!(sum(&agent, "istio_tcp_received_bytes_total", &labels)?, 250);
            let sent = sum(&agent, "istio_tcp_sent_bytes_total", &labels)?;
            let banner = received as u64 / 50;
            let range = received as u64..=received as u64 + banner;
            assert!(range.contains(&sent), "{reporter}: {sent} in {range:?}");
        }
    }
    let istio = [
        "source_workload=\"client\"",
        "source_workload_namespace=\"shop\"",
        "source_canonical_service=\"till\"",
        "source_canonical_revision=\"v7\"",
        "source_version=\"v7\"",
        "destination_workload=\"server\"",
        "destination_canonical_service=\"store\"",
        "destination_service_name=\"db\"",
        "destination_service_namespace=\"prod\"",
        "request_protocol=\"tcp\"",
    ];
    for further in [
        [
            "reporter=\"source\"",
            "connection_security_policy=\"unknown\"",
        ],
        [
            "reporter=\"destination\"",
            "connection_security_policy=\"none\"",
        ],
    ] {
        let labels = [&istio[..], &further].concat();
        assert_eq!(
            sum(&agent, "istio_tcp_connections_opened_total", &labels)?,
            51,
            "{further:?}"
        );
    }
    assert_eq!(
        sum(&agent, "mesh_datapath_connections_total", &["event_lost"])?,
        0
    );
    Ok(())
}

#[test]
fn what_ended_while_no_agent_was_there_is_told_to_the_next() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    bed.start()?.kill()?;
    let all = bed.talk(bed.vips[0], 20)?;
    let received: usize = all.iter().map(|one| one.received.len()).sum();
    let agent = bed.start()?;
    closed(&agent, "db.prod.svc.cluster.local", 20)?;
    for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
        let client = [reporter, "source_workload=\"client\""];
        let sent = sum(&agent, "istio_tcp_sent_bytes_total", &client)?;
        assert_eq!(sent, received as u64, "{reporter}");
    }
    Ok(())
}

#[test]
fn long_connections_are_counted_while_they_last() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start()?;
    let service = "destination_service_name=\"db\"";
    let mut held = Connect::to(bed.vips[0])
        .option("--send", "hello")
        .times(4)
        .hold(&bed.client)?;
    assert_eq!(held.check()?.alive, 4);
    let received = |bytes| {
        ["source", "destination"]
            .into_iter()
            .try_for_each(|reporter| {
                let labels = [&*format!("reporter=\"{reporter}\""), service];
                let name = "istio_tcp_received_bytes_total";
                eventually(
                    "the bytes of open connections are counted",
                    PATIENCE,
                    || sum(&agent, name, &labels).is_ok_and(|n| n == bytes),
                )
            })
    };
    received(4 * 6)?;
    assert_eq!(
        sum(&agent, "istio_tcp_connections_closed_total", &[service])?,
        0
    );
    assert_eq!(held.check()?.alive, 4);
    drop(held);
    closed(&agent, "db.prod.svc.cluster.local", 4)?;
    received(4 * 7)
}

#[test]
fn refusals_are_counted_and_told_by_pod_destination_and_rule() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let empty: SocketAddr = (bed.testbed.vip6(9), 9).into();
    let config = bed
        .config()
        .mesh("outbound_traffic_policy: REGISTRY_ONLY")
        .tcp("empty", empty, "")
        .cluster("empty", &[]);
    let agent = MeshAgent::start(&bed.testbed, &config.yaml())?;
    let nowhere: SocketAddr = (bed.testbed.vip4(99), 99).into();
    for (to, times) in [(nowhere, 30), (empty, 5)] {
        for one in Connect::to(to).times(times).run(&bed.client)? {
            assert_eq!(one.errno, libc::ECONNREFUSED, "{to}");
        }
    }
    for (service, times) in [("REGISTRY_ONLY", 30), ("empty", 5)] {
        let labels = [
            "source_workload=\"client\"",
            "reason=\"deny\"",
            &format!("service=\"{service}\""),
        ];
        eventually("refusals are counted", PATIENCE, || {
            sum(&agent, "mesh_denied_connections_total", &labels).is_ok_and(|n| n == times)
        })?;
    }
    let log = agent.log();
    let line = log
        .lines()
        .find(|line| line.contains(&nowhere.to_string()))
        .with_context(|| format!("no line of {nowhere} in:\n{log}"))?;
    assert!(line.contains("pod=\"client\""), "{line}");
    assert!(
        line.contains("outbound_traffic_policy is REGISTRY_ONLY"),
        "{line}"
    );
    Ok(())
}

/// Who is connected to through the agent is told of by the agent alone.
#[test]
fn inbound_connections_are_told_once_by_whoever_passes_them() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let outside = bed.testbed.pod("outside")?;
    let tcp = "{name: tcp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.\
               network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: here}}";
    let carried = |more: &str| {
        Config::default()
            .enrol(&bed._server, more)
            .listener("inbound", ([0, 0, 0, 0], 15006).into(), "INBOUND", tcp)
            .original_dst("here")
            .yaml()
    };
    let excluded = ", capture: {exclude_inbound_ports: [9000]}";
    let name = "istio_tcp_connections_closed_total";
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"unknown\"",
        "destination_workload=\"server\"",
    ];
    let agent = MeshAgent::start(&bed.testbed, &carried(excluded))?;
    for (at, times) in [(bed.app.addr4(), 3), (bed.app.addr6(), 6)] {
        Connect::to(at)
            .flag("--until-close")
            .times(3)
            .run(&outside)?;
        eventually("what the kernel passes is told", PATIENCE, || {
            sum(&agent, name, &labels).is_ok_and(|n| n == times)
        })?;
    }
    agent.terminate()?;
    let agent = MeshAgent::start(&bed.testbed, &carried(""))?;
    for at in [bed.app.addr4(), bed.app.addr6()] {
        let made = Connect::to(at)
            .flag("--until-close")
            .times(3)
            .run(&outside)?;
        assert!(made.iter().all(|one| one.closed));
    }
    let steered = "mesh_datapath_connections_total{outcome=\"inbound_steered\"}";
    assert_eq!(common::metric(&agent, steered)?, 6);
    // A connection that the kernel passes later is told; so those before would have been.
    common::apply(&agent, &carried(excluded))?;
    Connect::to(bed.app.addr4())
        .flag("--until-close")
        .run_one(&outside)?;
    eventually("the last one is told", PATIENCE, || {
        sum(&agent, name, &labels).is_ok_and(|n| n > 0)
    })?;
    assert_eq!(sum(&agent, name, &labels)?, 1);
    Ok(())
}
