//! Configurations of any size, as the file source reads them.

#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_agent::snapshot::{Inputs, Snapshot, ViewId, compile};
use mesh_agent::source::file::{Loaded, load};
use serde_json::{Value, json};

/// Reads a configuration from a file of its own.
pub(crate) fn loaded(config: &Value) -> Loaded {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, config.to_string()).expect("the configuration is written");
    match load(&file, None) {
        Ok(loaded) => loaded,
        Err(errors) => panic!("{errors}"),
    }
}

/// The snapshot after `previous`.
pub(crate) fn compiled(loaded: &Loaded, previous: &Snapshot) -> Snapshot {
    let views = [(ViewId::NODE, Arc::new(loaded.resources.clone()))];
    let inputs = Inputs {
        views: &views,
        pods: None,
        in_use: &[],
        node: &loaded.node,
        dns: &Arc::default(),
    };
    compile(&inputs, previous)
}

/// Where service `index` is.
pub(crate) fn service(index: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0a60_0000 + index), 80))
}

/// A cluster of so many endpoints; `first` makes their addresses.
pub(crate) fn cluster(name: &str, first: u32, endpoints: u32, more: &Value) -> Value {
    let endpoint = |index: u32| {
        let address = Ipv4Addr::from(0x0a00_0000 + first + index).to_string();
        json!({ "endpoint": { "address": { "socket_address":
            { "address": address, "port_value": 8080 } } } })
    };
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>() }],
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        cluster[key] = value.clone();
    }
    cluster
}

fn listener(address: SocketAddr, filter: &Value) -> Value {
    json!({
        "name": address.to_string(),
        "address": { "socket_address":
            { "address": address.ip().to_string(), "port_value": address.port() } },
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{ "filters": [filter] }],
    })
}

/// A TCP service.
pub(crate) fn tcp(address: SocketAddr, cluster: &str) -> Value {
    listener(
        address,
        &json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": cluster,
                "cluster": cluster,
            },
        }),
    )
}

/// An HTTP service.
pub(crate) fn http(address: SocketAddr, virtual_hosts: &Value) -> Value {
    listener(
        address,
        &json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "http",
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                }],
                "route_config": { "virtual_hosts": virtual_hosts },
            },
        }),
    )
}

/// An HTTP service with Envoy's default access log.
pub(crate) fn logged(address: SocketAddr, virtual_hosts: &Value) -> Value {
    let mut listener = http(address, virtual_hosts);
    listener["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout",
        },
    }]);
    listener
}
