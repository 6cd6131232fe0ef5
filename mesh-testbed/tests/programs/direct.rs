//! Verdicts direct, deny and pass.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_common::{Counter, Verdict};
use mesh_testbed::wire::Connection;
use mesh_testbed::{Connect, Pod, Server, eventually, needs_root};

use crate::node::Node;

struct Scene {
    client: Pod,
    outsider: Pod,
    a: Server,
    b: Server,
    /// IPv4 and IPv6 address of the service with both servers.
    vips: [SocketAddr; 2],
    /// Its numbers.
    ids: [u32; 2],
    _pods: Vec<Pod>,
    node: Node,
}

fn scene() -> Result<Scene> {
    let mut node = Node::new()?;
    let client = node.testbed.pod("client")?;
    let outsider = node.testbed.pod("outsider")?;
    let pods = node.testbed.pods(["a", "b"])?;
    let (a, b) = (
        Server::tcp(&pods[0], "a", 9000)?,
        Server::tcp(&pods[1], "b", 9000)?,
    );
    node.enrol(&client)?;
    let vips = [
        (node.testbed.vip4(1), 9000).into(),
        (node.testbed.vip6(1), 9000).into(),
    ];
    let ids = [
        node.service(vips[0], Verdict::Direct, &[a.addr4(), b.addr4()])?,
        node.service(vips[1], Verdict::Direct, &[a.addr6(), b.addr6()])?,
    ];
    Ok(Scene {
        client,
        outsider,
        a,
        b,
        vips,
        ids,
        _pods: pods,
        node,
    })
}

fn name(one: &Connection) -> Result<String> {
    Ok(one
        .banner()
        .with_context(|| format!("no greeting: {one:?}"))?
        .name)
}

#[test]
fn backends_take_turns_and_both_ends_see_the_right_addresses() -> Result<()> {
    needs_root!(Ok(()));
    let scene = scene()?;
    for (vip, own) in scene.vips.into_iter().zip(scene.client.ips()) {
        let all = Connect::to(vip).times(20).run(&scene.client)?;
        let names = all.iter().map(name).collect::<Result<Vec<_>>>()?;
        assert_eq!(names.concat(), "ab".repeat(10), "{vip}");
        for one in &all {
            assert_eq!(one.peer, Some(vip), "getpeername is what was dialled");
            let banner = one.banner().context("a greeting")?;
            assert_eq!((banner.peer.ip(), Some(banner.peer)), (own, one.local));
        }
    }
    assert_eq!(scene.node.counter(Counter::Direct)?, 40);
    Ok(())
}

#[test]
fn every_way_to_connect_is_balanced() -> Result<()> {
    needs_root!(Ok(()));
    let scene = scene()?;
    let [vip, _] = scene.vips;
    let bind = SocketAddr::new(scene.client.ip4().into(), 41_000);
    let plain = scene.a.addr4();
    for connect in [
        Connect::to(vip).flag("--nonblocking"),
        Connect::to(vip).option("--bind", bind),
        Connect::to(vip)
            .flag("--fastopen")
            .option("--send", "hello"),
        Connect::to(plain).option("--then", vip),
        Connect::to(vip).option("--then", vip),
    ] {
        let one = connect.run_one(&scene.client)?;
        name(&one)?;
        assert_eq!(one.peer, Some(vip), "{connect:?}");
    }
    let mapped = Connect::to(vip).flag("--mapped").run_one(&scene.client)?;
    name(&mapped)?;
    assert_eq!(
        mapped.peer.map(|peer| peer.ip().to_canonical()),
        Some(vip.ip())
    );
    // A socket that dials something else afterwards is no longer ours.
    let left = Connect::to(vip)
        .option("--then", plain)
        .run_one(&scene.client)?;
    assert_eq!((name(&left)?.as_str(), left.peer), ("a", Some(plain)));
    // The connection is balanced; getpeername of an MPTCP socket is not rewritten.
    name(&Connect::to(vip).flag("--mptcp").run_one(&scene.client)?)?;
    Ok(())
}

#[test]
fn connections_are_counted_while_they_live() -> Result<()> {
    needs_root!(Ok(()));
    let scene = scene()?;
    for (vip, id) in scene.vips.into_iter().zip(scene.ids) {
        let open = Connect::to(vip).times(20).hold(&scene.client)?;
        assert_eq!(scene.node.state(id)?.active, 20);
        drop(open);
        eventually("all are given back", Duration::from_secs(5), || {
            scene.node.state(id).is_ok_and(|state| state.active == 0)
        })?;
    }
    Ok(())
}

#[test]
fn a_connection_that_fails_is_given_back() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    let closed = SocketAddr::new(scene.a.addr4().ip(), 9999);
    let vip = SocketAddr::from((scene.node.testbed.vip4(2), 9000));
    let id = scene.node.service(vip, Verdict::Direct, &[closed])?;
    for one in Connect::to(vip).times(10).run(&scene.client)? {
        assert_eq!((one.errno, one.connected), (libc::ECONNREFUSED, false));
    }
    eventually("all are given back", Duration::from_secs(5), || {
        scene
            .node
            .state(id)
            .is_ok_and(|state| state.active == 0 && state.connects == 10)
    })
}

#[test]
fn refused_is_econnrefused_at_once() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    let testbed = &scene.node.testbed;
    let denied: [SocketAddr; 2] = [
        (testbed.vip4(3), 9000).into(),
        (testbed.vip6(3), 9000).into(),
    ];
    let empty: SocketAddr = (testbed.vip4(4), 9000).into();
    scene.node.service(denied[0], Verdict::Deny, &[])?;
    scene.node.service(denied[1], Verdict::Deny, &[])?;
    scene.node.service(empty, Verdict::Direct, &[])?;
    for connect in [
        Connect::to(denied[0]),
        Connect::to(denied[0]).flag("--mapped"),
        Connect::to(denied[0]).flag("--nonblocking"),
        Connect::to(denied[1]),
        Connect::to(empty),
    ] {
        let one = connect.run_one(&scene.client)?;
        assert_eq!(
            (one.errno, one.connected),
            (libc::ECONNREFUSED, false),
            "{connect:?}"
        );
    }
    assert_eq!(scene.node.counter(Counter::Deny)?, 4);
    assert_eq!(scene.node.counter(Counter::NoBackend)?, 1);
    Ok(())
}

#[test]
fn what_is_not_ours_is_left_alone() -> Result<()> {
    needs_root!(Ok(()));
    let scene = scene()?;
    for vip in scene.vips {
        let one = Connect::to(vip).run_one(&scene.outsider)?;
        assert_eq!(one.errno, libc::EHOSTUNREACH, "a pod that is not enrolled");
    }
    let [vip, _] = scene.vips;
    let udp = Connect::to(vip)
        .flag("--udp")
        .flag("--no-read")
        .run_one(&scene.client)?;
    assert_eq!(udp.errno, libc::EHOSTUNREACH, "UDP");
    let plain = Connect::to(scene.b.addr4()).run_one(&scene.client)?;
    assert_eq!(
        (name(&plain)?.as_str(), plain.peer),
        ("b", Some(scene.b.addr4()))
    );
    assert_eq!(scene.node.counter(Counter::Pass)?, 1);
    Ok(())
}
