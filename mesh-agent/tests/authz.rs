//! Network RBAC: denied in the kernel where addresses decide, in the agent where more is needed.

mod common;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use mesh_testbed::{Connect, MeshAgent, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, apply, greeted_by, metric};

fn tcp(cluster: &str) -> String {
    format!(
        "{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.\
         tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}"
    )
}

/// A filter with one policy.
fn rbac(action: &str, permission: &str, principals: &[String]) -> String {
    format!(
        "{{name: rbac, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.\
         network.rbac.v3.RBAC, stat_prefix: r, rules: {{action: {action}, policies: {{p: \
         {{permissions: [{permission}], principals: [{}]}}}}}}}}}}",
        principals.join(", ")
    )
}

fn from(pod: &Pod) -> Vec<String> {
    let range = |ip: IpAddr| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        format!("{{direct_remote_ip: {{address_prefix: \"{ip}\", prefix_len: {bits}}}}}")
    };
    pod.ips().into_iter().map(range).collect()
}

struct Bed {
    pods: [Pod; 2],
    app: Server,
    server: Pod,
    testbed: Testbed,
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let server = testbed.pod("server")?;
        Ok(Self {
            pods: [testbed.pod("a")?, testbed.pod("b")?],
            app: Server::tcp(&server, "app", 9000)?,
            server,
            testbed,
        })
    }

    fn ends(&self) -> [SocketAddr; 2] {
        [self.app.addr4(), self.app.addr6()]
    }

    /// The server's connections go through these filters.
    fn inbound(&self, filters: &[String]) -> String {
        let filters = [filters, &[tcp("here")]].concat().join(", ");
        Config::default()
            .enrol(&self.server, "")
            .listener("inbound", ([0, 0, 0, 0], 15006).into(), "INBOUND", &filters)
            .original_dst("here")
            .yaml()
    }

    fn refused(&self, pod: &Pod) -> Result<()> {
        for at in self.ends() {
            let one = Connect::to(at).run_one(pod)?;
            assert_eq!(
                (one.connected, one.errno),
                (false, libc::ECONNREFUSED),
                "{at}"
            );
        }
        Ok(())
    }

    fn served(&self, pod: &Pod) -> Result<()> {
        for at in self.ends() {
            assert_eq!(greeted_by(&Connect::to(at).run_one(pod)?)?, "app", "{at}");
        }
        Ok(())
    }
}

fn outcome(agent: &MeshAgent, name: &str) -> Result<u64> {
    metric(
        agent,
        &format!("mesh_datapath_connections_total{{outcome=\"{name}\"}}"),
    )
}

#[test]
fn who_is_denied_by_address_gets_no_connection_and_loses_those_that_stand() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let [a, b] = &bed.pods;
    let deny = |pod| bed.inbound(&[rbac("DENY", "{any: true}", &from(pod))]);
    let agent = MeshAgent::start(&bed.testbed, &deny(b))?;
    bed.refused(b)?;
    bed.served(a)?;
    assert_eq!(outcome(&agent, "inbound_denied")?, 2);
    assert_eq!(
        metric(&agent, "envoy_rbac_denied")?,
        0,
        "it never came to the agent"
    );

    let mut held = Vec::new();
    for at in bed.ends() {
        held.push(Connect::to(at).times(3).hold(a)?);
    }
    apply(&agent, &deny(a))?;
    bed.refused(a)?;
    bed.served(b)?;
    for open in &mut held {
        eventually("what is denied now ends", PATIENCE, || {
            open.check().is_ok_and(|held| held.alive == 0)
        })?;
    }

    // Only one port, and only for one of them; the agent's restart changes nothing.
    let allow = bed.inbound(&[rbac("ALLOW", "{destination_port: 9000}", &from(a))]);
    apply(&agent, &allow)?;
    bed.served(a)?;
    bed.refused(b)?;
    agent.kill()?;
    let agent = MeshAgent::start(&bed.testbed, &allow)?;
    bed.served(a)?;
    bed.refused(b)?;
    let other = bed.inbound(&[rbac("ALLOW", "{destination_port: 9001}", &from(a))]);
    apply(&agent, &other)?;
    bed.refused(a)?;
    apply(&agent, &bed.inbound(&[]))?;
    bed.served(b)?;
    assert_eq!(metric(&agent, "mesh_bpf_map_entries{map=\"AUTHZ\"}")?, 0);
    Ok(())
}

#[test]
fn rules_that_ask_for_more_than_addresses_are_the_agents() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let [a, b] = &bed.pods;
    let named = "{authenticated: {principal_name: {prefix: \"spiffe://\"}}}".to_owned();
    let principals = [vec![named], from(a)].concat();
    let agent = MeshAgent::start(
        &bed.testbed,
        &bed.inbound(&[rbac("ALLOW", "{any: true}", &principals)]),
    )?;
    bed.served(a)?;
    for at in bed.ends() {
        let one = Connect::to(at).run_one(b)?;
        assert!(
            one.banner().is_none(),
            "a plain connection proves nothing: {one:?}"
        );
    }
    assert_eq!(metric(&agent, "envoy_rbac_denied")?, 2);
    let wide = "{destination_port_range: {start: 9000, end: 9001}}";
    apply(&agent, &bed.inbound(&[rbac("DENY", wide, &from(a))]))?;
    for at in bed.ends() {
        assert!(Connect::to(at).run_one(a)?.banner().is_none());
    }
    bed.served(b)?;
    Ok(())
}

#[test]
fn egress_is_decided_where_the_rules_can_be() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let [a, b] = &bed.pods;
    let any = ["{any: true}".to_owned()];
    let destination = |ip: IpAddr| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        format!("{{destination_ip: {{address_prefix: \"{ip}\", prefix_len: {bits}}}}}")
    };
    for ([vip, other], end) in [
        (
            [bed.testbed.vip4(7).into(), bed.testbed.vip4(8).into()],
            bed.app.addr4(),
        ),
        (
            [bed.testbed.vip6(7).into(), bed.testbed.vip6(8).into()],
            bed.app.addr6(),
        ),
    ] {
        let [vip, other]: [IpAddr; 2] = [vip, other];
        let at = |ip, port| SocketAddr::new(ip, port);
        let deny = [rbac("DENY", &destination(vip), &any), tcp("app")].join(", ");
        let source = [rbac("DENY", "{any: true}", &from(b)), tcp("app")].join(", ");
        let config = Config::default()
            .enrol(a, "")
            .enrol(b, "")
            .listener("denied", at(vip, 700), "OUTBOUND", &deny)
            .listener("allowed", at(other, 700), "OUTBOUND", &deny)
            .listener("source", at(vip, 800), "OUTBOUND", &source)
            .cluster("app", &[end]);
        let agent = MeshAgent::start(&bed.testbed, &config.yaml())?;
        let verdicts: Vec<(String, String)> = {
            let services: serde_json::Value = serde_json::from_str(&agent.get("/services")?.body)?;
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let all = services.as_array().into_iter().flatten();
            all.map(|one| (text(&one["name"]), text(&one["verdict"])))
                .collect()
        };
        for (name, verdict) in [
            ("denied", "deny"),
            ("allowed", "direct"),
            ("source", "agent"),
        ] {
            assert!(
                verdicts.contains(&(name.into(), verdict.into())),
                "{verdicts:?}"
            );
        }
        let denied = Connect::to(at(vip, 700)).run_one(a)?;
        assert_eq!(
            (denied.connected, denied.errno),
            (false, libc::ECONNREFUSED)
        );
        assert_eq!(greeted_by(&Connect::to(at(other, 700)).run_one(a)?)?, "app");
        assert_eq!(greeted_by(&Connect::to(at(vip, 800)).run_one(a)?)?, "app");
        let denied = Connect::to(at(vip, 800)).run_one(b)?;
        assert!(denied.banner().is_none(), "{denied:?}");
    }
    Ok(())
}
