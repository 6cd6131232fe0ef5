//! Pods that the agent cannot catch, or not yet: nobody gets in who must not.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use mesh_testbed::ads::{Ads, LISTENER};
use mesh_testbed::{Connect, MeshAgent, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, greeted_by};

struct Bed {
    outside: Pod,
    inside: Pod,
    app: Server,
    testbed: Testbed,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let inside = testbed.pod("inside")?;
        Ok(Self {
            outside: testbed.pod("outside")?,
            app: Server::tcp(&inside, "app", 9000)?,
            inside,
            testbed,
        })
    }

    fn ends(&self) -> [SocketAddr; 2] {
        [self.app.addr4(), self.app.addr6()]
    }

    /// An agent whose management server never answers what it is asked.
    fn unconfigured(&self, ads: &Ads, scope: &str, config: &Config) -> Result<MeshAgent> {
        MeshAgent::builder(&self.testbed)?
            .arg("--xds")
            .arg(ads.address())
            .arg("--xds-scope")
            .arg(scope)
            .spawn(&config.yaml())
    }

    fn status(&self, agent: &MeshAgent, says: &str) -> Result<()> {
        eventually(&format!("status says {says:?}"), PATIENCE, || {
            agent
                .command("status")
                .is_ok_and(|text| text.contains(says))
        })
        .with_context(|| agent.command("status").unwrap_or_default())
    }

    fn refused(&self, why: &str) -> Result<()> {
        for at in self.ends() {
            let one = Connect::to(at).run_one(&self.outside)?;
            assert_eq!(one.errno, libc::ECONNREFUSED, "{why}: {one:?}");
        }
        // The pod itself is not shut out of what it serves.
        for at in self.ends() {
            let own = Connect::to(at).run_one(&self.inside)?;
            assert_eq!(greeted_by(&own)?, "app", "{why}");
        }
        Ok(())
    }

    fn served(&self, why: &str) -> Result<()> {
        for at in self.ends() {
            let one = Connect::to(at).run_one(&self.outside)?;
            assert_eq!(greeted_by(&one)?, "app", "{why}");
        }
        Ok(())
    }
}

/// A server that delivers no listeners.
fn silent() -> Result<Ads> {
    let ads = Ads::start()?;
    ads.change(|state| state.withhold(LISTENER));
    Ok(ads)
}

#[test]
fn before_the_first_configuration_nobody_is_served_by_a_pod_that_may_be_strict() -> Result<()> {
    needs_root!(Ok(()));
    for scope in ["node", "workload"] {
        let bed = Bed::new()?;
        let ads = silent()?;
        let config = Config::default().enrol(&bed.inside, "");
        bed.served("without an agent")?;
        let agent = bed.unconfigured(&ads, scope, &config)?;
        bed.status(&agent, "connections to it are refused until then")?;
        bed.refused(scope)?;
        agent.kill()?;
        bed.refused("without the agent")?;
        let agent = bed.unconfigured(&ads, scope, &config)?;
        bed.status(&agent, "connections to it are refused until then")?;
        bed.refused("with the next agent")?;
        // A configuration comes that catches nothing.
        ads.change(|state| state.release(LISTENER));
        bed.status(&agent, "enrolled")?;
        bed.served("once there is a configuration")?;
        agent.kill()?;
        bed.served("a pod that is known not to be closed")?;
        ads.change(|state| state.withhold(LISTENER));
        let agent = bed.unconfigured(&ads, scope, &config)?;
        bed.status(&agent, "as an agent before this one left it")?;
        bed.served("as the agent before knew it")?;
        agent.terminate()?;
        bed.served("the agent has left")?;
    }
    Ok(())
}

#[test]
fn who_says_so_has_plain_pods_before_the_first_configuration() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let ads = silent()?;
    let plain = Config::default()
        .mesh("inbound_before_configuration: PASS")
        .enrol(&bed.inside, "");
    let agent = bed.unconfigured(&ads, "workload", &plain)?;
    bed.status(&agent, "its traffic is plain")?;
    bed.served("PASS")?;
    agent.terminate()?;
    let uncaptured = Config::default().enrol(&bed.inside, ", capture: {include_inbound_ports: []}");
    let agent = bed.unconfigured(&ads, "workload", &uncaptured)?;
    bed.status(&agent, "its traffic is plain")?;
    bed.served("nothing of it is captured")
}

#[test]
fn a_strict_pod_that_cannot_be_caught_is_closed() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let rules = "{name: rbac, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.\
        filters.network.rbac.v3.RBAC, stat_prefix: r, rules: {action: ALLOW, policies: {p: \
        {permissions: [{any: true}], principals: [{authenticated: {principal_name: {prefix: \
        \"spiffe://\"}}}]}}}}}";
    let tcp = "{name: tcp, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.\
        network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: here}}";
    let config = |filters: &str, pods: &[&Pod]| {
        let config = Config::default()
            .listener("inbound", ([0, 0, 0, 0], 15006).into(), "INBOUND", filters)
            .original_dst("here");
        let enrol = |config: Config, pod: &&Pod| config.enrol(pod, "");
        pods.iter().fold(config, enrol).yaml()
    };
    let strict = format!("{rules}, {tcp}");
    let other = bed.testbed.pod("other")?;
    for (full, log) in [("PODS=1", "PODS is full"), ("IN_PODS=2", "IN_PODS is full")] {
        let agent = MeshAgent::builder(&bed.testbed)?
            .arg(format!("--map-size={full}"))
            .start(&config(&strict, &[&other]))?;
        bed.served("nobody knows of it")?;
        common::apply(&agent, &config(&strict, &[&other, &bed.inside]))?;
        bed.status(&agent, log)?;
        bed.status(&agent, "connections to it are refused until then")?;
        bed.refused(full)?;
        // A configuration that lets everybody in does so for a pod that is not caught, too.
        common::apply(&agent, &config(tcp, &[&other, &bed.inside]))?;
        bed.status(&agent, "its traffic is plain")?;
        bed.served("not strict any more")?;
        agent.terminate()?;
    }
    Ok(())
}
