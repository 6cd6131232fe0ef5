//! Rules by address, against Envoy's own evaluation of every connection.

use std::sync::Arc;

use crate::config::model::filter::rbac::{Action, Facts, Policy, Rbac, Rules};
use crate::config::model::listener::{
    FilterChainMatch, Inspectors, Role, TcpProxy, Terminal, TrafficDirection,
};
use crate::config::model::matcher::{HeaderMatcher, MetadataMatcher};
use crate::config::model::tls::DownstreamTransport;

use super::*;

fn range(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn rules(action: Action, policies: Vec<(Vec<Rule>, Vec<Rule>)>) -> Rbac {
    let policies = policies
        .into_iter()
        .map(|(permissions, principals)| {
            let policy = Policy {
                permissions,
                principals,
            };
            ("p".into(), policy)
        })
        .collect();
    Rbac {
        rules: Some(Rules { action, policies }),
        shadow: None,
        rules_prefix: String::new(),
        shadow_prefix: String::new(),
    }
}

fn chain(port: Option<u16>, rbac: Vec<Rbac>) -> FilterChain {
    FilterChain {
        name: "".into(),
        key: 0,
        matcher: FilterChainMatch {
            destination_port: port,
            ..FilterChainMatch::default()
        },
        rbac,
        terminal: Terminal::Tcp(Arc::new(TcpProxy {
            stat_prefix: "".into(),
            clusters: Vec::new(),
            idle_timeout: None,
            max_connect_attempts: 1,
            access_logs: Arc::default(),
            hash_source_ip: false,
        })),
        transport: DownstreamTransport::Plain,
    }
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    Listener {
        name: "l".into(),
        addresses: Vec::new(),
        role: Role::Caught,
        direction: TrafficDirection::Inbound,
        use_original_dst: true,
        filter_chains: chains,
        default_filter_chain: None,
        inspect: Inspectors::default(),
        listener_filters_timeout: None,
        continue_on_listener_filters_timeout: false,
        access_logs: Arc::default(),
    }
}

const POD: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9))];

/// A plain connection.
struct Plain(IpAddr, u16);

impl Facts for Plain {
    fn header(&self, _: &HeaderMatcher) -> bool {
        false
    }
    fn path(&self) -> &str {
        ""
    }
    fn destination(&self) -> (IpAddr, u16) {
        (POD[0], self.1)
    }
    fn direct_remote(&self) -> IpAddr {
        self.0
    }
    fn remote(&self) -> IpAddr {
        self.0
    }
    fn peer_names(&self) -> Option<&[Arc<str>]> {
        None
    }
    fn server_name(&self) -> &str {
        ""
    }
    fn metadata(&self, _: &MetadataMatcher) -> bool {
        false
    }
}

/// What the kernel denies, the rules deny; and of rules on addresses and single ports it denies
/// all they deny.
fn compare(rbac: Vec<Rbac>, exact: bool) -> usize {
    let compiled = InboundRules::new(&listener(vec![chain(None, rbac.clone())]), &POD);
    let mut denied = 0;
    for source in [
        "10.0.0.1",
        "10.1.0.1",
        "10.1.2.3",
        "10.1.2.255",
        "192.168.0.1",
        "0.0.0.0",
    ] {
        let source: IpAddr = source.parse().unwrap();
        for port in [80, 81, 9000, 9001, 65535] {
            let allowed = rbac.iter().all(|rbac| {
                let rules = rbac.rules.as_ref().unwrap();
                rules.allow(&Plain(source, port)).0
            });
            let dropped = compiled.denies(source, port);
            assert!(!(allowed && dropped), "{source}:{port} is allowed");
            assert!(!exact || allowed != dropped, "{source}:{port}: {allowed}");
            denied += usize::from(dropped);
        }
    }
    denied
}

#[test]
fn the_kernel_denies_what_the_rules_deny_and_nothing_else() {
    let from = |text| Rule::DirectRemoteIp(range(text));
    let to = |port| Rule::DestinationPort(port, port + 1);
    // Nested and overlapping ranges, one of them with the network address of another.
    let allow = rules(
        Action::Allow,
        vec![
            (vec![Rule::Always], vec![from("10.1.2.0/24")]),
            (vec![to(80), to(9000)], vec![from("10.0.0.0/8")]),
            (
                vec![Rule::Not(Box::new(to(81)))],
                vec![Rule::All(vec![
                    from("10.0.0.0/16"),
                    Rule::Not(Box::new(from("10.0.0.0/30"))),
                ])],
            ),
        ],
    );
    let deny = rules(
        Action::Deny,
        vec![(vec![to(9000)], vec![from("10.1.2.3/32"), from("0.0.0.0/1")])],
    );
    assert!(compare(vec![allow.clone()], true) > 0);
    assert!(compare(vec![deny.clone()], true) > 0);
    assert!(compare(vec![allow.clone(), deny.clone()], true) > 0);
    let nobody = rules(Action::Allow, Vec::new());
    assert_eq!(compare(vec![nobody], true), 30);
    // What needs a certificate or a range of ports is the agent's; the rest is still denied.
    let name = rules(
        Action::Allow,
        vec![(vec![to(80)], vec![Rule::Authenticated(None)])],
    );
    assert_eq!(compare(vec![name], false), 24);
    let wide = rules(
        Action::Deny,
        vec![(vec![Rule::DestinationPort(9000, 9100)], vec![Rule::Always])],
    );
    assert_eq!(compare(vec![wide], false), 0);
}

#[test]
fn every_chain_that_may_take_a_connection_has_a_say() {
    let nobody = || vec![rules(Action::Allow, Vec::new())];
    let source = "10.0.0.1".parse().unwrap();
    let some = listener(vec![chain(Some(80), nobody()), chain(None, Vec::new())]);
    let rules = InboundRules::new(&some, &POD);
    assert!(rules.is_empty(), "the second chain lets everybody in");
    let all = listener(vec![chain(Some(80), nobody()), chain(Some(81), Vec::new())]);
    let rules = InboundRules::new(&all, &POD);
    assert!(rules.denies(source, 80) && !rules.denies(source, 81));
    assert!(
        !rules.denies(source, 82),
        "no chain: the agent says what that means"
    );
}
