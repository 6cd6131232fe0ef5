//! A management server that takes the stream and says nothing.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::ads::{Ads, ENDPOINTS};
use mesh_testbed::{eventually, needs_root};

use common::metric;
use common::raw_grpc::RawGrpc;
use common::resources::endpoints;
use common::scene::{PATIENCE, Scene};

fn silent(at: SocketAddr) -> Result<RawGrpc> {
    RawGrpc::start(at, Vec::new())
}

fn is_connected(scene: &Scene, state: u64) -> Result<()> {
    eventually(&format!("connected: {state}"), PATIENCE, || {
        metric(&scene.agent, "envoy_control_plane_connected_state").is_ok_and(|now| now == state)
    })
    .with_context(|| scene.agent.log())
}

#[test]
fn what_came_before_it_fell_silent_serves_on() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let mut scene = Scene::start(mode)?;
        let traffic = scene.traffic()?;
        scene.ads.stop();
        let silent = silent(scene.ads.address())?;
        eventually("it has the stream", PATIENCE, || silent.calls() > 0)?;
        // As Envoy counts: the stream stands, whoever speaks on it.
        is_connected(&scene, 1)?;
        assert_eq!(scene.served_by()?, "one");
        let status = scene.agent.command("status")?;
        ensure!(status.contains("connected"), "{status}");
        drop(silent);
        scene.ads.change(|state| {
            state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
        });
        scene.ads.resume()?;
        scene.eventually_served_by("two")?;
        traffic.end()?;
    }
    Ok(())
}

#[test]
fn nothing_is_caught_before_it_has_spoken() -> Result<()> {
    needs_root!(Ok(()));
    let mut ads = Ads::start()?;
    ads.stop();
    let silent = silent(ads.address())?;
    let mut scene = Scene::at(ads, "delta", |builder| builder, |_| {})?;
    eventually("it has the stream", PATIENCE, || silent.calls() > 0)?;
    is_connected(&scene, 1)?;
    let status = scene.agent.command("status")?;
    ensure!(status.contains("fetching"), "{status}");
    ensure!(
        scene.agent.get("/ready")?.status != 200,
        "ready without a configuration"
    );
    // The address of the service is nobody's without it.
    assert_eq!(scene.served_by()?, "status 0");
    drop(silent);
    is_connected(&scene, 0)?;
    scene.ads.resume()?;
    scene.ready()?.eventually_served_by("one")
}
