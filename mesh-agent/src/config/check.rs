//! References between resources.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::store::ResourceSet;

use super::error::Problem;
use super::model::cluster::Discovery;
use super::model::filter::HttpFilter;
use super::model::listener::{Listener, RouteSource, Terminal, TrafficDirection};
use super::model::route::RouteConfiguration;
use super::model::{Name, canonical};

/// Which resource a problem is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A listener.
    Listener(Name),
    /// A named route configuration.
    Routes(Name),
    /// A cluster.
    Cluster(Name),
}

/// References that lead nowhere, and listeners in each other's way.
pub fn check(resources: &ResourceSet) -> Vec<(Subject, Problem)> {
    let mut problems = Vec::new();
    let mut addresses: HashMap<(TrafficDirection, SocketAddr), &Name> = HashMap::new();
    let mut inbound: Option<&Name> = None;
    let mut catch_all: Option<&Name> = None;
    for (name, resource) in resources.listeners.iter() {
        let listener = &resource.value;
        let mut problem = |problem| problems.push((Subject::Listener(name.clone()), problem));
        references(listener, resources, &mut problem);
        for name in listener.secrets() {
            if let Some(missing) = missing_secret(name, resources) {
                problem(missing);
            }
        }
        if !listener.role.is_caught() {
            continue;
        }
        if listener.direction == TrafficDirection::Inbound {
            if let Some(first) = inbound.replace(name) {
                problem(
                    Problem::new("traffic_direction", format!("{first} is INBOUND already"))
                        .remedy("one listener takes all inbound connections; use filter chains"),
                );
            }
            continue;
        }
        if listener.use_original_dst
            && let Some(first) = catch_all.replace(name)
        {
            problem(
                Problem::new("use_original_dst", format!("{first} sets it already"))
                    .remedy("one listener takes what no other one does"),
            );
        }
        for (i, address) in listener.addresses.iter().enumerate() {
            let key = (
                listener.direction,
                SocketAddr::new(canonical(address.ip), address.port),
            );
            if let Some(first) = addresses.insert(key, name) {
                let path = if i == 0 {
                    "address".to_owned()
                } else {
                    format!("additional_addresses[{}].address", i - 1)
                };
                problem(Problem::new(
                    path,
                    format!("{} belongs to listener {first}", key.1),
                ));
            }
        }
    }
    for (name, resource) in resources.routes.iter() {
        if resource.value.validate_clusters != Some(false) {
            for problem in missing_clusters(&resource.value, "", resources) {
                problems.push((Subject::Routes(name.clone()), problem));
            }
        }
    }
    for (name, resource) in resources.clusters.iter() {
        for secret in resource.value.secrets() {
            if let Some(missing) = missing_secret(secret, resources) {
                problems.push((Subject::Cluster(name.clone()), missing));
            }
        }
        if let Discovery::Eds { service_name } = &resource.value.discovery
            && !resources.endpoints.contains_key(service_name)
        {
            let problem = Problem::new(
                "eds_cluster_config",
                format!("endpoints {service_name} do not exist"),
            )
            .remedy("add them under static_resources.endpoints, or make the cluster STATIC");
            problems.push((Subject::Cluster(name.clone()), problem));
        }
    }
    problems
}

fn references(listener: &Listener, resources: &ResourceSet, problem: &mut dyn FnMut(Problem)) {
    let chains = listener
        .filter_chains
        .iter()
        .enumerate()
        .map(|(i, chain)| (format!("filter_chains[{i}]"), chain))
        .chain(
            listener
                .default_filter_chain
                .iter()
                .map(|c| ("default_filter_chain".into(), c)),
        );
    for (path, chain) in chains {
        match &chain.terminal {
            Terminal::Tcp(proxy) => {
                for cluster in &proxy.clusters {
                    if !resources.clusters.contains_key(&cluster.cluster) {
                        problem(missing(
                            &format!("{path}.filters"),
                            &cluster.cluster,
                            resources,
                        ));
                    }
                }
            }
            Terminal::Http(hcm) => {
                for cluster in hcm.http_filters.iter().flat_map(HttpFilter::clusters) {
                    if !resources.clusters.contains_key(cluster) {
                        problem(missing(&format!("{path}.filters"), cluster, resources));
                    }
                }
                route_references(&path, &hcm.routes, resources, problem);
            }
        }
    }
}

fn route_references(
    path: &str,
    routes: &RouteSource,
    resources: &ResourceSet,
    problem: &mut dyn FnMut(Problem),
) {
    match routes {
        RouteSource::Inline(routes) if routes.validate_clusters == Some(false) => {}
        RouteSource::Inline(routes) => {
            missing_clusters(routes, path, resources)
                .into_iter()
                .for_each(&mut *problem);
        }
        RouteSource::Rds(name) if !resources.routes.contains_key(name) => problem(
            Problem::new(
                format!("{path}.filters"),
                format!("route configuration {name} does not exist"),
            )
            .remedy("add it under static_resources.routes"),
        ),
        RouteSource::Rds(_) => {}
    }
}

/// Clusters that routes name and nobody defines. The path is as near as the model remembers.
fn missing_clusters(
    routes: &RouteConfiguration,
    path: &str,
    resources: &ResourceSet,
) -> Vec<Problem> {
    routes
        .clusters()
        .filter(|(_, cluster)| !resources.clusters.contains_key(*cluster))
        .map(|(at, cluster)| {
            let at = if path.is_empty() {
                at
            } else {
                format!("{path}.filters[0].typed_config.route_config.{at}")
            };
            missing(&at, cluster, resources)
        })
        .collect()
}

fn missing_secret(name: &Name, resources: &ResourceSet) -> Option<Problem> {
    if resources.secrets.contains_key(name) {
        return None;
    }
    let problem = Problem::new("transport_socket", format!("secret {name} does not exist"));
    let known = resources.secrets.keys().map(|name| &**name);
    Some(match super::error::nearest(name, known) {
        Some(near) => problem.remedy(format!("did you mean {near}?")),
        None => {
            problem.remedy("add it under static_resources.secrets, or name a server in sds_config")
        }
    })
}

fn missing(path: &str, cluster: &Name, resources: &ResourceSet) -> Problem {
    let problem = Problem::new(path, format!("cluster {cluster} does not exist"));
    match super::error::nearest(cluster, resources.clusters.keys().map(|name| &**name)) {
        Some(near) => problem.remedy(format!("did you mean {near}?")),
        None => problem.remedy("add it under static_resources.clusters"),
    }
}
