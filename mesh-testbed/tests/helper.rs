//! The servers and clients, without a mesh.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use mesh_testbed::{Connect, Curl, Nginx, Pod, Server, Testbed, needs_root};

struct Pair {
    client: Pod,
    server: Pod,
    _testbed: Testbed,
}

fn pair() -> Result<Pair> {
    let testbed = Testbed::new()?;
    Ok(Pair {
        client: testbed.pod("client")?,
        server: testbed.pod("server")?,
        _testbed: testbed,
    })
}

#[test]
fn echo_http_tells_what_it_was_asked() -> Result<()> {
    needs_root!(Ok(()));
    let pods = pair()?;
    let server = Server::http(&pods.server, "reviews", "v2", 8080)?;
    for (address, client) in [
        (server.addr4(), pods.client.ips()[0]),
        (server.addr6(), pods.client.ips()[1]),
    ] {
        let url = format!("http://{address}/a?b=c");
        let response = Curl::get(&pods.client, &url)
            .header("x-user: jason")
            .send()?;
        assert_eq!(
            (response.exit, response.status),
            (0, 200),
            "{:?}",
            response.error
        );
        assert_eq!(response.remote, Some((address.ip(), 8080)));
        let echo = response.echo()?;
        assert_eq!(
            (echo.name.as_str(), echo.version.as_str()),
            ("reviews", "v2")
        );
        assert_eq!(
            (echo.method.as_str(), echo.path.as_str()),
            ("GET", "/a?b=c")
        );
        assert_eq!(echo.header("X-User"), Some("jason"));
        assert_eq!(echo.authority, Some(address.to_string()));
        assert_eq!((echo.peer.ip(), echo.local), (client, address));
    }
    Ok(())
}

#[test]
fn echo_http_does_as_asked() -> Result<()> {
    needs_root!(Ok(()));
    let pods = pair()?;
    let server = Server::http(&pods.server, "reviews", "v1", 0)?;
    let url = format!("http://{}/", server.addr4());
    let get = || Curl::get(&pods.client, &url);

    assert_eq!(get().header("x-echo-status: 503").send()?.status, 503);
    assert_eq!(
        get().header("x-echo-bytes: 100000").send()?.body.len(),
        100_000
    );
    assert!(get().header("x-echo-delay-ms: 200").send()?.time >= Duration::from_millis(200));
    let h2 = get().arg("--http2-prior-knowledge").send()?;
    assert_eq!(
        (h2.version.as_str(), h2.echo()?.protocol.as_str()),
        ("2", "HTTP/2.0")
    );
    let mirrored = get()
        .header("x-echo: body")
        .arg("--data")
        .arg("hello")
        .send()?;
    assert_eq!(mirrored.text(), "hello");
    let grpc = get()
        .arg("--http2-prior-knowledge")
        .header("content-type: application/grpc")
        .arg("--data")
        .arg("hello")
        .send()?;
    assert_eq!(
        (grpc.text().as_str(), grpc.header("grpc-status")),
        ("hello", Some("0"))
    );
    Ok(())
}

#[test]
fn echo_tcp_greets_and_sees_the_end() -> Result<()> {
    needs_root!(Ok(()));
    let pods = pair()?;
    let server = Server::tcp(&pods.server, "ledger", 9000)?;
    for address in [server.addr4(), server.addr6()] {
        let one = Connect::to(address)
            .option("--send", "hello")
            .flag("--until-close")
            .run_one(&pods.client)?;
        assert_eq!(
            (one.errno, one.connected, one.closed),
            (0, true, true),
            "{one:?}"
        );
        let banner = one.banner().expect("a greeting");
        assert_eq!(banner.name, "ledger");
        assert_eq!(
            (Some(banner.peer), Some(banner.local)),
            (one.local, one.peer)
        );
        assert_eq!(one.received.lines().nth(1), Some("hello"));
    }
    Ok(())
}

#[test]
fn connections_are_opened_in_every_way() -> Result<()> {
    needs_root!(Ok(()));
    let pods = pair()?;
    let server = Server::tcp(&pods.server, "a", 9000)?;
    let other = Server::tcp(&pods.server, "b", 9001)?;
    let to = server.addr4();
    let name = |connect: Connect| -> Result<String> {
        let one = connect.run_one(&pods.client)?;
        Ok(one
            .banner()
            .map_or(format!("{one:?}"), |banner| banner.name))
    };
    assert_eq!(name(Connect::to(to).flag("--nonblocking"))?, "a");
    assert_eq!(name(Connect::to(to).flag("--mapped"))?, "a");
    assert_eq!(name(Connect::to(to).flag("--mptcp"))?, "a");
    assert_eq!(
        name(Connect::to(to).flag("--fastopen").option("--send", "x"))?,
        "a"
    );
    assert_eq!(name(Connect::to(to).option("--then", other.addr4()))?, "b");
    let closed = SocketAddr::new(to.ip(), 9999);
    assert_eq!(name(Connect::to(closed).option("--then", to))?, "a");
    let bind = SocketAddr::new(pods.client.ip4().into(), 40_000);
    let bound = Connect::to(to)
        .option("--bind", bind)
        .run_one(&pods.client)?;
    assert_eq!(bound.local, Some(bind));
    let mapped = Connect::to(to).flag("--mapped").run_one(&pods.client)?;
    let as_mapped = SocketAddr::new(pods.server.ip4().to_ipv6_mapped().into(), 9000);
    assert_eq!(mapped.peer, Some(as_mapped));
    for flags in [vec![], vec!["--nonblocking"], vec!["--mptcp"]] {
        let refused = flags
            .iter()
            .fold(Connect::to(closed), |connect, flag| connect.flag(flag));
        let refused = refused.run_one(&pods.client)?;
        assert_eq!(
            (refused.errno, refused.connected),
            (libc::ECONNREFUSED, false),
            "{flags:?}"
        );
    }
    let udp = Connect::to(closed)
        .flag("--udp")
        .flag("--no-read")
        .run_one(&pods.client)?;
    assert_eq!((udp.connected, udp.peer), (true, Some(closed)));
    Ok(())
}

#[test]
fn mptcp_reaches_an_mptcp_server() -> Result<()> {
    needs_root!(Ok(()));
    let pods = pair()?;
    let server = Server::mptcp(&pods.server, "m", 9000)?;
    for connect in [
        Connect::to(server.addr4()),
        Connect::to(server.addr6()).flag("--mptcp"),
    ] {
        let one = connect.run_one(&pods.client)?;
        assert_eq!(
            one.banner().map(|banner| banner.name).as_deref(),
            Some("m"),
            "{one:?}"
        );
    }
    Ok(())
}

#[test]
fn held_connections_notice_that_their_server_is_gone() -> Result<()> {
    needs_root!(Ok(()));
    let pods = pair()?;
    let server = Server::tcp(&pods.server, "a", 9000)?;
    let mut open = Connect::to(server.addr4()).times(50).hold(&pods.client)?;
    assert!(open.connections.iter().all(|one| one.errno == 0));
    let held = open.check()?;
    assert_eq!((held.alive, held.dead), (50, 0));
    drop(server);
    let held = open.check()?;
    assert_eq!((held.alive, held.dead), (0, 50));
    Ok(())
}

#[test]
fn nginx_serves() -> Result<()> {
    needs_root!(Ok(()));
    if !std::process::Command::new("nginx")
        .arg("-v")
        .output()
        .is_ok_and(|out| out.status.success())
    {
        mesh_testbed::skipped("nginx is not installed");
        return Ok(());
    }
    let pods = pair()?;
    let _nginx = Nginx::start(&pods.server, "n1", 80)?;
    for ip in [
        pods.server.ip4().to_string(),
        format!("[{}]", pods.server.ip6()),
    ] {
        let response = Curl::get(&pods.client, &format!("http://{ip}/")).send()?;
        assert_eq!(response.text(), "n1\n");
        assert!(
            response
                .header("server")
                .is_some_and(|server| server.starts_with("nginx"))
        );
    }
    Ok(())
}
