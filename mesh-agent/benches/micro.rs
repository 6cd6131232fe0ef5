//! What one step costs: finding a route, choosing an endpoint, changing headers, writing a line of
//! the access log, building a snapshot, bringing the kernel's maps up to date. `cargo xtask bench
//! micro`.

mod common;

use std::hint::black_box;
use std::time::SystemTime;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_agent::balance::{maglev::Maglev, ring};
use mesh_agent::datapath::DatapathError;
use mesh_agent::datapath::plan::Plan;
use mesh_agent::datapath::reconcile::Reconciler;
use mesh_agent::datapath::sink::Sink;
use mesh_agent::datapath::sources::Sources;
use mesh_agent::proxy::micro::{Asked, Routes};
use mesh_agent::snapshot::{Snapshot, ViewId};
use mesh_agent::source::file::Loaded;
use mesh_agent::telemetry::access_log::micro::Lines;
use mesh_common::{Backend, ConnsKey, Service, ServiceKey, Slot, SlotKey};
use serde_json::{Value, json};

use common::{cluster, compiled, http, loaded, logged, service, tcp};

/// Headers as a browser's request has them behind a proxy or two.
const HEADERS: &[(&str, &str)] = &[
    ("user-agent", "curl/8.14.1"),
    ("accept", "*/*"),
    ("accept-encoding", "gzip, br"),
    ("x-request-id", "7b6ef9ab-6a4e-4e37-9f13-6f3bb6a8d7f0"),
    ("x-forwarded-for", "10.1.2.3"),
    ("x-forwarded-proto", "http"),
    ("end-user", "jason"),
];

fn routes_of(virtual_hosts: &Value) -> Routes {
    let config = json!({ "static_resources": {
        "listeners": [http(service(1), virtual_hosts)],
        "clusters": [cluster("app", 0, 2, &json!({}))],
    } });
    let snapshot = compiled(&loaded(&config), &Snapshot::default());
    let view = snapshot.view(ViewId::NODE).expect("the node's view");
    Routes::of(view, service(1)).expect("the listener has routes")
}

/// A host for each of `count`, one route in each: flat, whatever their number.
fn hosts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("virtual host");
    for count in [10, 1_000, 10_000] {
        let host = |index: u32| {
            json!({
                "name": format!("h{index}"),
                "domains": [format!("h{index}.test"), format!("h{index}.test:80")],
                "routes": [{ "name": format!("r{index}"), "match": { "prefix": "/" },
                    "route": { "cluster": "app" } }],
            })
        };
        let routes = routes_of(&(0..count).map(host).collect());
        let last = format!("h{}.test", count - 1);
        let asked = Asked::get(&last, "/items/7?x=1", HEADERS).expect("a request");
        assert_eq!(routes.find(&asked), Some(&*format!("r{}", count - 1)));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| routes.find(black_box(&asked)).is_some());
        });
    }
    group.finish();
}

/// One host; the last of its routes takes the request, as the first match decides.
fn paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("last route of a host");
    for count in [10, 1_000, 10_000] {
        let route = |index: u32| {
            json!({ "name": format!("r{index}"), "match": { "prefix": format!("/service/{index}/") },
                "route": { "cluster": "app" } })
        };
        let routes: Vec<Value> = (0..count).map(route).collect();
        let routes = routes_of(&json!([{ "name": "all", "domains": ["*"], "routes": routes }]));
        let path = format!("/service/{}/items", count - 1);
        let asked = Asked::get("a.test", &path, HEADERS).expect("a request");
        assert_eq!(routes.find(&asked), Some(&*format!("r{}", count - 1)));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| routes.find(black_box(&asked)).is_some());
        });
    }
    group.finish();
}

fn headers(criterion: &mut Criterion) {
    let add = |key: &str, value: &str| json!({ "header": { "key": key, "value": value } });
    let routes = routes_of(&json!([{ "name": "all", "domains": ["*"], "routes": [{
        "match": { "prefix": "/" },
        "route": { "cluster": "app" },
        "request_headers_to_add": [
            add("x-static", "value"),
            add("x-peer", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
            add("x-path", "%REQ(:path)%"),
        ],
        "request_headers_to_remove": ["end-user"],
    }] }]));
    let asked = Asked::get("a.test", "/", HEADERS).expect("a request");
    criterion.bench_function("header mutations: 3 added, 1 removed", |bencher| {
        let changed = |mut asked| {
            routes.mutate(&mut asked);
            asked
        };
        bencher.iter_batched(|| asked.clone(), changed, BatchSize::SmallInput);
    });
}

fn balancers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("balancer");
    for count in [10_u32, 1_000] {
        for policy in ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"] {
            let config = json!({ "static_resources": { "clusters": [
                cluster("app", 0, count, &json!({ "lb_policy": policy })),
            ] } });
            let snapshot = compiled(&loaded(&config), &Snapshot::default());
            let view = snapshot.view(ViewId::NODE).expect("the node's view");
            let app = view.clusters.get("app").expect("the cluster");
            let mut random = 0_u64;
            group.bench_function(BenchmarkId::new(policy, count), |bencher| {
                bencher.iter(|| {
                    random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                    mesh_agent::proxy::micro::pick(app, random)
                });
            });
        }
        let keys: Vec<(String, f64)> = (0..count)
            .map(|index| (format!("10.0.{}.{}:80", index / 256, index % 256), 1.0))
            .collect();
        let maglev = Maglev::new(&keys, 65_537);
        let ring = ring::Ring::new(
            &keys,
            ring::RingSize::default(),
            mesh_agent::balance::hash::HashFunction::XxHash,
        );
        let mut hash = 0_u64;
        group.bench_function(BenchmarkId::new("MAGLEV", count), |bencher| {
            bencher.iter(|| {
                hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                maglev.pick(hash, 0)
            });
        });
        group.bench_function(BenchmarkId::new("RING_HASH", count), |bencher| {
            bencher.iter(|| {
                hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                ring.pick(hash, 0)
            });
        });
    }
    group.finish();
}

/// Maps that take everything and hold nothing.
#[derive(Default)]
struct Nowhere {
    writes: u64,
}

impl Nowhere {
    #[expect(clippy::unnecessary_wraps, reason = "what a sink answers")]
    fn took(&mut self) -> Result<(), DatapathError> {
        self.writes += 1;
        Ok(())
    }
}

impl Sink for Nowhere {
    fn put_backend(&mut self, _: u32, _: Backend) -> Result<(), DatapathError> {
        self.took()
    }
    fn drop_backend(&mut self, _: u32) -> Result<(), DatapathError> {
        self.took()
    }
    fn put_slot(&mut self, _: SlotKey, _: Slot) -> Result<(), DatapathError> {
        self.took()
    }
    fn drop_slot(&mut self, _: SlotKey) -> Result<(), DatapathError> {
        self.took()
    }
    fn put_state(&mut self, _: u32) -> Result<(), DatapathError> {
        self.took()
    }
    fn drop_state(&mut self, _: u32) -> Result<(), DatapathError> {
        self.took()
    }
    fn put_conns(&mut self, _: ConnsKey) -> Result<(), DatapathError> {
        self.took()
    }
    fn drop_conns(&mut self, _: ConnsKey) -> Result<(), DatapathError> {
        self.took()
    }
    fn active(&self, _: ConnsKey) -> u64 {
        0
    }
    fn put_service(&mut self, _: ServiceKey, _: Service) -> Result<(), DatapathError> {
        self.took()
    }
    fn drop_service(&mut self, _: ServiceKey) -> Result<(), DatapathError> {
        self.took()
    }
}

fn mesh(services: u32, endpoints: u32) -> Loaded {
    let each = 0..services;
    loaded(&json!({ "static_resources": {
        "listeners": each.clone().map(|index| tcp(service(index), &format!("c{index}"))).collect::<Vec<_>>(),
        "clusters": each
            .map(|index| cluster(&format!("c{index}"), index * endpoints, endpoints, &json!({})))
            .collect::<Vec<_>>(),
    } }))
}

fn configuration(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("configuration");
    group.sample_size(10);
    for services in [100, 1_000] {
        let loaded = mesh(services, 10);
        group.throughput(Throughput::Elements(services.into()));
        group.bench_function(BenchmarkId::new("snapshot", services), |bencher| {
            bencher.iter(|| compiled(&loaded, &Snapshot::default()));
        });
        let snapshot = compiled(&loaded, &Snapshot::default());
        group.bench_function(
            BenchmarkId::new("plan and reconcile", services),
            |bencher| {
                bencher.iter(|| {
                    let (mut reconciler, mut maps) = (Reconciler::default(), Nowhere::default());
                    let report =
                        reconciler.apply(Plan::new(&snapshot, &Sources::default()), &mut maps);
                    assert!(report.failed.is_empty());
                    maps.writes
                });
            },
        );
        group.bench_function(BenchmarkId::new("nothing changed", services), |bencher| {
            let (mut reconciler, mut maps) = (Reconciler::default(), Nowhere::default());
            reconciler.apply(Plan::new(&snapshot, &Sources::default()), &mut maps);
            let before = maps.writes;
            bencher.iter(|| {
                reconciler
                    .apply(Plan::new(&snapshot, &Sources::default()), &mut maps)
                    .changed
            });
            assert_eq!(maps.writes, before);
        });
    }
    group.finish();
}

/// A request's entry as a line of Envoy's default format.
fn access_log(criterion: &mut Criterion) {
    let hosts = json!([{ "name": "all", "domains": ["*"], "routes": [{
        "match": { "prefix": "/" }, "route": { "cluster": "app" } }] }]);
    let config = json!({ "static_resources": {
        "listeners": [logged(service(1), &hosts)],
        "clusters": [cluster("app", 0, 2, &json!({}))],
    } });
    let snapshot = compiled(&loaded(&config), &Snapshot::default());
    let view = snapshot.view(ViewId::NODE).expect("the node's view");
    let lines = Lines::of(view, service(1)).expect("the listener has a log");
    let mut out = Vec::new();
    criterion.bench_function("access log line", |bencher| {
        bencher.iter(|| {
            out.clear();
            lines.write(black_box(SystemTime::UNIX_EPOCH), &mut out)
        });
    });
}

criterion_group!(
    all,
    hosts,
    paths,
    headers,
    balancers,
    access_log,
    configuration
);
criterion_main!(all);
