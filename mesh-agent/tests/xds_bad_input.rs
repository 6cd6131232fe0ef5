//! A management server that sends nonsense, too much or not what it should: it is told so, memory
//! stays bounded, and what was right last goes on serving.

mod common;

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use mesh_testbed::ads::{CLUSTER, ENDPOINTS, LISTENER, ROUTES, resource};
use mesh_testbed::{Curl, eventually, needs_root};
use prost::Message as _;
use serde_json::json;

use common::metric;
use common::raw_grpc::RawGrpc;
use common::resources::{cluster, endpoints, http_listener, routes, tcp_listener};
use common::scene::{PATIENCE, Scene};

#[test]
fn two_hundred_megabytes_are_refused_and_what_runs_goes_on() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start("delta")?;
    let traffic = scene.traffic()?;
    let memory = scene.agent.memory()?;
    let streams = scene.ads.streams();
    scene.ads.change(|state| {
        let huge = Any {
            type_url: CLUSTER.into(),
            value: vec![0; 200 << 20],
        };
        state.set_any(CLUSTER, "huge", huge);
    });
    scene.logs("--xds-max-message-mib")?;
    // It would be sent again by every stream: they do not follow one another at once.
    eventually("it is tried again", PATIENCE, || {
        scene.ads.streams() >= streams + 3
    })?;
    let log = scene.agent.log();
    let ended: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("the xDS stream ended"))
        .collect();
    ensure!(ended.len() <= 5, "streams end too fast: {ended:#?}");
    let grown = scene.agent.memory()?.saturating_sub(memory);
    ensure!(
        grown < 64 << 20,
        "200 MiB that were refused cost {grown} bytes"
    );
    assert_eq!(scene.served_by()?, "one");
    scene.ads.change(|state| {
        state.remove(CLUSTER, "huge");
        state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
    });
    scene.eventually_served_by("two")?;
    traffic.end()?;
    Ok(())
}

fn odd(type_url: &str, nonce: &str, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

#[test]
fn odd_responses_do_no_harm() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start("delta")?;
    let traffic = scene.traffic()?;
    scene.ads.change(|state| {
        // Of a kind nobody knows, nobody asked for; without a nonce; a nonce that was used; a
        // removal of what is not there.
        state.send_delta(odd("type.googleapis.com/example.Unknown", "x1", &["a"]));
        state.send_delta(odd(CLUSTER, "", &[]));
        state.send_delta(odd(CLUSTER, "1", &[]));
        state.send_delta(odd(CLUSTER, "x2", &["never-there"]));
    });
    scene.ads.wait("the last", |asked| asked.nonce == "x2")?;
    ensure!(
        scene.ads.asked().iter().all(|asked| asked.nonce != "x1"),
        "it answered what it never asked for"
    );
    assert_eq!(scene.served_by()?, "one");
    traffic.end()?;
    Ok(())
}

#[test]
fn a_flood_from_a_server_that_does_not_read_costs_no_memory() -> Result<()> {
    needs_root!(Ok(()));
    const FLOOD: u64 = 30_000;
    let scene = Scene::start("delta")?;
    let traffic = scene.traffic()?;
    let memory = scene.agent.memory()?;
    scene.ads.change(|state| {
        state.deaf(true);
        for number in 0..FLOOD {
            let names: Vec<String> = (0..20).map(|i| format!("{number}-{i}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            state.send_delta(odd(ENDPOINTS, &format!("flood-{number}"), &names));
        }
    });
    eventually("the flood is over", PATIENCE, || {
        metric(&scene.agent, "mesh_xds_responses_total{type=\"EDS\"}")
            .is_ok_and(|responses| responses >= FLOOD)
    })?;
    let grown = scene.agent.memory()?.saturating_sub(memory);
    ensure!(grown < 64 << 20, "the flood cost {grown} bytes");
    assert_eq!(scene.served_by()?, "one");
    // The server listens again: the last response is answered, and what it says next holds.
    scene.ads.change(|state| state.deaf(false));
    let last = format!("flood-{}", FLOOD - 1);
    scene
        .ads
        .wait("the last of the flood", |asked| asked.nonce == last)?;
    scene.ads.change(|state| {
        state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
    });
    scene.eventually_served_by("two")?;
    let grown = scene.agent.memory()?.saturating_sub(memory);
    ensure!(
        grown < 64 << 20,
        "names that are not there cost {grown} bytes"
    );
    traffic.end()?;
    Ok(())
}

#[test]
fn chains_that_contradict_one_another_are_refused() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let scene = Scene::start(mode)?;
        let traffic = scene.traffic()?;
        let mut listener = http_listener("web", scene.vip, "web");
        let mut chain = listener["filter_chains"][0].clone();
        chain["filter_chain_match"] = json!({ "destination_port": scene.vip.port() });
        listener["filter_chains"] = json!([chain, chain]);
        scene
            .ads
            .change(|state| state.set(LISTENER, "web", &listener));
        let refused = scene
            .ads
            .wait("a rejection", |asked| asked.error.is_some())?;
        let error = refused.error.unwrap_or_default();
        ensure!(
            error.contains("web: filter_chains[1].filter_chain_match")
                && error.contains("filter_chains[0]"),
            "{error}"
        );
        assert_eq!(scene.served_by()?, "one");
        traffic.end()?;
    }
    Ok(())
}

#[test]
fn references_that_lead_nowhere_or_in_a_circle_harm_nobody_else() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start("delta")?;
    let traffic = scene.traffic()?;
    let at = |number: u8| std::net::SocketAddr::new(scene.testbed.vip4(number).into(), 80);
    let (lost, circle, kernel) = (at(2), at(3), at(4));
    scene.ads.change(|state| {
        // Routes that nobody has, and routes to a cluster that nobody has.
        state.set(LISTENER, "lost", &http_listener("lost", lost, "nowhere"));
        state.set(ROUTES, "web", &routes("web", "nowhere"));
        // Services whose endpoint is the service itself: at the agent, and in the kernel.
        for (name, at) in [("circle", circle), ("kernel", kernel)] {
            state.set(CLUSTER, name, &cluster(name));
            state.set(ENDPOINTS, name, &endpoints(name, &[at]));
        }
        state.set(
            LISTENER,
            "circle",
            &http_listener("circle", circle, "circle"),
        );
        state.set(ROUTES, "circle", &routes("circle", "circle"));
        state.set(
            LISTENER,
            "kernel",
            &tcp_listener("kernel", kernel, "kernel"),
        );
    });
    scene.ads.wait("the routes of the lost listener", |asked| {
        asked.type_url == ROUTES && asked.names.iter().any(|name| name == "nowhere")
    })?;
    // The agent's own connections are not caught: what leads to itself ends at once.
    let get = |at: std::net::SocketAddr| Curl::get(&scene.client, &format!("http://{at}/")).send();
    eventually("the circle is served", PATIENCE, || {
        get(circle).is_ok_and(|response| response.status == 503)
    })?;
    let once = metric(
        &scene.agent,
        "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"circle\"}",
    )?;
    get(circle)?;
    let twice = metric(
        &scene.agent,
        "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"circle\"}",
    )?;
    ensure!(
        twice <= once + 2,
        "one request made {} connections",
        twice - once
    );
    ensure!(
        get(kernel)?.exit != 0,
        "the kernel's circle leads somewhere"
    );
    // What refers to nothing waits, and what was there serves meanwhile.
    assert_eq!(scene.served_by()?, "one");
    scene
        .ads
        .change(|state| state.set(ROUTES, "web", &routes("web", "one")));
    scene.eventually_served_by("one")?;
    traffic.end()?;
    Ok(())
}

#[test]
fn a_server_that_does_not_speak_the_protocol_is_named_and_left_alone() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = Scene::start("delta")?;
    let traffic = scene.traffic()?;
    let at = scene.ads.address();
    let whole_world = DiscoveryResponse {
        version_info: "1".into(),
        type_url: CLUSTER.into(),
        nonce: "1".into(),
        resources: vec![resource(CLUSTER, &cluster("one"))?],
        ..DiscoveryResponse::default()
    };
    for (messages, says) in [
        // State of the world on a delta stream.
        (vec![whole_world.encode_to_vec()], "--xds-mode sotw"),
        // Not even protobuf.
        (vec![vec![0xff; 100]], "decode"),
    ] {
        scene.ads.stop();
        let before = scene.agent.log().len();
        let raw = RawGrpc::start(at, messages)?;
        let said = || {
            scene
                .agent
                .log()
                .get(before..)
                .is_some_and(|log| log.contains(says))
        };
        eventually(&format!("the agent says {says}"), PATIENCE, said)
            .with_context(|| scene.agent.log())?;
        assert_eq!(scene.served_by()?, "one");
        drop(raw);
        // The real server has something to say: a stream that brought nothing is followed by a
        // wait, and each of these by a longer one.
        let streams = scene.ads.streams();
        scene.ads.change(|state| {
            state.set(ENDPOINTS, "one", &endpoints("one", &[scene.one.addr4()]));
        });
        scene.ads.resume()?;
        scene
            .ads
            .wait("an answer of the agent on a new stream", |asked| {
                asked.stream > streams && !asked.nonce.is_empty()
            })?;
    }
    // A message that is announced and does not come: nothing is kept for it in advance.
    scene.ads.stop();
    let memory = scene.agent.memory()?;
    let announced = 60_u32 << 20;
    let mut head = vec![0];
    head.extend(announced.to_be_bytes());
    let raw = RawGrpc::frames(at, vec![head.into(), vec![0; 1000].into()])?;
    eventually("the beginning was sent", PATIENCE, || raw.calls() > 0)?;
    eventually("the stream is open", PATIENCE, || {
        metric(&scene.agent, "envoy_control_plane_connected_state").is_ok_and(|state| state == 1)
    })?;
    assert_eq!(scene.served_by()?, "one");
    let grown = scene.agent.memory()?.saturating_sub(memory);
    ensure!(
        grown < 32 << 20,
        "60 MiB that did not come cost {grown} bytes"
    );
    drop(raw);
    scene.ads.change(|state| {
        state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
    });
    scene.ads.resume()?;
    scene.eventually_served_by("two")?;
    traffic.end()?;
    Ok(())
}
