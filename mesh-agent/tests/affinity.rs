//! Services whose endpoint is chosen by the client's address: the kernel and the agent choose the
//! same one.

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::{Connect, MeshAgent, Pod, Server, Testbed, needs_root};

use common::{Config, apply, greeted_by};

const BY_SOURCE: &str = ", hash_policy: [{source_ip: {}}]";
/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", hash_policy: [{source_ip: {}}], idle_timeout: 3000s";
const POLICIES: [&str; 2] = ["RING_HASH", "MAGLEV"];

struct Bed {
    servers: Vec<Server>,
    clients: Vec<Pod>,
    testbed: Testbed,
    _pod: Pod,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let pod = testbed.pod("server")?;
        let servers = (9000..9005)
            .map(|port| Server::tcp(&pod, &port.to_string(), port))
            .collect::<Result<_>>()?;
        let clients = testbed.pods((0..8).map(|number| format!("client{number}")))?;
        Ok(Self {
            servers,
            clients,
            testbed,
            _pod: pod,
        })
    }

    fn vip(&self, policy: usize, six: bool, kernel: bool) -> SocketAddr {
        let number = 1 + 2 * policy as u8 + u8::from(kernel);
        if six {
            (self.testbed.vip6(number), 700).into()
        } else {
            (self.testbed.vip4(number), 700).into()
        }
    }

    /// Two addresses for each kind of cluster in each family: one is the kernel's.
    fn config(&self, clients: &[Pod], servers: &[Server]) -> String {
        let mut config = Config::default();
        for client in clients {
            config = config.enrol(client, "");
        }
        for (policy, lb) in POLICIES.into_iter().enumerate() {
            for six in [false, true] {
                let ends: Vec<SocketAddr> = servers
                    .iter()
                    .map(|one| if six { one.addr6() } else { one.addr4() })
                    .collect();
                for (kernel, extra) in [(true, BY_SOURCE), (false, IN_AGENT)] {
                    let name = format!("{lb}-{six}-{kernel}");
                    config = config
                        .tcp(&name, self.vip(policy, six, kernel), extra)
                        .cluster_with(&name, &ends, &format!(", lb_policy: {lb}"));
                }
            }
        }
        config.yaml()
    }

    /// Who serves each client, by service; the same every time, whoever chooses.
    fn choices(&self, clients: &[Pod]) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for policy in 0..POLICIES.len() {
            for six in [false, true] {
                let mut names = BTreeSet::new();
                for client in clients {
                    let mut chosen = BTreeSet::new();
                    for kernel in [true, false] {
                        for one in Connect::to(self.vip(policy, six, kernel))
                            .times(3)
                            .run(client)?
                        {
                            chosen.insert(greeted_by(&one)?);
                        }
                    }
                    assert_eq!(chosen.len(), 1, "{} is served by {chosen:?}", client.name());
                    all.extend(chosen.iter().cloned());
                    names.extend(chosen);
                }
                assert!(names.len() > 1, "everybody is served by {names:?}");
            }
        }
        Ok(all)
    }
}

#[test]
fn a_client_comes_to_the_same_endpoint_whoever_chooses() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = MeshAgent::start(&bed.testbed, &bed.config(&bed.clients[..6], &bed.servers))?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"direct\"").count(), 4, "{services}");
    let first = bed.choices(&bed.clients[..6])?;

    // An endpoint leaves: who was not served by it stays where it was.
    apply(&agent, &bed.config(&bed.clients[..6], &bed.servers[1..]))?;
    let second = bed.choices(&bed.clients[..6])?;
    let moved = |(before, after): &(&String, &String)| before != after;
    let left = first.iter().filter(|name| *name == "9000").count();
    let moved = first.iter().zip(&second).filter(moved).count();
    assert!(
        moved >= left && moved < first.len() / 2,
        "{moved} of {} moved, {left} had to",
        first.len()
    );

    // Pods that come later, and an agent that takes over.
    apply(&agent, &bed.config(&bed.clients, &bed.servers))?;
    let all = bed.choices(&bed.clients)?;
    agent.kill()?;
    let agent = MeshAgent::start(&bed.testbed, &bed.config(&bed.clients, &bed.servers))?;
    assert_eq!(bed.choices(&bed.clients)?, all);
    agent.terminate()?;
    Ok(())
}

/// Which of two clusters it is, is drawn; within each a client has its own endpoint.
#[test]
fn a_canary_by_weight_keeps_each_client_at_its_endpoint_of_either_cluster() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let clients = &bed.clients[..5];
    let ends = |six: bool, servers: &[Server]| -> Vec<SocketAddr> {
        let end = |one: &Server| if six { one.addr6() } else { one.addr4() };
        servers.iter().map(end).collect()
    };
    let mut config = Config::default();
    for client in clients {
        config = config.enrol(client, "");
    }
    for six in [false, true] {
        let names = ["stable", "canary"].map(|name| format!("{name}-{six}"));
        let weighted = format!(
            "weighted_clusters: {{clusters: [{{name: {}, weight: 2}}, {{name: {}, weight: 1}}]}}",
            names[0], names[1]
        );
        for (kernel, extra) in [(true, BY_SOURCE), (false, IN_AGENT)] {
            let filter = format!(
                "{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.\
                 network.tcp_proxy.v3.TcpProxy, stat_prefix: t, {weighted}{extra}}}}}"
            );
            let name = format!("{six}-{kernel}");
            config = config.listener(&name, bed.vip(0, six, kernel), "OUTBOUND", &filter);
        }
        let (stable, canary) = bed.servers.split_at(3);
        config = config
            .cluster_with(&names[0], &ends(six, stable), ", lb_policy: MAGLEV")
            .cluster_with(&names[1], &ends(six, canary), ", lb_policy: RING_HASH");
    }
    let agent = MeshAgent::start(&bed.testbed, &config.yaml())?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"direct\"").count(), 2, "{services}");
    for six in [false, true] {
        for client in clients {
            let mut chosen = [true, false].map(|kernel| (kernel, BTreeSet::new()));
            for (kernel, names) in &mut chosen {
                let all = Connect::to(bed.vip(0, six, *kernel))
                    .times(60)
                    .run(client)?;
                for one in all {
                    names.insert(greeted_by(&one)?);
                }
            }
            let [(_, kernel), (_, agent)] = chosen;
            assert_eq!(kernel, agent, "{} {six}", client.name());
            let canaries = kernel.iter().filter(|name| *name >= &"9003".to_owned());
            assert_eq!((kernel.len(), canaries.count()), (2, 1), "{kernel:?}");
        }
    }
    Ok(())
}
