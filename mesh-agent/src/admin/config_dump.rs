//! `/config_dump`, in the shape of Envoy's.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use crate::config::descriptors::pool;
use crate::config::model::Name;
use crate::source::xds::{Published, Rejected, ResourceType};
use crate::store::{Resource, ResourceSet};

use super::shown;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

type Named<'r, T> = Vec<(&'r Name, &'r Resource<T>)>;

/// Where resources come from and how their updates fared.
pub(super) struct Sources<'a> {
    /// What is in force.
    pub(super) resources: &'a ResourceSet,
    /// What of it a file says.
    pub(super) file: &'a ResourceSet,
    /// The streams of the management server.
    pub(super) streams: &'a [(&'a Name, &'a Published)],
}

impl Sources<'_> {
    /// Why the newest version of a resource is not in force.
    pub(super) fn rejected(&self, kind: ResourceType, name: &str) -> Option<&Rejected> {
        let key = (kind, name.to_owned());
        self.streams
            .iter()
            .find_map(|(_, stream)| stream.status.trouble.rejected.get(&key))
    }

    /// Refused before any version of them was accepted.
    fn never_accepted<T>(
        &self,
        kind: ResourceType,
        resources: &BTreeMap<Name, Resource<T>>,
    ) -> BTreeMap<&str, &Rejected> {
        self.streams
            .iter()
            .flat_map(|(_, stream)| stream.status.trouble.rejected.iter())
            .filter(|((of, name), _)| *of == kind && !resources.contains_key(name.as_str()))
            .map(|((_, name), rejected)| (name.as_str(), rejected))
            .collect()
    }

    /// What a file says, and what the management server says.
    fn split<'r, T>(
        resources: &'r BTreeMap<Name, Resource<T>>,
        file: &BTreeMap<Name, Resource<T>>,
    ) -> (Named<'r, T>, Named<'r, T>) {
        resources
            .iter()
            .partition(|(name, _)| file.contains_key(*name))
    }

    /// Entries of a kind whose dumps have the resource beside its version.
    fn flat<T>(
        &self,
        kind: ResourceType,
        resources: &BTreeMap<Name, Resource<T>>,
        file: &BTreeMap<Name, Resource<T>>,
        field: &str,
    ) -> (Value, Value) {
        let (fixed, dynamic) = Self::split(resources, file);
        let message = message(kind);
        let fixed = fixed
            .into_iter()
            .map(|(_, resource)| {
                json!({ field: decoded(resource, message), "last_updated": timestamp(resource.updated) })
            })
            .collect();
        let mut dynamic: Vec<Value> = dynamic
            .into_iter()
            .map(|(name, resource)| {
                let mut entry = json!({
                    "version_info": resource.version,
                    field: decoded(resource, message),
                    "last_updated": timestamp(resource.updated),
                });
                self.judge(&mut entry, kind, name);
                entry
            })
            .collect();
        for (name, rejected) in self.never_accepted(kind, resources) {
            dynamic.push(json!({
                field: { "@type": type_url(message), name_field(kind): name },
                "error_state": error_state(rejected),
                "client_status": "NACKED",
            }));
        }
        (fixed, Value::Array(dynamic))
    }

    fn listeners(&self) -> (Value, Value) {
        let (fixed, dynamic) = Self::split(&self.resources.listeners, &self.file.listeners);
        let fixed = fixed
            .into_iter()
            .map(|(_, resource)| {
                json!({ "listener": decoded(resource, LISTENER), "last_updated": timestamp(resource.updated) })
            })
            .collect();
        let mut dynamic: Vec<Value> = dynamic
            .into_iter()
            .map(|(name, resource)| {
                let mut entry = json!({
                    "name": name,
                    "active_state": {
                        "version_info": resource.version,
                        "listener": decoded(resource, LISTENER),
                        "last_updated": timestamp(resource.updated),
                    },
                });
                self.judge(&mut entry, ResourceType::Listener, name);
                entry
            })
            .collect();
        for (name, rejected) in
            self.never_accepted(ResourceType::Listener, &self.resources.listeners)
        {
            dynamic.push(json!({
                "name": name,
                "error_state": error_state(rejected),
                "client_status": "NACKED",
            }));
        }
        (fixed, Value::Array(dynamic))
    }

    fn judge(&self, entry: &mut Value, kind: ResourceType, name: &str) {
        let rejected = self.rejected(kind, name);
        entry["client_status"] = json!(if rejected.is_some() {
            "NACKED"
        } else {
            "ACKED"
        });
        if let Some(rejected) = rejected {
            entry["error_state"] = error_state(rejected);
        }
    }
}

fn error_state(rejected: &Rejected) -> Value {
    json!({
        "last_update_attempt": timestamp(rejected.at),
        "details": rejected.reason,
        "version_info": rejected.version,
    })
}

/// The resources as they were read. As in Envoy, endpoints are left out unless asked for
/// (`?include_eds`); unlike Envoy, route configurations inside listeners are only shown there.
pub(super) fn config_dump(sources: &Sources<'_>, include_eds: bool) -> Value {
    let (resources, file) = (sources.resources, sources.file);
    let (clusters, dynamic_clusters) = sources.flat(
        ResourceType::Cluster,
        &resources.clusters,
        &file.clusters,
        "cluster",
    );
    let (listeners, dynamic_listeners) = sources.listeners();
    let (routes, dynamic_routes) = sources.flat(
        ResourceType::Route,
        &resources.routes,
        &file.routes,
        "route_config",
    );
    let shown = super::secrets::redacted(&resources.secrets);
    let (secrets, dynamic_secrets) =
        sources.flat(ResourceType::Secret, &shown, &file.secrets, "secret");
    let mut configs = vec![
        json!({
            "@type": type_url("envoy.admin.v3.ClustersConfigDump"),
            "version_info": version(sources, ResourceType::Cluster),
            "static_clusters": clusters,
            "dynamic_active_clusters": dynamic_clusters,
        }),
        json!({
            "@type": type_url("envoy.admin.v3.ListenersConfigDump"),
            "version_info": version(sources, ResourceType::Listener),
            "static_listeners": listeners,
            "dynamic_listeners": dynamic_listeners,
        }),
        json!({
            "@type": type_url("envoy.admin.v3.RoutesConfigDump"),
            "static_route_configs": routes,
            "dynamic_route_configs": dynamic_routes,
        }),
        json!({
            "@type": type_url("envoy.admin.v3.SecretsConfigDump"),
            "static_secrets": named(secrets),
            "dynamic_active_secrets": named(dynamic_secrets),
        }),
    ];
    if include_eds {
        let (endpoints, dynamic) = sources.flat(
            ResourceType::Endpoint,
            &resources.endpoints,
            &file.endpoints,
            "endpoint_config",
        );
        configs.push(json!({
            "@type": type_url("envoy.admin.v3.EndpointsConfigDump"),
            "static_endpoint_configs": endpoints,
            "dynamic_endpoint_configs": dynamic,
        }));
    }
    json!({ "configs": configs })
}

/// Envoy says a secret's name beside it, too.
fn named(mut entries: Value) -> Value {
    for entry in entries.as_array_mut().into_iter().flatten() {
        entry["name"] = entry["secret"]["name"].clone();
    }
    entries
}

/// The version of a kind that was accepted whole; with several streams, the newest one's.
fn version(sources: &Sources<'_>, kind: ResourceType) -> String {
    sources
        .streams
        .iter()
        .map(|(_, stream)| stream.status.types.get(kind))
        .max_by_key(|kind| kind.updated)
        .map_or_else(String::new, |kind| kind.version.clone())
}

fn message(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => CLUSTER,
        ResourceType::Endpoint => ENDPOINTS,
        ResourceType::Listener => LISTENER,
        ResourceType::Route => ROUTES,
        ResourceType::Secret => SECRET,
    }
}

/// The field that holds a resource's name.
fn name_field(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Endpoint => "cluster_name",
        _ => "name",
    }
}

fn type_url(message: &str) -> String {
    format!("type.googleapis.com/{message}")
}

/// The message as JSON under its field names, as Envoy prints it; a text that says why, should
/// that fail.
fn decoded<T>(resource: &Resource<T>, message: &str) -> Value {
    let Some(descriptor) = pool().get_message_by_name(message) else {
        return Value::String(format!("no descriptor of {message}"));
    };
    let json = DynamicMessage::decode(descriptor, resource.raw.clone())
        .map_err(|error| error.to_string())
        .and_then(shown::json);
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
        let sources = Sources {
            resources: &loaded.resources,
            file: &loaded.resources,
            streams: &[],
        };
        config_dump(&sources, include_eds)
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
        assert_eq!(dump(false)["configs"].as_array().map(Vec::len), Some(4));
        let dump = dump(true);
        let endpoints = &dump["configs"][4]["static_endpoint_configs"][0]["endpoint_config"];
        assert_eq!(endpoints["cluster_name"], "reviews");
    }
}
