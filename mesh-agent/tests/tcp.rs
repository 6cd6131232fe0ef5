//! TCP through the agent: ends, resets, limits, bulk, and every way a client may connect.

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Connect, MeshAgent, Pod, Server, SocketKind, Testbed, eventually, needs_root};
use socket2::{Domain, SockRef};

use common::{Config, PATIENCE, cluster_stat, greeted_by};

/// What keeps a service from being balanced by the kernel, so that the agent carries it.
const IN_AGENT: &str = ", idle_timeout: 3000s";

/// A client whose service the agent carries, and the server's listener in this process.
struct Line {
    client: Pod,
    vip: SocketAddr,
    listener: TcpListener,
    agent: MeshAgent,
    // Dropped last: it takes the pods with it.
    _server: Pod,
    _testbed: Testbed,
}

impl Line {
    fn new(family: Family, proxy: &str, cluster: &str) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        let (vip, own) = family(&testbed, &server);
        let listener = server.within(|| TcpListener::bind((own, 9000)))??;
        // Bounds accept(2), too.
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
        let vip = SocketAddr::new(vip, 700);
        let config = Config::default()
            .enrol(&client, "")
            .tcp("app", vip, proxy)
            .cluster_with("app", &[listener.local_addr()?], cluster);
        let agent = MeshAgent::start(&testbed, &config.yaml())?;
        Ok(Self {
            client,
            vip,
            listener,
            agent,
            _server: server,
            _testbed: testbed,
        })
    }

    /// A connection, seen from both ends.
    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let client = self.client.dial(self.vip)?;
        let (server, _) = self.listener.accept()?;
        server.set_read_timeout(Some(PATIENCE))?;
        server.set_write_timeout(Some(PATIENCE))?;
        Ok((client, server))
    }
}

fn v4(testbed: &Testbed, server: &Pod) -> (IpAddr, IpAddr) {
    (testbed.vip4(7).into(), server.ip4().into())
}

fn v6(testbed: &Testbed, server: &Pod) -> (IpAddr, IpAddr) {
    (testbed.vip6(7).into(), server.ip6().into())
}

/// A service's address and the server's own.
type Family = fn(&Testbed, &Pod) -> (IpAddr, IpAddr);

const FAMILIES: [Family; 2] = [v4, v6];

fn text(stream: &mut TcpStream) -> Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The next read fails with ECONNRESET.
fn is_reset(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

#[test]
fn either_side_may_end_first_and_still_be_answered() -> Result<()> {
    needs_root!(Ok(()));
    for family in FAMILIES {
        let line = Line::new(family, IN_AGENT, "")?;
        let (mut client, mut server) = line.connect()?;
        client.write_all(b"question")?;
        client.shutdown(Shutdown::Write)?;
        assert_eq!(text(&mut server)?, "question");
        server.write_all(b"answer after the end")?;
        drop(server);
        assert_eq!(text(&mut client)?, "answer after the end");

        let (mut client, mut server) = line.connect()?;
        server.write_all(b"news")?;
        server.shutdown(Shutdown::Write)?;
        assert_eq!(text(&mut client)?, "news");
        client.write_all(b"thanks")?;
        drop(client);
        assert_eq!(text(&mut server)?, "thanks");
        eventually("no connection is left", PATIENCE, || {
            cluster_stat(&line.agent, "app", "upstream_cx_active").is_ok_and(|left| left == 0)
        })?;
        let bytes = [
            cluster_stat(&line.agent, "app", "upstream_cx_tx_bytes_total")?,
            cluster_stat(&line.agent, "app", "upstream_cx_rx_bytes_total")?,
        ];
        assert_eq!(bytes, [8 + 6, 20 + 4]);
    }
    Ok(())
}

#[test]
fn a_reset_is_passed_on_as_a_reset() -> Result<()> {
    needs_root!(Ok(()));
    for family in FAMILIES {
        let line = Line::new(family, IN_AGENT, "")?;
        let (client, mut server) = line.connect()?;
        reset(client)?;
        assert!(is_reset(&mut server), "the client's reset");

        let (mut client, server) = line.connect()?;
        reset(server)?;
        assert!(is_reset(&mut client), "the server's reset");

        // While the other direction is full of bytes that nobody takes.
        let (mut client, mut server) = line.connect()?;
        client.set_nonblocking(true)?;
        let junk = vec![1; 1 << 20];
        eventually("nothing more fits in", PATIENCE, || {
            matches!(client.write(&junk), Err(error) if error.kind() == ErrorKind::WouldBlock)
                && cluster_stat(&line.agent, "app", "upstream_cx_active")
                    .is_ok_and(|open| open == 1)
        })?;
        reset(client)?;
        eventually(
            "the server is reset although it never read",
            PATIENCE,
            || matches!(server.write(b"x"), Err(error) if error.kind() != ErrorKind::WouldBlock),
        )?;
        assert!(!matches!(server.read(&mut [0]), Ok(0)), "no orderly end");
    }
    Ok(())
}

#[test]
fn idle_connections_end_and_busy_ones_stay() -> Result<()> {
    needs_root!(Ok(()));
    for family in FAMILIES {
        let line = Line::new(family, ", idle_timeout: 0.5s", "")?;
        let (mut busy, mut busy_server) = line.connect()?;
        let (mut idle, mut idle_server) = line.connect()?;
        let start = Instant::now();
        idle.set_read_timeout(Some(Duration::from_millis(50)))?;
        loop {
            // A byte each way in turn counts for both directions.
            busy.write_all(b"a")?;
            busy_server.read_exact(&mut [0])?;
            match idle.read(&mut [0]) {
                Ok(0) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ensure!(start.elapsed() < PATIENCE, "the idle connection never ends");
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
        let after = start.elapsed();
        assert!(after >= Duration::from_millis(450), "ended after {after:?}");
        assert_eq!(text(&mut idle_server)?, "");
        busy_server.write_all(b"still here")?;
        drop(busy_server);
        assert_eq!(text(&mut busy)?, "still here");
    }
    Ok(())
}

#[test]
fn endpoints_that_refuse_are_tried_as_often_as_configured() -> Result<()> {
    needs_root!(Ok(()));
    for family in FAMILIES {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        let app = Server::tcp(&server, "app", 9000)?;
        let (vip, own) = family(&testbed, &server);
        let at = |port| SocketAddr::new(own, port);
        let (some, none) = (SocketAddr::new(vip, 700), SocketAddr::new(vip, 800));
        let config = Config::default()
            .enrol(&client, "")
            .tcp("some", some, ", max_connect_attempts: 3")
            .tcp("none", none, ", max_connect_attempts: 3")
            // In turn: of three tries in a row one meets the one that is there.
            .cluster("some", &[at(1), at(2), at(app.port())])
            .cluster("none", &[at(3)]);
        let agent = MeshAgent::start(&testbed, &config.yaml())?;
        for one in Connect::to(some).times(4).run(&client)? {
            assert_eq!(greeted_by(&one)?, "app", "{one:?}");
        }
        let failed = cluster_stat(&agent, "some", "upstream_cx_connect_fail")?;
        // Every try that did not succeed failed.
        assert_eq!(
            cluster_stat(&agent, "some", "upstream_cx_total")?,
            failed + 4
        );
        assert!((4..=8).contains(&failed), "{failed}");
        let one = Connect::to(none).run_one(&client)?;
        assert!(one.errno != 0 && one.received.is_empty(), "{one:?}");
        assert_eq!(cluster_stat(&agent, "none", "upstream_cx_connect_fail")?, 3);
        assert_eq!(
            cluster_stat(&agent, "none", "upstream_cx_connect_attempts_exceeded")?,
            1
        );
    }
    Ok(())
}

#[test]
fn max_connections_refuses_the_next_one_and_says_why() -> Result<()> {
    needs_root!(Ok(()));
    for family in FAMILIES {
        let limits = ", circuit_breakers: {thresholds: [{max_connections: 3}]}";
        let line = Line::new(family, IN_AGENT, limits)?;
        let mut open = (0..3).map(|_| line.connect()).collect::<Result<Vec<_>>>()?;
        // The reset may be there before connect(2) returns.
        let refused = match line.client.dial(line.vip) {
            Ok(mut stream) => is_reset(&mut stream),
            Err(error) => format!("{error:#}").contains("reset by peer"),
        };
        assert!(refused, "the fourth connection");
        let stat = |name| cluster_stat(&line.agent, "app", name);
        assert_eq!(stat("upstream_cx_overflow")?, 1);
        assert_eq!(stat("upstream_cx_connect_fail")?, 0);
        assert_eq!(stat("upstream_cx_total")?, 3);
        open.pop();
        eventually("a place is free again", PATIENCE, || {
            stat("upstream_cx_active").is_ok_and(|active| active == 2)
        })?;
        open.push(line.connect()?);
        for (client, server) in &mut open {
            client.write_all(b"x")?;
            server.read_exact(&mut [0])?;
        }
    }
    Ok(())
}

/// Nobody answers at a documentation address that the pod has a route to, so connecting lasts.
#[test]
fn a_client_that_goes_while_connecting_is_forgotten() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let client = testbed.pod("client")?;
    let vip = SocketAddr::new(testbed.vip4(7).into(), 700);
    // The last host of the pods' network; no pod has it.
    let silent = SocketAddr::new(absent(&client), 9);
    let config = Config::default()
        .enrol(&client, "")
        .tcp("app", vip, IN_AGENT)
        .cluster_with("app", &[silent], ", connect_timeout: 60s");
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let neighbour = format!(
        "neigh add {} lladdr 02:00:00:00:00:01 dev eth0",
        silent.ip()
    );
    let added = client.command("ip").args(neighbour.split(' ')).status()?;
    ensure!(added.success(), "ip {neighbour}: {added}");
    let active = || cluster_stat(&agent, "app", "upstream_cx_active");
    let waiting = client.dial(vip)?;
    eventually("the agent connects", PATIENCE, || {
        active().is_ok_and(|n| n == 1)
    })?;
    let files = agent.open_files()?;
    reset(waiting)?;
    eventually("the attempt is given up", PATIENCE, || {
        active().is_ok_and(|n| n == 0)
    })?;
    // Asking for metrics opens files of the agent, too, for a moment.
    eventually("its sockets are closed", PATIENCE, || {
        agent.open_files().is_ok_and(|now| now < files)
    })
}

fn absent(pod: &Pod) -> IpAddr {
    // Pods get addresses of a /22 from its start.
    IpAddr::V4(Ipv4Addr::from(u32::from(pod.ip4()) | 0x3fe))
}

/// Bytes that tell where in the stream they belong.
fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

#[test]
fn bulk_arrives_whole_both_ways_past_slow_readers() -> Result<()> {
    needs_root!(Ok(()));
    for family in FAMILIES {
        const BYTES: usize = 10 << 20;
        let line = Line::new(family, IN_AGENT, "")?;
        let send = |mut stream: TcpStream| -> Result<()> {
            let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
            stream.write_all(&bytes)?;
            stream.shutdown(Shutdown::Write)?;
            Ok(())
        };
        let receive = |mut stream: TcpStream| -> Result<()> {
            let mut at = 0;
            let mut buffer = vec![0; 60_000];
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    ensure!(at == BYTES, "{at} bytes arrived");
                    return Ok(());
                }
                let wrong = buffer[..read]
                    .iter()
                    .enumerate()
                    .find(|(i, byte)| **byte != pattern(at + i));
                ensure!(wrong.is_none(), "wrong after {at}: {wrong:?}");
                at += read;
                // Slower than the sender: the bytes must wait somewhere.
                std::thread::sleep(Duration::from_micros(200));
            }
        };
        let before = line.agent.memory()?;
        let pairs = (0..8).map(|_| line.connect()).collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| -> Result<()> {
            let mut threads = Vec::new();
            for (client, server) in &pairs {
                for stream in [client, server] {
                    let (reading, writing) = (stream.try_clone()?, stream.try_clone()?);
                    threads.push(scope.spawn(move || send(writing)));
                    threads.push(scope.spawn(move || receive(reading)));
                }
            }
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            }
            Ok(())
        })?;
        let grown = line.agent.memory()?.saturating_sub(before);
        assert!(
            grown < 24 << 20,
            "160 MiB through the agent left {grown} bytes"
        );
    }
    Ok(())
}

#[test]
fn two_thousand_idle_connections_cost_little_memory() -> Result<()> {
    needs_root!(Ok(()));
    const COUNT: usize = 2000;
    let limits = ", circuit_breakers: {thresholds: [{max_connections: 5000}]}";
    let line = Line::new(v4, IN_AGENT, limits)?;
    // Connections that spoke once, so that nothing is spared by being lazy.
    let open = |count: usize| -> Result<Vec<(TcpStream, TcpStream)>> {
        line.client
            .sockets(Domain::IPV4, SocketKind::Tcp, count)?
            .into_iter()
            .map(|socket| {
                socket.connect(&line.vip.into())?;
                let (mut server, _) = line.listener.accept()?;
                let mut client = TcpStream::from(socket);
                client.write_all(b"hello")?;
                server.read_exact(&mut [0; 5])?;
                server.write_all(b"hello")?;
                client.read_exact(&mut [0; 5])?;
                Ok((client, server))
            })
            .collect()
    };
    let _first = open(50)?;
    let before = line.agent.memory()?;
    let _held = open(COUNT)?;
    let each = line.agent.memory()?.saturating_sub(before) / COUNT as u64;
    println!("{each} bytes an idle connection");
    assert!(each < 12 << 10, "an idle connection costs {each} bytes");
    Ok(())
}

#[test]
fn every_way_of_connecting_is_served() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let multipath = Server::mptcp(&server, "multipath", 9001)?;
    let other = Server::tcp(&server, "other", 9002)?;
    let [v4, v4_other, v4_multipath] =
        [7, 8, 9].map(|n| SocketAddr::new(testbed.vip4(n).into(), 700));
    let [v6, v6_other, v6_multipath] =
        [7, 8, 9].map(|n| SocketAddr::new(testbed.vip6(n).into(), 700));
    let config = Config::default()
        .enrol(&client, "")
        .tcp("four", v4, IN_AGENT)
        .tcp("six", v6, IN_AGENT)
        .tcp("four-other", v4_other, IN_AGENT)
        .tcp("six-other", v6_other, IN_AGENT)
        .tcp("four-multipath", v4_multipath, IN_AGENT)
        .tcp("six-multipath", v6_multipath, IN_AGENT)
        .cluster("four", &[app.addr4()])
        .cluster("six", &[app.addr6()])
        .cluster("four-other", &[other.addr4()])
        .cluster("six-other", &[other.addr6()])
        .cluster("four-multipath", &[multipath.addr4()])
        .cluster("six-multipath", &[multipath.addr6()]);
    let _agent = MeshAgent::start(&testbed, &config.yaml())?;
    for (first, second, third) in [(v4, v4_other, v4_multipath), (v6, v6_other, v6_multipath)] {
        let twice = Connect::to(first).option("--then", second);
        let sent = Connect::to(first).flag("--fastopen").option("--send", "x");
        let mut ways = vec![
            ("plain", Connect::to(first), "app"),
            (
                "non-blocking",
                Connect::to(first).flag("--nonblocking"),
                "app",
            ),
            ("connected twice", twice.clone(), "other"),
            ("twice, non-blocking", twice.flag("--nonblocking"), "other"),
            ("fast open", sent, "app"),
            (
                "multipath client",
                Connect::to(first).flag("--mptcp"),
                "app",
            ),
            (
                "multipath both",
                Connect::to(third).flag("--mptcp"),
                "multipath",
            ),
            ("multipath server", Connect::to(third), "multipath"),
        ];
        if first.is_ipv4() {
            ways.push(("mapped", Connect::to(first).flag("--mapped"), "app"));
            let twice = Connect::to(first).option("--then", second).flag("--mapped");
            ways.push(("mapped, twice", twice, "other"));
        }
        for (way, connect, expected) in ways {
            let one = connect.run_one(&client)?;
            let name = greeted_by(&one).with_context(|| format!("{way} to {first}"))?;
            assert_eq!(name, expected, "{way} to {first}: {one:?}");
            let dialled = match (way, expected) {
                (_, "other") => second,
                (_, "multipath") => third,
                _ => first,
            };
            let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            let seen = one.peer.map(plain);
            assert_eq!(
                seen,
                Some(dialled),
                "{way}: getpeername shows what was dialled"
            );
            let own = one.local.map(|local| local.ip().to_canonical());
            assert!(
                own.is_some_and(|own| client.ips().contains(&own)),
                "{way}: getsockname shows the pod: {one:?}"
            );
        }
    }
    Ok(())
}
