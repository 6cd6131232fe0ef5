//! Connections that a pod receives: steered to the inbound listener in the pod.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_common::{Counter, INBOUND_PORT, PodFlags};
use mesh_testbed::wire::{Banner, Connection};
use mesh_testbed::{Connect, Pod, Server, eventually, needs_root};

use crate::node::Node;

const CAPTURE_ALL: u32 = PodFlags::ALL_INBOUND_PORTS | PodFlags::NO_PORT_RULES;

/// The pod's inbound listener, as the agent makes it: both families on one socket, any address.
fn listen(pod: &Pod) -> Result<TcpListener> {
    let listener = pod.within(|| TcpListener::bind(("::", INBOUND_PORT)))??;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects, and greets the connection if it comes to the listener.
fn dial(listener: &TcpListener, client: &Pod, to: SocketAddr) -> Result<Connection> {
    std::thread::scope(|scope| {
        let connection = scope.spawn(|| Connect::to(to).run_one(client));
        let mut accepted = None;
        eventually("the connection is served", Duration::from_secs(10), || {
            accepted = listener.accept().ok();
            accepted.is_some() || connection.is_finished()
        })?;
        if let Some((mut stream, peer)) = accepted {
            let local = stream.local_addr()?;
            let banner = Banner {
                name: "inbound".to_owned(),
                peer,
                local,
            };
            writeln!(stream, "{}", serde_json::to_string(&banner)?)?;
        }
        connection.join().expect("the client does not panic")
    })
}

fn name(one: &Connection) -> Result<String> {
    Ok(one
        .banner()
        .with_context(|| format!("no greeting: {one:?}"))?
        .name)
}

#[test]
fn inbound_connections_are_steered_and_keep_their_address() -> Result<()> {
    needs_root!(Ok(()));
    let mut node = Node::new()?;
    let (client, server) = (node.testbed.pod("client")?, node.testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let health = Server::tcp(&server, "health", 15021)?;
    let mut before = Connect::to(app.addr4()).times(5).hold(&client)?;
    let listener = listen(&server)?;
    node.enrol_inbound(&server, CAPTURE_ALL)?;
    node.steer_to(&listener)?;
    for (to, own) in [app.addr4(), app.addr6()].into_iter().zip(client.ips()) {
        let one = dial(&listener, &client, to)?;
        let banner = one.banner().with_context(|| format!("{one:?}"))?;
        assert_eq!(banner.name, "inbound", "{to}");
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        assert_eq!(
            canonical(banner.local),
            to,
            "getsockname is what was dialled"
        );
        assert_eq!(banner.peer.ip().to_canonical(), own, "the client is seen");
        assert_eq!(one.peer, Some(to));
    }
    // A port nobody listens on is the agent's to answer, too.
    let closed = SocketAddr::new(app.addr4().ip(), 9999);
    assert_eq!(name(&dial(&listener, &client, closed)?)?, "inbound");
    assert_eq!(
        name(&dial(&listener, &client, health.addr4())?)?,
        "health",
        "never captured"
    );
    assert_eq!(
        name(&dial(&listener, &server, app.addr4())?)?,
        "app",
        "from inside the pod"
    );
    let held = before.check()?;
    assert_eq!(
        (held.alive, held.dead),
        (5, 0),
        "established connections are untouched"
    );
    assert_eq!(node.counter(Counter::InboundSteered)?, 3);
    Ok(())
}

#[test]
fn without_the_listener_a_pod_is_open_or_closed_as_it_says() -> Result<()> {
    needs_root!(Ok(()));
    let mut node = Node::new()?;
    let (client, server) = (node.testbed.pod("client")?, node.testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let listener = listen(&server)?;
    node.enrol_inbound(&server, CAPTURE_ALL)?;
    node.steer_to(&listener)?;
    assert_eq!(name(&dial(&listener, &client, app.addr4())?)?, "inbound");
    // A closed listener leaves the map by itself.
    drop(listener);
    for to in [app.addr4(), app.addr6()] {
        assert_eq!(name(&Connect::to(to).run_one(&client)?)?, "app", "open");
    }
    node.enrol_inbound(&server, CAPTURE_ALL | PodFlags::INBOUND_FAIL_CLOSED)?;
    for to in [app.addr4(), app.addr6()] {
        let one = Connect::to(to).run_one(&client)?;
        assert_eq!(one.errno, libc::ECONNREFUSED, "closed");
    }
    Ok(())
}
