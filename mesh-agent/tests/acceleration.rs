//! Same-node acceleration: nobody notices but the clock.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{
    Connect, Curl, MeshAgent, Nginx, Pod, Server, Stream, Testbed, eventually, needs_root,
};

use common::{Config, PATIENCE, greeted_by, metric};

struct Bed {
    client: Pod,
    server: Pod,
    app: Server,
    vips: [SocketAddr; 2],
    testbed: Testbed,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let server = testbed.pod("server")?;
        let app = Server::with_args(&server, &["echo-tcp", "--no-banner", "--port", "9000"])?;
        Ok(Self {
            client: testbed.pod("client")?,
            vips: [(testbed.vip4(7), 700).into(), (testbed.vip6(7), 700).into()],
            app,
            server,
            testbed,
        })
    }

    fn services(&self) -> Config {
        Config::default()
            .tcp("app", self.vips[0], "")
            .tcp("six", self.vips[1], "")
            .cluster("app", &[self.app.addr4()])
            .cluster("six", &[self.app.addr6()])
    }

    fn config(&self) -> Config {
        self.services()
            .enrol(&self.client, "")
            .enrol(&self.server, "")
    }

    /// An agent that accelerates, whatever the kernel does to those who mix small messages and bulk.
    fn start(&self) -> Result<MeshAgent> {
        self.start_with(&self.config())
    }

    fn start_with(&self, config: &Config) -> Result<MeshAgent> {
        MeshAgent::builder(&self.testbed)?
            .arg("--acceleration")
            .arg("unchecked")
            .start(&config.yaml())
    }
}

fn outcome(agent: &MeshAgent, name: &str) -> Result<u64> {
    metric(
        agent,
        &format!("mesh_datapath_connections_total{{outcome=\"{name}\"}}"),
    )
}

/// The sum of one of Istio's TCP metrics, as one side tells it.
fn istio(agent: &MeshAgent, name: &str, reporter: &str) -> Result<u64> {
    let page = agent.get("/stats/prometheus")?.body;
    let of =
        |line: &&str| line.starts_with(&format!("istio_tcp_{name}_total{{reporter=\"{reporter}\""));
    page.lines()
        .filter(of)
        .map(|line| Ok(line.rsplit(' ').next().context("a value")?.parse::<u64>()?))
        .sum()
}

/// Bytes both ways of connections that ended are counted to the byte, on both sides.
fn counted(agent: &MeshAgent, bytes: u64) -> Result<()> {
    let sums = || {
        ["source", "destination"].map(|reporter| {
            ["received_bytes", "sent_bytes"].map(|name| istio(agent, name, reporter))
        })
    };
    eventually("all bytes are counted", PATIENCE, || {
        let all = sums();
        let mut all = all.iter().flatten();
        all.all(|sum| sum.as_ref().is_ok_and(|sum| *sum == bytes))
    })
    .with_context(|| format!("{:?} of {bytes}", sums()))
}

#[test]
fn small_messages_never_see_tcp_and_are_counted() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start()?;
    for vip in bed.vips {
        Stream::new(vip, 200_000).turns().run(&bed.client)?;
    }
    assert_eq!(outcome(&agent, "accelerated")?, 2);
    assert_eq!(outcome(&agent, "accelerated_left")?, 0);
    counted(&agent, 400_000)
}

#[test]
fn order_holds_while_streams_race() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start()?;
    let (connections, rounds, bytes) = (16, 20, 150_000);
    for vip in bed.vips {
        Stream::new(vip, bytes)
            .option("--connections", connections)
            .option("--rounds", rounds)
            .start(&bed.client, connections * rounds)?
            .finish()?;
    }
    ensure!(outcome(&agent, "accelerated")? > 0);
    counted(&agent, 2 * connections * rounds * bytes)
}

#[test]
fn streams_outlive_agents() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let mut agent = bed.start()?;
    let connections = 4;
    // About ten seconds of small messages.
    let stream = Stream::new(bed.vips[0], 800_000)
        .option("--pause-us", 2_000)
        .option("--connections", connections)
        .start(&bed.client, connections)?;
    eventually("all are accelerated", PATIENCE, || {
        outcome(&agent, "accelerated").is_ok_and(|n| n == connections)
    })?;
    for _ in 0..2 {
        agent.kill()?;
        agent = bed.start()?;
    }
    // The last one stops, and takes everything with it but what connections hold.
    agent.terminate()?;
    stream.finish()
}

#[test]
fn nginx_wrk_and_curl_notice_nothing() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let _nginx = Nginx::start(&bed.server, "web", 8080)?;
    let vip = SocketAddr::new(bed.testbed.vip4(8).into(), 80);
    let web = SocketAddr::new(bed.server.ip4().into(), 8080);
    let agent = bed.start_with(&bed.config().tcp("web", vip, "").cluster("web", &[web]))?;
    let output = bed
        .client
        .command("wrk")
        .args(["-t1", "-c8", "-d1s", &format!("http://{vip}/")])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("requests in"),
        "{said}"
    );
    assert!(
        !said.contains("Socket errors") && !said.contains("Non-2xx"),
        "{said}"
    );
    ensure!(outcome(&agent, "accelerated")? >= 8);
    for _ in 0..20 {
        let page = Curl::get(&bed.client, &format!("http://{vip}/")).send()?;
        assert_eq!((page.status, page.text().trim()), (200, "web"));
    }
    Ok(())
}

#[test]
fn what_is_not_between_enrolled_pods_is_left_alone() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start_with(&bed.services().enrol(&bed.client, ""))?;
    Stream::new(bed.vips[0], 10_000).turns().run(&bed.client)?;
    assert_eq!(
        outcome(&agent, "accelerated")?,
        0,
        "the server is not enrolled"
    );
    drop(agent);
    // A captured port is the agent's, which a pod's own capture says.
    let inbound = bed
        .config()
        .http(
            "inbound",
            "0.0.0.0:15006".parse()?,
            "INBOUND",
            "{match: {prefix: /}, route: {cluster: here}}",
        )
        .original_dst("here");
    let agent = bed.start_with(&inbound)?;
    let _ = Connect::to(bed.vips[0])
        .flag("--no-read")
        .run_one(&bed.client)?;
    assert_eq!(
        outcome(&agent, "accelerated")?,
        0,
        "the agent answers there"
    );
    drop(agent);
    let multipath = Server::mptcp(&bed.server, "both", 9100)?;
    let vip = SocketAddr::new(bed.testbed.vip4(9).into(), 900);
    let config = bed
        .config()
        .tcp("both", vip, "")
        .cluster("both", &[multipath.addr4()]);
    let agent = bed.start_with(&config)?;
    let one = Connect::to(vip).flag("--mptcp").run_one(&bed.client)?;
    assert_eq!(greeted_by(&one)?, "both");
    assert_eq!(outcome(&agent, "accelerated")?, 0, "multipath TCP");
    Ok(())
}

#[test]
fn the_doctor_shows_every_trial_and_the_agent_heeds_it() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
        .arg("doctor")
        .arg("--cgroup")
        .arg(bed.testbed.cgroup())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    for trial in [
        "FIONREAD",
        "epoll edges",
        "short reads",
        "blocking reads",
        "half-close",
        "urgent bytes",
        "splice(2)",
        "order and content",
    ] {
        assert_eq!(
            text.matches(&format!(": {trial}")).count(),
            1,
            "{trial} in {text}"
        );
    }
    let by_itself = text
        .lines()
        .find(|line| line.contains("--acceleration auto"))
        .context("no verdict")?
        .starts_with("ok");
    let agent = MeshAgent::builder(&bed.testbed)?
        .arg("--acceleration")
        .arg("auto")
        .start(&bed.config().yaml())?;
    Stream::new(bed.vips[0], 10_000).turns().run(&bed.client)?;
    assert_eq!(outcome(&agent, "accelerated")?, u64::from(by_itself));
    Ok(())
}
