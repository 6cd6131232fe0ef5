//! Envoy's resources in JSON.

use std::net::SocketAddr;

use serde_json::{Value, json};

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

pub(crate) fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

pub(crate) fn http_listener(name: &str, at: SocketAddr, routes: &str) -> Value {
    json!({
        "name": name, "traffic_direction": "OUTBOUND", "address": address(at),
        "filter_chains": [{ "filters": [{ "name": "http", "typed_config": {
            "@type": HCM, "stat_prefix": name,
            "rds": { "route_config_name": routes, "config_source": { "ads": {}, "resource_api_version": "V3" } },
            "http_filters": [{ "name": "router", "typed_config": { "@type": ROUTER } }],
        } }] }],
    })
}

pub(crate) fn tcp_listener(name: &str, at: SocketAddr, cluster: &str) -> Value {
    json!({
        "name": name, "traffic_direction": "OUTBOUND", "address": address(at),
        "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": {
            "@type": TCP, "stat_prefix": name, "cluster": cluster,
        } }] }],
    })
}

pub(crate) fn routes(name: &str, cluster: &str) -> Value {
    json!({ "name": name, "virtual_hosts": [{ "name": "v", "domains": ["*"],
        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] })
}

pub(crate) fn cluster(name: &str) -> Value {
    json!({ "name": name, "type": "EDS",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } } })
}

pub(crate) fn endpoints(name: &str, to: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = to
        .iter()
        .map(|to| json!({ "endpoint": { "address": address(*to) } }))
        .collect();
    json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] })
}

/// With its type, as an `Any`.
pub(crate) fn typed(type_url: &str, mut resource: Value) -> Value {
    resource["@type"] = json!(type_url);
    resource
}
