//! Limits of connections: exact while they last, and nothing is left when they are over.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_common::{Counter, UNLIMITED, Verdict};
use mesh_testbed::wire::Ending;
use mesh_testbed::{Churn, Connect, Pod, Server, eventually, needs_root};

use crate::node::Node;

/// How long TCP may take to finish what the churn left: an orphan in FIN_WAIT_2 lives for 60 s
/// (`tcp_fin_timeout`), but leaves the count when it becomes a mere TIME_WAIT.
const SETTLE: Duration = Duration::from_secs(20);

/// Of each ending. `MESH_CHURN` asks for another number.
const ENDINGS: usize = 12_000;

struct Scene {
    client: Pod,
    servers: [Server; 2],
    node: Node,
    _pods: Vec<Pod>,
}

fn scene() -> Result<Scene> {
    let mut node = Node::new()?;
    let client = node.testbed.pod("client")?;
    // Connections closed by the client first keep their ports for a minute.
    let range =
        client.within(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535"))?;
    range?;
    let pods = node.testbed.pods(["a", "b"])?;
    let servers = [
        Server::tcp(&pods[0], "a", 9000)?,
        Server::tcp(&pods[1], "b", 9000)?,
    ];
    node.enrol(&client)?;
    Ok(Scene {
        client,
        servers,
        node,
        _pods: pods,
    })
}

impl Scene {
    /// The service's address and the servers', in both families.
    fn families(&self, number: u8) -> [(SocketAddr, [SocketAddr; 2]); 2] {
        let [a, b] = &self.servers;
        let testbed = &self.node.testbed;
        [
            ((testbed.vip4(number), 9000).into(), [a.addr4(), b.addr4()]),
            ((testbed.vip6(number), 9000).into(), [a.addr6(), b.addr6()]),
        ]
    }

    fn settled(&self, svc_id: u32) -> Result<()> {
        eventually("every place is given back", SETTLE, || {
            self.node.conns(svc_id).is_ok_and(|(whole, each)| {
                whole.active == 0 && each.iter().all(|one| one.active == 0)
            })
        })?;
        ensure!(self.node.state(svc_id)?.active == 0);
        Ok(())
    }
}

#[test]
fn no_ending_leaves_a_place_taken() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    let endings = std::env::var("MESH_CHURN").map_or(Ok(ENDINGS), |text| text.parse())?;
    let mut tried = 0;
    for (vip, servers) in scene.families(1) {
        // Of a limit nobody reaches, counting is the same.
        let id = scene
            .node
            .limited(vip, Verdict::Direct, &servers, [1 << 20, 1 << 20])?;
        for (ending, connects) in [
            (Ending::Reset, 1),
            (Ending::Close, 1),
            (Ending::HalfClose, 1),
            (Ending::Abandon, 1),
            (Ending::Dissolve, 2),
            (Ending::Duplicate, 1),
            (Ending::FastOpen, 1),
        ] {
            let before = scene.node.conns(id)?.0.total;
            let churned = Churn::new(vip, ending, endings).run(&scene.client)?;
            assert_eq!(churned.made, endings, "{vip} {ending:?}: {churned:?}");
            let counted = scene.node.conns(id)?.0.total - before;
            assert_eq!(counted, connects * endings as u64, "{vip} {ending:?}");
            tried += counted;
            scene.settled(id)?;
        }
        let churned = Churn::new(vip, Ending::Reset, endings / 8)
            .mptcp()
            .run(&scene.client)?;
        assert_eq!(churned.made, endings / 8, "{vip} MPTCP: {churned:?}");
        scene.settled(id)?;
    }
    ensure!(tried >= 16 * endings as u64, "only {tried}");
    Ok(())
}

#[test]
fn no_failure_leaves_a_place_taken() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    for (number, (vip, [a, _])) in (2..).zip(scene.families(2)) {
        let closed = SocketAddr::new(a.ip(), 9999);
        // Addresses without a route: connect(2) fails before a SYN is made.
        let nowhere: SocketAddr = if vip.is_ipv4() {
            (scene.node.testbed.vip4(200 + number), 1).into()
        } else {
            (scene.node.testbed.vip6(200 + number), 1).into()
        };
        for (backends, errnos) in [
            (vec![closed], vec![libc::ECONNREFUSED]),
            (vec![nowhere], vec![libc::EHOSTUNREACH, libc::ENETUNREACH]),
            (vec![a, closed], vec![libc::ECONNREFUSED]),
        ] {
            let port = 9100 + scene.node.next_service() as u16;
            let at = SocketAddr::new(vip.ip(), port);
            let id = scene
                .node
                .limited(at, Verdict::Direct, &backends, [1 << 20; 2])?;
            for (ending, mptcp) in [
                (Ending::Reset, false),
                (Ending::Retry, false),
                (Ending::Reset, true),
            ] {
                let churn = Churn::new(at, ending, 2000);
                let churn = if mptcp { churn.mptcp() } else { churn };
                let churned = churn.run(&scene.client)?;
                let strange = churned.failed.keys().find(|errno| !errnos.contains(errno));
                assert_eq!(strange, None, "{at} {ending:?} {mptcp}: {churned:?}");
                let failed: usize = churned.failed.values().sum();
                assert_eq!(churned.made + failed, 2000, "{churned:?}");
                assert!(failed > 0, "{at} {ending:?} {mptcp}: {churned:?}");
                scene.settled(id)?;
            }
        }
    }
    Ok(())
}

#[test]
fn no_connection_more_than_allowed() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    for (vip, servers) in scene.families(3) {
        for (port, limits, allowed) in [
            (9001, [5, UNLIMITED], 5),
            (9002, [UNLIMITED, 3], 6),
            (9003, [4, 3], 4),
            (9004, [0, UNLIMITED], 0),
        ] {
            let at = SocketAddr::new(vip.ip(), port);
            let refused = scene.node.counter(Counter::Overflow)?;
            let id = scene.node.limited(at, Verdict::Direct, &servers, limits)?;
            let held = Connect::to(at).times(10).hold(&scene.client)?;
            let made = held.connections.iter().filter(|one| one.connected).count();
            assert_eq!(made, allowed, "{at} {limits:?}");
            for one in held.connections.iter().filter(|one| !one.connected) {
                assert_eq!(one.errno, libc::ECONNREFUSED, "{at}: {one:?}");
            }
            let (whole, each) = scene.node.conns(id)?;
            assert_eq!(
                (whole.active, whole.total),
                (allowed as u64, allowed as u64)
            );
            let overflow = whole.overflow + each.iter().map(|one| one.overflow).sum::<u64>();
            assert_eq!(overflow, 10 - allowed as u64, "{at} {limits:?}");
            let refused = scene.node.counter(Counter::Overflow)? - refused;
            assert_eq!(refused, overflow);
            // Many at once, at the limit: not one gets through, and each is told at once.
            let churned = Churn::new(at, Ending::Reset, 2000).run(&scene.client)?;
            assert_eq!(
                churned.failed.get(&libc::ECONNREFUSED),
                Some(&2000),
                "{churned:?}"
            );
            drop(held);
            scene.settled(id)?;
            let again = Connect::to(at).run_one(&scene.client)?;
            assert_eq!(again.connected, allowed > 0, "{at}: room again");
            scene.settled(id)?;
        }
    }
    Ok(())
}

#[test]
fn connects_at_the_same_time_share_the_limit_exactly() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    let [(vip, servers), _] = scene.families(4);
    let id = scene
        .node
        .limited(vip, Verdict::Direct, &servers, [1, UNLIMITED])?;
    let churned = Churn::new(vip, Ending::Reset, 40_000).run(&scene.client)?;
    let refused = churned.failed.get(&libc::ECONNREFUSED).copied();
    assert_eq!(churned.made + refused.unwrap_or(0), 40_000, "{churned:?}");
    let (whole, _) = scene.node.conns(id)?;
    assert_eq!(whole.total, churned.made as u64);
    assert_eq!(whole.overflow, refused.unwrap_or(0) as u64);
    scene.settled(id)
}
