//! Clusters whose endpoints are names, through the running agent.

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use mesh_testbed::{Connect, MeshAgent, NameServer, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, greeted_by, metric};

const NAME: &str = "app.mesh.test";
/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

/// A client, and the servers a and b on one port of two pods.
struct Bed {
    client: Pod,
    pods: [Pod; 2],
    names: NameServer,
    kernel: [SocketAddr; 2],
    agent: [SocketAddr; 2],
    _servers: [Server; 2],
    testbed: Testbed,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let pods = [testbed.pod("a")?, testbed.pod("b")?];
        let servers = [
            Server::tcp(&pods[0], "a", 9000)?,
            Server::tcp(&pods[1], "b", 9000)?,
        ];
        let vips = |n| {
            [
                SocketAddr::new(testbed.vip4(n).into(), 700),
                SocketAddr::new(testbed.vip6(n).into(), 700),
            ]
        };
        Ok(Self {
            client: testbed.pod("client")?,
            names: NameServer::start()?,
            kernel: vips(7),
            agent: vips(8),
            pods,
            _servers: servers,
            testbed,
        })
    }

    /// An agent with a cluster of one name, behind listeners of both families that the kernel can
    /// do and that it cannot.
    fn start(&self, kind: &str, more: &str) -> Result<MeshAgent> {
        let builder = MeshAgent::builder(&self.testbed)?;
        builder
            .resolv_conf(self.names.resolv_conf())
            .start(&self.config(kind, more))
    }

    fn config(&self, kind: &str, more: &str) -> String {
        let cluster = format!(
            "type: {kind}, dns_refresh_rate: 0.05s{more}, load_assignment: {{cluster_name: x, \
             endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: \
             {NAME}, port_value: 9000}}}}}}}}]}}]}}"
        );
        Config::default()
            .enrol(&self.client, "")
            .tcp("kernel", self.kernel[0], "")
            .tcp("kernel-six", self.kernel[1], "")
            .tcp("agent", self.agent[0], IN_AGENT)
            .tcp("agent-six", self.agent[1], IN_AGENT)
            .cluster_of(&format!("name: kernel, {cluster}"))
            .cluster_of(&format!("name: kernel-six, {cluster}"))
            .cluster_of(&format!("name: agent, {cluster}"))
            .cluster_of(&format!("name: agent-six, {cluster}"))
            .yaml()
    }

    fn v4(&self, pod: usize) -> IpAddr {
        self.pods[pod].ip4().into()
    }

    fn v6(&self, pod: usize) -> IpAddr {
        self.pods[pod].ip6().into()
    }

    /// Who answers twenty connections.
    fn met(&self, vip: SocketAddr) -> Result<BTreeSet<String>> {
        Connect::to(vip)
            .times(20)
            .run(&self.client)?
            .iter()
            .map(|one| match one.connected && one.errno == 0 {
                true => greeted_by(one),
                false => Ok("nobody".into()),
            })
            .collect()
    }

    fn wait_until_met(&self, vips: [SocketAddr; 2], expected: &[&str]) -> Result<()> {
        for vip in vips {
            eventually(
                &format!("{vip} is served by {expected:?}"),
                PATIENCE,
                || {
                    self.met(vip).is_ok_and(|met| {
                        met.iter().map(String::as_str).eq(expected.iter().copied())
                    })
                },
            )?;
        }
        Ok(())
    }

    /// Both listeners of IPv4: the kernel's and the agent's.
    fn both(&self) -> [SocketAddr; 2] {
        [self.kernel[0], self.agent[0]]
    }
}

/// Attempts of the name source, so that a test can wait for some more of them.
fn wait_for_attempts(agent: &MeshAgent, more: u64) -> Result<()> {
    let attempts = || metric(agent, "mesh_dns_resolutions_total");
    let wanted = attempts()? + more;
    eventually("the name is asked for again", PATIENCE, || {
        attempts().is_ok_and(|now| now >= wanted)
    })
}

#[test]
fn strict_dns_uses_every_address_and_follows_them() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    bed.names.set(NAME, [bed.v4(0), bed.v4(1)]);
    let agent = bed.start("STRICT_DNS", "")?;
    bed.wait_until_met(bed.both(), &["a", "b"])?;
    let mut held = bed
        .both()
        .map(|vip| Connect::to(vip).times(4).hold(&bed.client));
    bed.names.set(NAME, [bed.v4(1)]);
    bed.wait_until_met(bed.both(), &["b"])?;
    for held in &mut held {
        let alive = held.as_mut().map(|held| held.check());
        assert!(
            matches!(&alive, Ok(Ok(held)) if held.alive == 4),
            "connections outlive the address: {alive:?}"
        );
    }
    bed.names.fail(NAME);
    wait_for_attempts(&agent, 8)?;
    assert!(metric(&agent, "mesh_dns_resolution_failures_total")? > 0);
    bed.wait_until_met(bed.both(), &["b"])?;
    bed.names.remove(NAME);
    bed.wait_until_met(bed.both(), &["nobody"])?;
    bed.names.set(NAME, [bed.v4(0)]);
    bed.wait_until_met(bed.both(), &["a"])
}

#[test]
fn logical_dns_stays_with_one_address_while_it_is_named() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    bed.names.set(NAME, [bed.v4(0), bed.v4(1)]);
    let agent = bed.start("LOGICAL_DNS", "")?;
    bed.wait_until_met(bed.both(), &["a"])?;
    // Servers rotate their answers.
    bed.names.set(NAME, [bed.v4(1), bed.v4(0)]);
    wait_for_attempts(&agent, 8)?;
    bed.wait_until_met(bed.both(), &["a"])?;
    let mut held = Connect::to(bed.agent[0]).times(4).hold(&bed.client)?;
    bed.names.set(NAME, [bed.v4(1)]);
    bed.wait_until_met(bed.both(), &["b"])?;
    assert_eq!(held.check()?.alive, 4, "connections outlive the address");
    Ok(())
}

#[test]
fn the_lookup_family_decides_which_addresses_count() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    // Which of the two is met tells the family.
    bed.names.set(NAME, [bed.v4(0), bed.v6(1)]);
    for (family, expected) in [
        ("V4_ONLY", &["a"][..]),
        ("V6_ONLY", &["b"]),
        ("AUTO", &["b"]),
        ("V4_PREFERRED", &["a"]),
        ("ALL", &["a", "b"]),
    ] {
        let _agent = bed.start("STRICT_DNS", &format!(", dns_lookup_family: {family}"))?;
        // The agent connects to either family whichever was dialled, and the kernel hands over
        // what it cannot do.
        bed.wait_until_met(bed.agent, expected)?;
        bed.wait_until_met(bed.kernel, expected)?;
    }
    Ok(())
}

/// An agent that comes after one that was killed does not know the addresses yet.
#[test]
fn services_keep_their_endpoints_until_the_next_agent_knows_better() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    bed.names.set(NAME, [bed.v4(0)]);
    let first = bed.start("STRICT_DNS", "")?;
    bed.wait_until_met([bed.kernel[0]; 2], &["a"])?;
    first.kill()?;
    bed.names.fail(NAME);
    let next = MeshAgent::builder(&bed.testbed)?
        .resolv_conf(bed.names.resolv_conf())
        .spawn(&bed.config("STRICT_DNS", ""))?;
    eventually("the next agent asks in vain", PATIENCE, || {
        metric(&next, "mesh_dns_resolution_failures_total").is_ok_and(|failures| failures > 0)
    })?;
    assert_eq!(bed.met(bed.kernel[0])?, BTreeSet::from(["a".to_owned()]));
    bed.names.set(NAME, [bed.v4(1)]);
    bed.wait_until_met(bed.both(), &["b"])
}
