//! Steps of the request path by themselves, so often as is asked for: `cargo xtask bench
//! instructions` runs them under callgrind, twice, and what the difference costs is a step's.
//!
//! Its arguments are a step and a number; without them the steps are listed.

mod common;

use std::hint::black_box;
use std::time::SystemTime;

use mesh_agent::proxy::micro::{Exchange, pick};
use mesh_agent::snapshot::{Snapshot, ViewId};
use mesh_agent::telemetry::access_log::micro::Lines;
use serde_json::{Value, json};

use common::{cluster, compiled, http, loaded, logged, service};

const REQUEST: &[u8] = b"GET /items/7?x=1 HTTP/1.1\r\nHost: h9.test\r\nUser-Agent: curl/8.14.1\r\n\
    Accept: */*\r\nAccept-Encoding: gzip, br\r\nx-request-id: 7b6ef9ab-6a4e-4e37-9f13-6f3bb6a8d7f0\r\n\
    x-forwarded-for: 10.1.2.3\r\nx-forwarded-proto: http\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.28.0\r\nDate: Tue, 03 Mar 2026 12:00:00 \
    GMT\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: keep-alive\r\n\r\nbench\n";

/// Runs a step so often.
type Run = fn(u32);

const STEPS: [(&str, Run); 5] = [
    ("request-10-hosts", |times| exchange(10, times)),
    ("request-1000-hosts", |times| exchange(1000, times)),
    ("pick-least-request-10", |times| picks(10, times)),
    ("pick-least-request-1000", |times| picks(1000, times)),
    ("access-log-line", lines),
];

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (Some(step), times) = (args.next(), args.next()) else {
        for (name, _) in STEPS {
            println!("{name}");
        }
        return;
    };
    let (_, run) = STEPS
        .iter()
        .find(|(name, _)| *name == step)
        .unwrap_or_else(|| panic!("there is no step {step}"));
    let times = times.and_then(|times| times.parse().ok());
    run(times.expect("how often"));
}

fn hosts(count: u32) -> Value {
    let host = |index: u32| {
        json!({ "name": format!("h{index}"),
            "domains": [format!("h{index}.test"), format!("h{index}.test:80")],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "app" } }] })
    };
    (0..count).map(host).collect()
}

/// A request and its response, without sockets.
fn exchange(hosts_: u32, times: u32) {
    let config = json!({ "static_resources": {
        "listeners": [http(service(1), &hosts(hosts_))],
        "clusters": [cluster("app", 0, 2, &json!({}))],
    } });
    let snapshot = compiled(&loaded(&config), &Snapshot::default());
    let view = snapshot.view(ViewId::NODE).expect("the node's view");
    let mut exchange = Exchange::of(view, service(1)).expect("a listener");
    for _ in 0..times {
        let endpoint = exchange.run(view, black_box(REQUEST), black_box(RESPONSE));
        assert!(endpoint.is_some(), "it is served");
    }
}

fn picks(endpoints: u32, times: u32) {
    let policy = json!({ "lb_policy": "LEAST_REQUEST" });
    let config = json!({ "static_resources": {
        "clusters": [cluster("app", 0, endpoints, &policy)] } });
    let snapshot = compiled(&loaded(&config), &Snapshot::default());
    let view = snapshot.view(ViewId::NODE).expect("the node's view");
    let app = view.clusters.get("app").expect("the cluster");
    for random in 0..times {
        assert!(pick(app, black_box(random.into())).is_some(), "an endpoint");
    }
}

fn lines(times: u32) {
    let config = json!({ "static_resources": {
        "listeners": [logged(service(1), &hosts(1))],
        "clusters": [cluster("app", 0, 2, &json!({}))],
    } });
    let snapshot = compiled(&loaded(&config), &Snapshot::default());
    let view = snapshot.view(ViewId::NODE).expect("the node's view");
    let lines = Lines::of(view, service(1)).expect("a listener");
    let mut out = Vec::new();
    for _ in 0..times {
        out.clear();
        assert!(lines.write(SystemTime::UNIX_EPOCH, &mut out) > 0, "a line");
    }
}
