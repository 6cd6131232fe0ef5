//! The services, as Envoy's resources. The agent and Envoy are given the same ones.

use std::net::SocketAddr;

use serde_json::{Value, json};

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP_OPTIONS: &str =
    "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What a proxy does with a service's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    /// Balances TCP.
    Tcp,
    /// Balances TCP and ends what is idle for a minute, which the kernel cannot.
    TcpIdle,
    /// Routes HTTP; HTTP/1.1 to the server.
    Http1,
    /// Routes HTTP; HTTP/2 to the server.
    Http2,
}

/// A service: an address, and its only server.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) handling: Handling,
    pub(super) server: SocketAddr,
}

impl Service {
    pub(super) fn listener(&self) -> Value {
        let name = &self.name;
        json!({
            "name": name, "traffic_direction": "OUTBOUND",
            "address": socket_address(self.address),
            "filter_chains": [{ "filters": [self.filter()] }],
        })
    }

    pub(super) fn filter(&self) -> Value {
        let name = &self.name;
        match self.handling {
            Handling::Tcp => tcp_proxy(name),
            Handling::TcpIdle => {
                let mut filter = tcp_proxy(name);
                filter["typed_config"]["idle_timeout"] = json!("60s");
                filter
            }
            Handling::Http1 | Handling::Http2 => json!({
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": HCM, "stat_prefix": name,
                    "route_config": { "name": name, "virtual_hosts": [{
                        "name": name, "domains": ["*"],
                        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": name } }],
                    }] },
                    "http_filters": [{
                        "name": "envoy.filters.http.router", "typed_config": { "@type": ROUTER },
                    }],
                },
            }),
        }
    }

    pub(super) fn cluster(&self) -> Value {
        let name = &self.name;
        let mut cluster = json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            // Ten thousand connections are held; the default is 1024.
            "circuit_breakers": { "thresholds": [{ "max_connections": 100_000 }] },
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": socket_address(self.server) },
            }] }] },
        });
        if self.handling == Handling::Http2 {
            cluster["typed_extension_protocol_options"] = json!({
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": HTTP_OPTIONS,
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            });
        }
        cluster
    }
}

pub(super) fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": { "@type": TCP, "stat_prefix": cluster, "cluster": cluster },
    })
}

pub(super) fn socket_address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}
