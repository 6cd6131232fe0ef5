//! `/config_dump`, in the shape of Envoy's.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};

use crate::config::descriptors::pool;
use crate::config::model::Name;
use crate::store::{Resource, ResourceSet};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

/// The resources as they were read. As in Envoy, endpoints are left out unless asked for
/// (`?include_eds`); unlike Envoy, route configurations inside listeners are only shown there.
pub(super) fn config_dump(resources: &ResourceSet, include_eds: bool) -> Value {
    let mut configs = vec![
        json!({
            "@type": type_url("envoy.admin.v3.ClustersConfigDump"),
            "static_clusters": entries(&resources.clusters, CLUSTER, "cluster"),
        }),
        json!({
            "@type": type_url("envoy.admin.v3.ListenersConfigDump"),
            "static_listeners": entries(&resources.listeners, LISTENER, "listener"),
        }),
        json!({
            "@type": type_url("envoy.admin.v3.RoutesConfigDump"),
            "static_route_configs": entries(&resources.routes, ROUTES, "route_config"),
        }),
    ];
    if include_eds {
        let endpoints = entries(&resources.endpoints, ENDPOINTS, "endpoint_config");
        configs.push(json!({
            "@type": type_url("envoy.admin.v3.EndpointsConfigDump"),
            "static_endpoint_configs": endpoints,
        }));
    }
    json!({ "configs": configs })
}

fn type_url(message: &str) -> String {
    format!("type.googleapis.com/{message}")
}

fn entries<T>(resources: &BTreeMap<Name, Resource<T>>, message: &str, field: &str) -> Value {
    resources
        .values()
        .map(|resource| {
            json!({
                field: decoded(resource, message),
                "last_updated": timestamp(resource.updated),
            })
        })
        .collect()
}

/// The message as JSON under its field names, as Envoy prints it; a text that says why, should
/// that fail.
fn decoded<T>(resource: &Resource<T>, message: &str) -> Value {
    let Some(descriptor) = pool().get_message_by_name(message) else {
        return Value::String(format!("no descriptor of {message}"));
    };
    let options = SerializeOptions::new().use_proto_field_name(true);
    let json = DynamicMessage::decode(descriptor, resource.raw.clone())
        .map_err(|error| error.to_string())
        .and_then(|message| {
            message
                .serialize_with_options(serde_json::value::Serializer, &options)
                .map_err(|error| error.to_string())
        });
    match json {
        Ok(Value::Object(fields)) => {
            let mut typed = serde_json::Map::new();
            typed.insert("@type".into(), type_url(message).into());
            typed.extend(fields);
            Value::Object(typed)
        }
        Ok(other) => other,
        Err(error) => Value::String(format!("cannot be shown: {error}")),
    }
}

fn timestamp(time: SystemTime) -> String {
    prost_reflect::prost_types::Timestamp::from(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::load;

    const CONFIG: &str = r#"
static_resources:
  listeners:
  - name: reviews
    address: { socket_address: { address: 192.0.2.10, port_value: 80 } }
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: reviews
          cluster: reviews
  clusters:
  - name: reviews
    type: EDS
    connect_timeout: 1.5s
    eds_cluster_config: { eds_config: { path: /nowhere } }
  endpoints:
  - cluster_name: reviews
    endpoints:
    - lb_endpoints:
      - endpoint: { address: { socket_address: { address: 192.0.2.1, port_value: 8080 } } }
"#;

    fn dump(include_eds: bool) -> Value {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("mesh.yaml");
        std::fs::write(&file, CONFIG).expect("written");
        let loaded = load(&file, None).unwrap_or_else(|errors| panic!("{errors}"));
        config_dump(&loaded.resources, include_eds)
    }

    #[test]
    fn fields_have_envoys_names_and_types() {
        let dump = dump(false);
        let cluster = &dump["configs"][0]["static_clusters"][0];
        assert_eq!(
            cluster["cluster"]["@type"],
            "type.googleapis.com/envoy.config.cluster.v3.Cluster"
        );
        assert_eq!(cluster["cluster"]["connect_timeout"], "1.500s");
        let updated = cluster["last_updated"].as_str().expect("a time");
        assert!(updated.ends_with('Z') && updated.contains('T'), "{updated}");
        let listener = &dump["configs"][1]["static_listeners"][0]["listener"];
        let filter = &listener["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(
            filter["@type"],
            "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
        );
        assert_eq!(filter["stat_prefix"], "reviews");
    }

    #[test]
    fn endpoints_are_shown_when_asked_for() {
        assert_eq!(dump(false)["configs"].as_array().map(Vec::len), Some(3));
        let dump = dump(true);
        let endpoints = &dump["configs"][3]["static_endpoint_configs"][0]["endpoint_config"];
        assert_eq!(endpoints["cluster_name"], "reviews");
    }
}
