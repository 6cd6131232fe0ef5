//! What changes is planned, and nothing else: always with the result of planning everything.

use std::collections::HashMap;

use crate::snapshot::{Inputs, compile};
use crate::source::file;
use crate::store::ResourceSet;

use super::*;

/// Three TCP services; two of them have endpoints of one EDS service.
const CONFIG: &str = r#"
static_resources:
  listeners:
  - { name: a, address: { socket_address: { address: 10.0.0.1, port_value: 80 } }, filter_chains: [ { filters: [ { name: tcp, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: a, cluster: a } } ] } ] }
  - { name: b, address: { socket_address: { address: 10.0.0.2, port_value: 80 } }, filter_chains: [ { filters: [ { name: tcp, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: b, cluster: b } } ] } ] }
  - { name: c, address: { socket_address: { address: "::", port_value: 81 } }, filter_chains: [ { filters: [ { name: tcp, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: c, cluster: c } } ] } ] }
  clusters:
  - { name: a, type: EDS, eds_cluster_config: { service_name: shared, eds_config: { ads: {} } } }
  - { name: b, type: EDS, eds_cluster_config: { eds_config: { ads: {} } } }
  - { name: c, type: EDS, eds_cluster_config: { service_name: shared, eds_config: { ads: {} } } }
  endpoints:
  - { cluster_name: shared, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 10.1.0.1, port_value: 80 } } } } ] } ] }
  - { cluster_name: b, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 10.1.0.2, port_value: 80 } } } } ] } ] }
"#;

struct World {
    views: Vec<(ViewId, ResourceSet)>,
    snapshot: Snapshot,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            views: vec![(ViewId(1), resources()), (ViewId(2), resources())],
            snapshot: Snapshot::default(),
        };
        world.compile();
        world
    }

    /// Compiles, and returns the snapshot before.
    fn compile(&mut self) -> Snapshot {
        let views = self.views.iter();
        let views: Vec<_> = views
            .map(|(id, resources)| (*id, Arc::new(resources.clone())))
            .collect();
        let inputs = Inputs {
            views: &views,
            pods: Some(Arc::new(HashMap::new())),
            in_use: &[],
            node: &Arc::default(),
            dns: &self
                .snapshot
                .views
                .values()
                .next()
                .map_or_else(Arc::default, |view| view.dns.clone()),
        };
        let next = compile(&inputs, &self.snapshot);
        std::mem::replace(&mut self.snapshot, next)
    }

    /// Gives a service of the first view another endpoint.
    fn move_endpoint(&mut self, service: &str) {
        let endpoints = Arc::make_mut(&mut self.views[0].1.endpoints);
        let resource = endpoints.get_mut(service).unwrap();
        let mut value = (*resource.value).clone();
        let address = &mut value.localities[0].endpoints[0].address;
        let crate::config::model::Address::Socket(at) = address else {
            panic!("endpoints here have addresses")
        };
        at.set_port(at.port() + 1);
        resource.value = Arc::new(value);
    }
}

fn resources() -> ResourceSet {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(&file, CONFIG).unwrap();
    file::load(file.path(), None).unwrap().resources
}

/// Names planned, with the view.
fn planned(plan: &Plan) -> Vec<(u32, String)> {
    let services = plan.services.iter();
    services
        .map(|(key, service)| (key.view_id, service.name.to_string()))
        .collect()
}

/// The services after both plans.
fn after(mut before: Plan, update: &Plan) -> BTreeMap<ServiceKey, ServicePlan> {
    before.services.retain(|key, _| !update.scope.contains(key));
    before.services.extend(update.services.clone());
    before.services
}

#[test]
fn an_endpoint_touches_its_services_only() {
    let mut world = World::new();
    for (service, users) in [("b", vec!["b"]), ("shared", vec!["a", "c", "c"])] {
        world.move_endpoint(service);
        let before = world.compile();
        let update = Plan::update(&before, &world.snapshot, &Sources::default());
        assert_eq!(update.scope, Scope::Views(BTreeSet::new()));
        let mut names: Vec<_> = planned(&update)
            .into_iter()
            .map(|(view, name)| {
                assert_eq!(view, 1);
                name
            })
            .collect();
        names.sort();
        // `::` is there for IPv4, too.
        assert_eq!(names, users);
        let whole = Plan::new(&world.snapshot, &Sources::default());
        assert_eq!(
            after(Plan::new(&before, &Sources::default()), &update),
            whole.services
        );
    }
}

#[test]
fn what_did_not_change_is_the_same_view() {
    let mut world = World::new();
    let before = world.compile();
    assert!(Arc::ptr_eq(
        &before.views[&ViewId(1)],
        &world.snapshot.views[&ViewId(1)]
    ));
    let update = Plan::update(&before, &world.snapshot, &Sources::default());
    assert_eq!(planned(&update), []);
    assert_eq!(update.scope, Scope::Views(BTreeSet::new()));
}

#[test]
fn a_snapshot_that_was_skipped_is_made_up_for() {
    let mut world = World::new();
    world.move_endpoint("b");
    let before = world.compile();
    world.move_endpoint("shared");
    world.compile();
    let update = Plan::update(&before, &world.snapshot, &Sources::default());
    assert_eq!(update.scope, Scope::Views(BTreeSet::from([ViewId(1)])));
    assert_eq!(
        after(Plan::new(&before, &Sources::default()), &update),
        Plan::new(&world.snapshot, &Sources::default()).services
    );
}

#[test]
fn views_and_listeners_come_and_go() {
    let mut world = World::new();
    Arc::make_mut(&mut world.views[0].1.listeners).remove("b");
    world.views[1].0 = ViewId(3);
    let before = world.compile();
    let update = Plan::update(&before, &world.snapshot, &Sources::default());
    let views = [ViewId(1), ViewId(2), ViewId(3)];
    assert_eq!(update.scope, Scope::Views(BTreeSet::from(views)));
    assert_eq!(
        after(Plan::new(&before, &Sources::default()), &update),
        Plan::new(&world.snapshot, &Sources::default()).services
    );
}
