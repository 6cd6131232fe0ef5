//! Load balancing, in the kernel and in the agent: the same configuration, the same shares.

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::{Connect, Curl, MeshAgent, Pod, Server, Testbed, needs_root};

use common::{Config, apply, greeted_by};

/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

/// A client and servers a, b and c.
struct Bed {
    client: Pod,
    servers: Vec<Server>,
    six: bool,
    kernel: SocketAddr,
    agent: SocketAddr,
    // Dropped last: it takes the pods with it.
    _pod: Pod,
    testbed: Testbed,
}

impl Bed {
    fn new(six: bool) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
        let servers = ["a", "b", "c"]
            .into_iter()
            .zip(9000..)
            .map(|(name, port)| Server::tcp(&pod, name, port))
            .collect::<Result<_>>()?;
        let vip = |number| match six {
            true => SocketAddr::new(testbed.vip6(number).into(), 700),
            false => SocketAddr::new(testbed.vip4(number).into(), 700),
        };
        Ok(Self {
            kernel: vip(7),
            agent: vip(8),
            six,
            client,
            servers,
            _pod: pod,
            testbed,
        })
    }

    /// Two listeners for one kind of cluster: one the kernel can do, one it cannot.
    fn config(&self, cluster: &str) -> Config {
        Config::default()
            .enrol(&self.client, "")
            .tcp("kernel", self.kernel, "")
            .tcp("agent", self.agent, IN_AGENT)
            .cluster_of(&format!("name: kernel, {cluster}"))
            .cluster_of(&format!("name: agent, {cluster}"))
    }

    fn endpoint(&self, server: usize, fields: &str) -> String {
        let at = match self.six {
            true => self.servers[server].addr6(),
            false => self.servers[server].addr4(),
        };
        format!(
            "{{endpoint: {{address: {{socket_address: {{address: \"{}\", port_value: {}}}}}}}{fields}}}",
            at.ip(),
            at.port()
        )
    }

    /// How often each server was met.
    fn spread(&self, vip: SocketAddr, connections: usize) -> Result<HashMap<String, usize>> {
        let mut spread = HashMap::new();
        for one in Connect::to(vip).times(connections).run(&self.client)? {
            *spread.entry(greeted_by(&one)?).or_insert(0) += 1;
        }
        Ok(spread)
    }

    /// Asserts the spread of 200 connections over a, b and c, in the kernel and in the agent.
    fn assert_spread(&self, expected: [usize; 3], slack: usize) -> Result<()> {
        for (place, vip) in [("kernel", self.kernel), ("agent", self.agent)] {
            let spread = self.spread(vip, 200)?;
            for (name, expected) in ["a", "b", "c"].into_iter().zip(expected) {
                let met = spread.get(name).copied().unwrap_or(0);
                assert!(
                    met.abs_diff(expected) <= slack,
                    "{place}: {name} is met {met} times, not {expected}: {spread:?}"
                );
            }
        }
        Ok(())
    }
}

fn assignment(groups: &[String]) -> String {
    format!(
        "load_assignment: {{cluster_name: x, endpoints: [{}]}}",
        groups.join(", ")
    )
}

fn group(fields: &str, endpoints: &[String]) -> String {
    format!("{{{fields}lb_endpoints: [{}]}}", endpoints.join(", "))
}

#[test]
fn round_robin_keeps_weights_exactly() -> Result<()> {
    needs_root!(Ok(()));
    for six in [false, true] {
        let bed = Bed::new(six)?;
        let endpoints = [
            bed.endpoint(0, ", load_balancing_weight: 5"),
            bed.endpoint(1, ", load_balancing_weight: 3"),
            bed.endpoint(2, ", load_balancing_weight: 2"),
        ];
        let config = bed.config(&assignment(&[group("", &endpoints)]));
        let _agent = MeshAgent::start(&bed.testbed, &config.yaml())?;
        bed.assert_spread([100, 60, 40], 0)?;
    }
    Ok(())
}

#[test]
fn random_and_least_request_spread_evenly_over_idle_endpoints() -> Result<()> {
    needs_root!(Ok(()));
    for six in [false, true] {
        let bed = Bed::new(six)?;
        // RANDOM is blind to weights.
        let endpoints = [
            bed.endpoint(0, ", load_balancing_weight: 9"),
            bed.endpoint(1, ""),
            bed.endpoint(2, ""),
        ];
        let cluster = format!(
            "lb_policy: RANDOM, {}",
            assignment(&[group("", &endpoints)])
        );
        let agent = MeshAgent::start(&bed.testbed, &bed.config(&cluster).yaml())?;
        // Six standard deviations.
        bed.assert_spread([67, 67, 67], 40)?;
        let endpoints = [0, 1, 2].map(|server| bed.endpoint(server, ""));
        let cluster = format!(
            "lb_policy: LEAST_REQUEST, {}",
            assignment(&[group("", &endpoints)])
        );
        apply(&agent, &bed.config(&cluster).yaml())?;
        bed.assert_spread([67, 67, 67], 40)?;
    }
    Ok(())
}

#[test]
fn least_request_avoids_the_busy_one() -> Result<()> {
    needs_root!(Ok(()));
    for six in [false, true] {
        let bed = Bed::new(six)?;
        let endpoints = |servers: &[usize]| {
            let endpoints: Vec<String> = servers.iter().map(|s| bed.endpoint(*s, "")).collect();
            format!(
                "lb_policy: LEAST_REQUEST, {}",
                assignment(&[group("", &endpoints)])
            )
        };
        let agent = MeshAgent::start(&bed.testbed, &bed.config(&endpoints(&[0])).yaml())?;
        let busy = [bed.kernel, bed.agent].map(|vip| Connect::to(vip).times(20).hold(&bed.client));
        apply(&agent, &bed.config(&endpoints(&[0, 1])).yaml())?;
        // The busy one is taken only when both draws name it: one time in four.
        bed.assert_spread([50, 150, 0], 36)?;
        for held in busy {
            assert_eq!(held?.check()?.dead, 0, "connections outlive the change");
        }
    }
    Ok(())
}

#[test]
fn least_request_of_unequal_weights_keeps_them_when_idle() -> Result<()> {
    needs_root!(Ok(()));
    for six in [false, true] {
        let bed = Bed::new(six)?;
        let endpoints = [
            bed.endpoint(0, ", load_balancing_weight: 3"),
            bed.endpoint(1, ""),
        ];
        let cluster = format!(
            "lb_policy: LEAST_REQUEST, {}",
            assignment(&[group("", &endpoints)])
        );
        let _agent = MeshAgent::start(&bed.testbed, &bed.config(&cluster).yaml())?;
        let spread = bed.spread(bed.agent, 200)?;
        // A connection that has just ended may still count for a moment.
        assert!(spread["a"].abs_diff(150) <= 30, "{spread:?}");
    }
    Ok(())
}

#[test]
fn priorities_localities_and_health_decide_in_both_places() -> Result<()> {
    needs_root!(Ok(()));
    for six in [false, true] {
        let bed = Bed::new(six)?;
        let sick = |server| bed.endpoint(server, ", health_status: UNHEALTHY");
        let well = |server| bed.endpoint(server, "");
        // Half of the first priority is sick: 70 % stay.
        let failover = assignment(&[
            group("", &[well(0), sick(1)]),
            group("priority: 1, ", &[well(2)]),
        ]);
        let agent = MeshAgent::start(&bed.testbed, &bed.config(&failover).yaml())?;
        // The agent draws the priority at random: six standard deviations.
        bed.assert_spread([140, 0, 60], 39)?;
        for (config, expected, slack) in [
            // Nobody is well: all are used.
            (
                assignment(&[group("", &[sick(0), sick(1)])]),
                [100, 100, 0],
                0,
            ),
            // Draining and timed-out endpoints are not.
            (
                assignment(&[group(
                    "",
                    &[
                        bed.endpoint(0, ", health_status: DRAINING"),
                        well(1),
                        well(2),
                    ],
                )]),
                [0, 100, 100],
                0,
            ),
            // Degraded endpoints wait for the healthy ones to be too few.
            (
                assignment(&[group(
                    "",
                    &[
                        well(0),
                        well(1),
                        bed.endpoint(2, ", health_status: DEGRADED"),
                    ],
                )]),
                [93, 93, 14],
                24,
            ),
            (
                format!(
                    "common_lb_config: {{locality_weighted_lb_config: {{}}}}, {}",
                    assignment(&[
                        group(
                            "locality: {zone: x}, load_balancing_weight: 3, ",
                            &[well(0)]
                        ),
                        group(
                            "locality: {zone: y}, load_balancing_weight: 2, ",
                            &[well(1), well(2)]
                        ),
                    ])
                ),
                [120, 40, 40],
                0,
            ),
        ] {
            apply(&agent, &bed.config(&config).yaml())?;
            bed.assert_spread(expected, slack)?;
        }
    }
    Ok(())
}

#[test]
fn endpoints_come_from_a_section_of_their_own() -> Result<()> {
    needs_root!(Ok(()));
    for six in [false, true] {
        let bed = Bed::new(six)?;
        let eds = |servers: &[usize]| {
            let endpoints: Vec<String> = servers.iter().map(|s| bed.endpoint(*s, "")).collect();
            bed.config(
                "type: EDS, eds_cluster_config: {eds_config: {ads: {}}, service_name: shared}",
            )
            .endpoints(&format!(
                "cluster_name: shared, endpoints: [{}]",
                group("", &endpoints)
            ))
            .yaml()
        };
        let agent = MeshAgent::start(&bed.testbed, &eds(&[0]))?;
        bed.assert_spread([200, 0, 0], 0)?;
        let mut held =
            [bed.kernel, bed.agent].map(|vip| Connect::to(vip).times(3).hold(&bed.client));
        apply(&agent, &eds(&[1, 2]))?;
        bed.assert_spread([0, 100, 100], 0)?;
        for held in &mut held {
            let alive = held.as_mut().map(|held| held.check());
            assert!(
                matches!(&alive, Ok(Ok(held)) if held.alive == 3),
                "connections outlive their endpoint's removal: {alive:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn requests_follow_the_original_destination_or_the_header_that_names_one() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let here = Server::http(&server, "here", "v1", 8080)?;
    let there = Server::http(&server, "there", "v1", 8081)?;
    let plain = "{match: {prefix: /}, route: {cluster: plain}}";
    let named = "{match: {prefix: /named}, route: {cluster: named}}, \
                 {match: {prefix: /port}, route: {cluster: port}}";
    let config = Config::default()
        .enrol(&client, "")
        .http(
            "web",
            here.addr4(),
            "OUTBOUND",
            &format!("{named}, {plain}"),
        )
        .original_dst("plain")
        .cluster_of(
            "name: named, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, \
             original_dst_lb_config: {use_http_header: true}",
        )
        .cluster_of(
            "name: port, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, \
             original_dst_lb_config: {upstream_port_override: 8081}",
        );
    let _agent = MeshAgent::start(&testbed, &config.yaml())?;
    let header = format!("x-envoy-original-dst-host: {}", there.addr4());
    for (path, header, expected) in [
        ("/", None, "here"),
        ("/", Some(header.as_str()), "here"),
        ("/named", None, "here"),
        ("/named", Some(&header), "there"),
        ("/port", None, "there"),
    ] {
        let url = format!("http://{}{path}", here.addr4());
        let request = Curl::get(&client, &url);
        let request = match header {
            Some(header) => request.arg("-H").arg(header),
            None => request,
        };
        let name = request.send()?.echo()?.name;
        assert_eq!(name, expected, "{path} {header:?}");
    }
    let url = format!("http://{}/named", here.addr4());
    let bad = Curl::get(&client, &url)
        .arg("-H")
        .arg("x-envoy-original-dst-host: nowhere")
        .send()?;
    assert_eq!(bad.status, 503);
    Ok(())
}

/// Of eight draws among two endpoints hardly any misses the one with fewer connections.
#[test]
fn more_choices_than_two_are_the_kernels_too() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let servers = [Server::tcp(&pod, "a", 9000)?, Server::tcp(&pod, "b", 9001)?];
    let choices = |count: u32| {
        format!(", lb_policy: LEAST_REQUEST, least_request_lb_config: {{choice_count: {count}}}")
    };
    let ends: Vec<SocketAddr> = servers.iter().map(Server::addr4).collect();
    let (eight, nine): (SocketAddr, SocketAddr) =
        ((testbed.vip4(7), 700).into(), (testbed.vip4(8), 700).into());
    let config = Config::default()
        .enrol(&client, "")
        .tcp("eight", eight, "")
        .tcp("nine", nine, "")
        .cluster_with("eight", &ends, &choices(8))
        .cluster_with("nine", &ends, &choices(9));
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"direct\"").count(), 1, "{services}");
    assert!(services.contains("choice_count above 8"), "{services}");
    let held = Connect::to(eight).times(60).hold(&client)?;
    let mut at_a = 0_i32;
    for one in &held.connections {
        at_a += i32::from(greeted_by(one)? == "a");
    }
    // With two choices they would differ by eight or so now and then.
    assert!((at_a - 30).abs() <= 3, "{at_a} of 60");
    assert!(greeted_by(&Connect::to(nine).run_one(&client)?).is_ok());
    Ok(())
}
