//! A client and a server of the mesh, with TLS contexts of the test's choice between them.

use std::net::SocketAddr;

use mesh_testbed::{Pod, Testbed};
use serde_json::{Value, json};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";

/// The TLS context of a side (`Upstream`, `Downstream`).
pub(crate) fn context(side: &str, common: &Value) -> Value {
    let mut context = json!({ "@type": format!("{TLS}.{side}TlsContext"),
        "common_tls_context": common });
    if side == "Downstream" {
        context["require_client_certificate"] = json!(true);
    } else {
        context["sni"] = json!("web.shop");
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

/// What contexts say of the certificate they show and of whom they trust.
pub(crate) fn by_secrets(certificate: &str, roots: &str, source: &Value) -> Value {
    let secret = |name: &str| match source {
        Value::Null => json!({ "name": name }),
        source => json!({ "name": name, "sds_config": source }),
    };
    json!({
        "tls_certificate_sds_secret_configs": [secret(certificate)],
        "validation_context_sds_secret_config": secret(roots),
    })
}

pub(crate) fn socket(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip(), "port_value": at.port() } })
}

pub(crate) fn vip(testbed: &Testbed, port: u16) -> SocketAddr {
    SocketAddr::new(testbed.vip4(1).into(), port)
}

pub(crate) fn hcm(cluster: &str) -> Value {
    json!({ "name": "http", "typed_config": {
        "@type": format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "h",
        "forward_client_cert_details": if cluster == "inbound" { "SANITIZE_SET" } else { "SANITIZE" },
        "set_current_client_cert_details": { "uri": true },
        "route_config": { "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
    } })
}

pub(crate) fn tcp(cluster: &str) -> Value {
    json!({ "name": "tcp", "typed_config": {
        "@type": format!("{NETWORK}.tcp_proxy.v3.TcpProxy"), "stat_prefix": "t", "cluster": cluster } })
}

/// The client's way out: HTTP on one port, anything on another.
pub(crate) fn outbound(testbed: &Testbed) -> [Value; 2] {
    let listener = |name: &str, port: u16, filter: Value| {
        json!({ "name": name, "traffic_direction": "OUTBOUND", "address": socket(vip(testbed, port)),
            "filter_chains": [{ "filters": [filter] }] })
    };
    [
        listener("web", 80, hcm("web")),
        listener("raw", 700, tcp("raw")),
    ]
}

/// The server's way in: HTTP for those who offer it, anything else for the others.
pub(crate) fn inbound(common: &Value) -> Value {
    let chain = |name: &str, protocol: &str, filter: Value| {
        let mut common = common.clone();
        common["alpn_protocols"] = json!([protocol]);
        json!({ "name": name, "filters": [filter],
            "filter_chain_match": { "transport_protocol": "tls", "application_protocols": [protocol] },
            "transport_socket_connect_timeout": "5s",
            "transport_socket": context("Downstream", &common) })
    };
    json!({ "name": "virtualInbound", "traffic_direction": "INBOUND",
        "address": socket(([0, 0, 0, 0], 15006).into()),
        "listener_filters": [{ "name": "tls", "typed_config": { "@type":
            "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }],
        "filter_chains": [chain("http", "istio-http/1.1", hcm("inbound")),
            chain("tcp", "istio", tcp("inbound"))] })
}

/// The clusters behind both. Each request has a connection of its own, so that it tells what holds
/// now.
pub(crate) fn clusters(web: SocketAddr, raw: SocketAddr, common: &Value) -> [Value; 3] {
    let cluster = |name: &str, server: SocketAddr, protocol: &str| {
        let mut common = common.clone();
        common["alpn_protocols"] = json!([protocol]);
        json!({ "name": name, "connect_timeout": "5s",
            "transport_socket": context("Upstream", &common),
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": { "max_requests_per_connection": 1 },
                "explicit_http_config": { "http_protocol_options": {} } } },
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": socket(server) } }] }] } })
    };
    [
        cluster("web", web, "istio-http/1.1"),
        cluster("raw", raw, "istio"),
        json!({ "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
            "upstream_bind_config": { "source_address": { "address": "127.0.0.6", "port_value": 0 } } }),
    ]
}

pub(crate) fn workloads(pods: &[&Pod]) -> Value {
    let workload = |pod: &&Pod| {
        json!({ "name": pod.name(), "namespace": "shop", "service_account": pod.name(),
            "netns": pod.netns_path() })
    };
    pods.iter().map(workload).collect()
}
