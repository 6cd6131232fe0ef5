//! Verdict agent: the connection comes to the listener in the pod, the original destination with
//! it.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result};
use mesh_common::{Counter, OUTBOUND_PORT, Verdict};
use mesh_testbed::wire::Banner;
use mesh_testbed::{Connect, Pod, needs_root};

use crate::node::Node;

/// Greets whoever connects, as the agent would accept: from outside the pod's cgroup.
fn listen(pod: &Pod) -> Result<()> {
    for address in ["127.0.0.1", "::1"] {
        let listener = pod.within(|| TcpListener::bind((address, OUTBOUND_PORT)))??;
        // Ends with the test's process.
        std::thread::spawn(move || {
            // Kept open: closing one with unread bytes resets it.
            let mut open = Vec::new();
            for mut stream in listener.incoming().flatten() {
                // A socket that was connected again is gone already.
                let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
                    continue;
                };
                let banner = Banner {
                    name: "agent".to_owned(),
                    peer,
                    local,
                };
                let mut line = serde_json::to_vec(&banner).expect("a banner is JSON");
                line.push(b'\n');
                let _ = stream.write_all(&line);
                open.push(stream);
            }
        });
    }
    Ok(())
}

#[test]
fn the_agent_learns_where_a_connection_wanted_to_go() -> Result<()> {
    needs_root!(Ok(()));
    let mut node = Node::new()?;
    let client = node.testbed.pod("client")?;
    node.enrol(&client)?;
    let v4: SocketAddr = (node.testbed.vip4(1), 80).into();
    let v6: SocketAddr = (node.testbed.vip6(1), 80).into();
    let other: SocketAddr = (node.testbed.vip4(2), 80).into();
    for vip in [v4, v6, other] {
        node.service(vip, Verdict::Agent, &[])?;
    }
    listen(&client)?;
    let bind = SocketAddr::new(client.ip4().into(), 42_000);
    for (connect, dialled) in [
        (Connect::to(v4), v4),
        (Connect::to(v6), v6),
        (Connect::to(v4).flag("--mapped"), v4),
        (Connect::to(v4).flag("--nonblocking"), v4),
        (Connect::to(v6).flag("--nonblocking"), v6),
        (Connect::to(v4).flag("--fastopen").option("--send", "x"), v4),
        (Connect::to(v4).option("--then", other), other),
        (Connect::to(v4).option("--bind", bind), v4),
        (Connect::to(v4).flag("--mptcp"), v4),
    ] {
        // Machines that are emulated take longer for all of them than a heart may stand still.
        node.heartbeat()?;
        let one = connect.run_one(&client)?;
        let banner = one
            .banner()
            .with_context(|| format!("{connect:?}: {one:?}"))?;
        assert_eq!(banner.name, "agent");
        assert_eq!(node.original(&client, banner.peer)?, dialled, "{connect:?}");
        if format!("{connect:?}").contains("mptcp") {
            // getpeername and getsockname of MPTCP sockets are not rewritten.
            continue;
        }
        let canonical = |address: Option<SocketAddr>| address.map(|a| a.ip().to_canonical());
        assert_eq!(canonical(one.peer), Some(dialled.ip()), "{connect:?}");
        let own = client.ips()[usize::from(dialled.is_ipv6())];
        assert_eq!(canonical(one.local), Some(own), "not loopback: {connect:?}");
    }
    Ok(())
}

#[test]
fn without_the_agent_a_connection_is_refused() -> Result<()> {
    needs_root!(Ok(()));
    let mut node = Node::new()?;
    let client = node.testbed.pod("client")?;
    node.enrol(&client)?;
    let vip: SocketAddr = (node.testbed.vip4(1), 80).into();
    node.service(vip, Verdict::Agent, &[])?;
    node.heartbeat()?;
    let no_listener = Connect::to(vip).run_one(&client)?;
    assert_eq!(no_listener.errno, libc::ECONNREFUSED);
    assert_eq!(node.counter(Counter::AgentDown)?, 1);
    assert_eq!(node.counter(Counter::Agent)?, 0);
    Ok(())
}

#[test]
fn an_agent_whose_heart_does_not_beat_is_no_agent() -> Result<()> {
    needs_root!(Ok(()));
    let mut node = Node::new()?;
    let client = node.testbed.pod("client")?;
    node.enrol(&client)?;
    let vip: SocketAddr = (node.testbed.vip4(1), 80).into();
    node.service(vip, Verdict::Agent, &[])?;
    listen(&client)?;
    let stale = Connect::to(vip).run_one(&client)?;
    assert_eq!(
        stale.errno,
        libc::ECONNREFUSED,
        "its listener is there, but it hangs"
    );
    node.heartbeat()?;
    assert_eq!(Connect::to(vip).run_one(&client)?.errno, 0);
    Ok(())
}
