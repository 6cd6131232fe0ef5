//! Each criterion, in Envoy's order, with a listener as a control plane describes it.

use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use super::*;
use crate::config::convert;
use crate::config::descriptors::pool;

/// A listener with these chains, by name and match; the last one stands for the rest.
fn listener(chains: &[(&str, Value)]) -> Listener {
    let chain = |name: &str, matcher: Option<&Value>| {
        let mut chain = json!({ "name": name, "filters": [{ "name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name, "cluster": name } }] });
        if let Some(matcher) = matcher {
            chain["filter_chain_match"] = matcher.clone();
        }
        chain
    };
    let all: Vec<Value> = chains
        .iter()
        .map(|(name, matcher)| chain(name, Some(matcher)))
        .collect();
    let json = json!({ "name": "l", "filter_chains": all,
        "address": { "socket_address": { "address": "0.0.0.0", "port_value": 15006 } },
        "default_filter_chain": chain("rest", None) });
    let descriptor = pool()
        .get_message_by_name("envoy.config.listener.v3.Listener")
        .expect("known");
    let message = DynamicMessage::deserialize(descriptor, json).expect("valid");
    let message = PbListener::decode(message.encode_to_vec().as_slice()).expect("the same");
    convert::listener(&message).expect("right")
}

/// A plaintext connection from 10.0.0.9:4000 to 10.1.2.3:80.
fn facts() -> Facts {
    Facts {
        destination: "10.1.2.3:80".parse().expect("an address"),
        source: "10.0.0.9:4000".parse().expect("an address"),
        local: false,
        transport_protocol: "raw_buffer",
        server_name: None,
        application_protocols: Vec::new(),
    }
}

fn tls(server_name: Option<&str>, protocols: &[&str]) -> Facts {
    Facts {
        transport_protocol: "tls",
        server_name: server_name.map(ToOwned::to_owned),
        application_protocols: protocols.iter().map(|one| (*one).to_owned()).collect(),
        ..facts()
    }
}

#[track_caller]
fn takes(listener: &Listener, facts: &Facts, wanted: &str) {
    let chain = select(listener, facts).expect("there is a default chain");
    assert_eq!(&*chain.name, wanted, "{facts:?}");
}

fn range(prefix: &str, length: u8) -> Value {
    json!({ "address_prefix": prefix, "prefix_len": length })
}

#[test]
fn by_destination() {
    let listener = listener(&[
        ("port", json!({ "destination_port": 80 })),
        ("wide", json!({ "prefix_ranges": [range("10.0.0.0", 8)] })),
        (
            "narrow",
            json!({ "prefix_ranges": [range("10.1.0.0", 16)] }),
        ),
        ("six", json!({ "prefix_ranges": [range("fd00::", 8)] })),
    ]);
    takes(&listener, &facts(), "port");
    let to = |at: &str| Facts {
        destination: at.parse().expect("an address"),
        ..facts()
    };
    takes(&listener, &to("10.1.9.9:81"), "narrow");
    takes(&listener, &to("10.9.9.9:81"), "wide");
    takes(&listener, &to("[fd00::1]:81"), "six");
    takes(&listener, &to("192.0.2.1:81"), "rest");
}

#[test]
fn what_matches_a_port_and_nothing_else_of_it_goes_to_the_rest() {
    // Envoy: there is an entry for the port, so chains of any port are not looked at.
    let listener = listener(&[
        (
            "port",
            json!({ "destination_port": 80, "source_ports": [1] }),
        ),
        ("any", json!({ "prefix_ranges": [range("10.0.0.0", 8)] })),
    ]);
    takes(&listener, &facts(), "rest");
}

#[test]
fn by_server_name() {
    let listener = listener(&[
        ("exact", json!({ "server_names": ["a.example.com"] })),
        ("long", json!({ "server_names": ["*.sub.example.com"] })),
        ("short", json!({ "server_names": ["*.example.com"] })),
        ("tls", json!({ "transport_protocol": "tls" })),
    ]);
    for (name, chain) in [
        ("a.example.com", "exact"),
        ("b.example.com", "short"),
        ("b.sub.example.com", "long"),
        ("example.com", "tls"),
        ("other.org", "tls"),
    ] {
        takes(&listener, &tls(Some(name), &[]), chain);
    }
    takes(&listener, &tls(None, &[]), "tls");
    takes(&listener, &facts(), "rest");
}

#[test]
fn by_transport_protocol() {
    let listener = listener(&[
        ("tls", json!({ "transport_protocol": "tls" })),
        ("raw", json!({ "transport_protocol": "raw_buffer" })),
    ]);
    takes(&listener, &tls(None, &[]), "tls");
    takes(&listener, &facts(), "raw");
}

#[test]
fn by_application_protocol_in_the_clients_order() {
    // As istiod's virtualInbound has them.
    let listener = listener(&[
        (
            "tcp",
            json!({ "transport_protocol": "tls",
                "application_protocols": ["istio-peer-exchange", "istio"] }),
        ),
        (
            "http",
            json!({ "transport_protocol": "tls",
                "application_protocols": ["istio-http/1.0", "istio-http/1.1", "istio-h2"] }),
        ),
        ("other-tls", json!({ "transport_protocol": "tls" })),
        (
            "plain-http",
            json!({ "transport_protocol": "raw_buffer",
                "application_protocols": ["http/1.1", "h2c"] }),
        ),
    ]);
    takes(&listener, &tls(None, &["istio"]), "tcp");
    takes(&listener, &tls(None, &["istio-h2", "istio"]), "http");
    takes(&listener, &tls(None, &["istio", "istio-h2"]), "tcp");
    takes(
        &listener,
        &tls(None, &["unheard-of", "istio-http/1.1"]),
        "http",
    );
    takes(&listener, &tls(None, &["h2"]), "other-tls");
    let plain = Facts {
        application_protocols: vec!["http/1.1".into()],
        ..facts()
    };
    takes(&listener, &plain, "plain-http");
    takes(&listener, &facts(), "rest");
}

#[test]
fn by_source() {
    let listener = listener(&[
        (
            "direct",
            json!({ "direct_source_prefix_ranges": [range("10.0.0.0", 24)] }),
        ),
        ("local", json!({ "source_type": "SAME_IP_OR_LOOPBACK" })),
        ("external", json!({ "source_type": "EXTERNAL" })),
    ]);
    takes(&listener, &facts(), "direct");
    let from = |at: &str, local| Facts {
        source: at.parse().expect("an address"),
        local,
        ..facts()
    };
    takes(&listener, &from("127.0.0.1:9", true), "local");
    takes(&listener, &from("10.9.9.9:9", false), "external");

    let listener = self::listener(&[
        (
            "port",
            json!({ "source_prefix_ranges": [range("10.0.0.0", 16)], "source_ports": [4000, 4001] }),
        ),
        (
            "prefix",
            json!({ "source_prefix_ranges": [range("10.0.0.0", 16)] }),
        ),
        ("ports", json!({ "source_ports": [4000] })),
    ]);
    takes(&listener, &facts(), "port");
    takes(&listener, &from("10.0.7.7:4002", false), "prefix");
    takes(&listener, &from("10.9.9.9:4000", false), "ports");
    takes(&listener, &from("10.9.9.9:4001", false), "rest");
}

#[test]
fn criteria_are_looked_at_in_envoys_order() {
    // Each chain is better than the next by an earlier criterion and worse by a later one.
    let listener = listener(&[
        ("port", json!({ "destination_port": 80 })),
        (
            "prefix",
            json!({ "prefix_ranges": [range("10.1.2.3", 32)], "server_names": ["a.b"] }),
        ),
    ]);
    takes(&listener, &tls(Some("a.b"), &[]), "port");
    let listener = self::listener(&[
        ("name", json!({ "server_names": ["a.b"] })),
        (
            "protocol",
            json!({ "transport_protocol": "tls", "application_protocols": ["x"] }),
        ),
    ]);
    takes(&listener, &tls(Some("a.b"), &["x"]), "name");
    takes(&listener, &tls(Some("c.b"), &["x"]), "protocol");
    let listener = self::listener(&[
        ("alpn", json!({ "application_protocols": ["x"] })),
        (
            "source",
            json!({ "direct_source_prefix_ranges": [range("10.0.0.9", 32)], "source_ports": [4000] }),
        ),
    ]);
    takes(&listener, &tls(None, &["x"]), "alpn");
    takes(&listener, &tls(None, &["y"]), "source");
}
