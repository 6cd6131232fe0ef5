//! Services of the agent while there is no agent: refused, or plain where the configuration says
//! so.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use mesh_testbed::{Connect, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use nix::sys::signal::Signal;

use common::{Config, greeted_by, metric};

/// Longer than a heart may stand still.
const PATIENCE: Duration = Duration::from_secs(30);
/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

fn served(pod: &Pod, at: SocketAddr) -> bool {
    Connect::to(at)
        .run_one(pod)
        .and_then(|one| greeted_by(&one))
        .is_ok()
}

fn refused(pod: &Pod, at: SocketAddr) -> bool {
    Connect::to(at)
        .option("--timeout-ms", 1000)
        .run_one(pod)
        .is_ok_and(|one| one.errno == libc::ECONNREFUSED)
}

#[test]
fn services_go_on_without_the_agent_where_they_may() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let names = ["open", "closed", "ruled"];
    let servers = names
        .iter()
        .zip(9000..)
        .map(|(name, port)| Server::tcp(&pod, name, port))
        .collect::<Result<Vec<_>>>()?;
    // Who connects is to be asked, so nobody may without the agent.
    let rules = "{name: rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.\
        filters.network.rbac.v3.RBAC, stat_prefix: r, rules: {action: ALLOW, policies: {p: \
        {permissions: [{any: true}], principals: [{direct_remote_ip: {address_prefix: 0.0.0.0, \
        prefix_len: 0}}, {direct_remote_ip: {address_prefix: \"::\", prefix_len: 0}}]}}}}}";
    let carried = |name: &str| {
        format!(
            "{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.\
             network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {name}{IN_AGENT}}}}}"
        )
    };
    let mut config = Config::default()
        .mesh("failure_mode_allow: true")
        .mesh("failure_mode_allow_services: {closed4: false, closed6: false}")
        .enrol(&client, "");
    for (name, server) in names.into_iter().zip(&servers) {
        for (family, at) in [("4", server.addr4()), ("6", server.addr6())] {
            let name = format!("{name}{family}");
            let filters = match name.starts_with("ruled") {
                true => format!("{rules}, {}", carried(&name)),
                false => carried(&name),
            };
            config = config
                .listener(&name, at, "OUTBOUND", &filters)
                .cluster(&name, &[at]);
        }
    }
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let services = agent.get("/services")?.body;
    assert_eq!(services.matches("\"agent\"").count(), 6, "{services}");
    let each = |of: usize| [servers[of].addr4(), servers[of].addr6()];
    for at in (0..3).flat_map(each) {
        assert!(served(&client, at), "{at} with an agent");
    }

    // An agent that hangs: its listeners are there, its heart stands still.
    agent.signal(Signal::SIGSTOP)?;
    for at in [each(1), each(2)].concat() {
        eventually("the service is refused", PATIENCE, || refused(&client, at))?;
    }
    for at in each(0) {
        assert!(served(&client, at), "{at} while the agent hangs");
    }
    agent.signal(Signal::SIGCONT)?;
    for at in (0..3).flat_map(each) {
        eventually("the service is served again", PATIENCE, || {
            served(&client, at)
        })?;
    }

    agent.kill()?;
    for at in [each(1), each(2)].concat() {
        assert!(refused(&client, at), "{at} without an agent");
    }
    for at in each(0) {
        assert!(served(&client, at), "{at} without an agent");
    }
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let opened = "mesh_datapath_connections_total{outcome=\"fail_open\"}";
    assert!(metric(&agent, opened)? >= 4);
    let down = "mesh_datapath_connections_total{outcome=\"agent_down\"}";
    assert!(metric(&agent, down)? >= 8);
    for at in (0..3).flat_map(each) {
        assert!(served(&client, at), "{at} with the next agent");
    }
    Ok(())
}
