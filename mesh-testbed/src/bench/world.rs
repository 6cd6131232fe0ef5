//! Many services as a control plane describes them: half of them TCP, half HTTP with routes.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use envoy_types::pb::google::protobuf::Any;
use mesh_testbed::ads::{CLUSTER, ENDPOINTS, LISTENER, ROUTES, State, resource};
use serde_json::{Value, json};

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// Services and their size.
#[derive(Debug, Clone, Copy)]
pub(super) struct World {
    pub(super) services: u32,
    pub(super) endpoints: u32,
}

/// Everything of one version, encoded: `(type URL, name, message)`.
pub(super) type Resources = Vec<(&'static str, String, Any)>;

impl World {
    /// All resources. `weight` tells one version from another: every endpoint has it.
    pub(super) fn resources(self, weight: u32) -> Result<Resources> {
        let mut resources = Vec::new();
        for service in 0..self.services {
            let name = format!("outbound|80||service-{service}.default.svc.cluster.local");
            let endpoints = (0..self.endpoints).map(|endpoint| {
                // 11.0.0.0/8: nothing is sent there.
                let number = service * self.endpoints + endpoint;
                SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + number).into(), 8080)
            });
            let address = SocketAddr::new(Ipv4Addr::from(0x0a80_0000 + service).into(), 80);
            let http = service % 2 == 1;
            add(&mut resources, &name, address, http, endpoints, weight)?;
        }
        Ok(resources)
    }
}

/// One service at an address.
pub(super) fn add(
    resources: &mut Resources,
    name: &str,
    address: SocketAddr,
    http: bool,
    endpoints: impl IntoIterator<Item = SocketAddr>,
    weight: u32,
) -> Result<()> {
    let mut add = |url: &'static str, json: &Value| -> Result<()> {
        resources.push((url, name.to_owned(), resource(url, json)?));
        Ok(())
    };
    add(
        CLUSTER,
        &json!({
            "name": name, "type": "EDS", "connect_timeout": "5s",
            "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } },
        }),
    )?;
    add(ENDPOINTS, &assignment(name, endpoints, weight))?;
    let filter = if http {
        add(
            ROUTES,
            &json!({ "name": name, "virtual_hosts": [{ "name": name, "domains": ["*"], "routes": [
                { "match": { "prefix": "/" }, "route": { "cluster": name, "timeout": "0s" } },
            ] }] }),
        )?;
        json!({ "name": "http", "typed_config": {
            "@type": HCM, "stat_prefix": name,
            "rds": {
                "route_config_name": name,
                "config_source": { "ads": {}, "resource_api_version": "V3" },
            },
            "http_filters": [{ "name": "router", "typed_config": { "@type": ROUTER } }],
        } })
    } else {
        json!({ "name": "tcp", "typed_config": {
            "@type": TCP, "stat_prefix": name, "cluster": name,
        } })
    };
    add(
        LISTENER,
        &json!({
            "name": name, "traffic_direction": "OUTBOUND", "address": socket_address(address),
            "filter_chains": [{ "filters": [filter] }],
        }),
    )
}

/// The endpoints of a service.
pub(super) fn assignment(
    name: &str,
    endpoints: impl IntoIterator<Item = SocketAddr>,
    weight: u32,
) -> Value {
    let endpoints: Vec<Value> = endpoints
        .into_iter()
        .map(|endpoint| {
            json!({
                "endpoint": { "address": socket_address(endpoint) },
                "load_balancing_weight": weight,
            })
        })
        .collect();
    json!({ "cluster_name": name, "endpoints": [{
        "locality": { "region": "region", "zone": "zone" }, "lb_endpoints": endpoints,
    }] })
}

fn socket_address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

/// Lets a server serve all of it, under new versions.
pub(super) fn serve(state: &mut State, resources: &Resources) {
    for (url, name, any) in resources {
        state.set_any(url, name, any.clone());
    }
}
