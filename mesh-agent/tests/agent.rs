//! The whole agent on the real kernel: pods, caught connections, reloads, stop.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::wire::End;
use serde_json::json;

use mesh_testbed::{Connect, Curl, MeshAgent, Pod, Server, Talk, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, greeted_by};

/// A TCP service that the agent must carry (an idle timeout is not the kernel's to keep), in both
/// families and every way of connecting.
#[test]
fn the_agent_learns_where_every_connection_wanted_to_go() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let v4 = SocketAddr::new(testbed.vip4(7).into(), 700);
    let v6 = SocketAddr::new(testbed.vip6(7).into(), 700);
    let config = Config::default()
        .enrol(&client, "")
        .tcp("four", v4, ", idle_timeout: 60s")
        .tcp("six", v6, ", idle_timeout: 60s")
        .cluster("four", &[app.addr4()])
        .cluster("six", &[app.addr6()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    for (vip, flags) in [
        (v4, &[][..]),
        (v6, &[]),
        (v4, &["--nonblocking"]),
        (v6, &["--nonblocking"]),
    ] {
        let connect = flags
            .iter()
            .fold(Connect::to(vip), |connect, flag| connect.flag(flag));
        let one = connect.run_one(&client)?;
        assert_eq!(greeted_by(&one)?, "app", "{vip} {flags:?}");
        assert_eq!(one.peer, Some(vip), "getpeername shows what was dialled");
        let own = if vip.is_ipv4() {
            client.ip4().into()
        } else {
            std::net::IpAddr::V6(client.ip6())
        };
        assert_eq!(
            one.local.map(|local| local.ip()),
            Some(own),
            "getsockname shows the pod"
        );
        let peer = one.banner().map(|banner| banner.peer.ip());
        assert_eq!(peer, Some(own), "the server sees the pod, not the agent");
    }
    let services = agent.get("/services")?.body;
    assert!(services.contains("idle_timeout is set"), "{services}");
    Ok(())
}

#[test]
fn plain_tcp_is_balanced_by_the_kernel_in_both_families() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let (a, b) = (
        Server::tcp(&server, "a", 9000)?,
        Server::tcp(&server, "b", 9001)?,
    );
    let v4 = SocketAddr::new(testbed.vip4(8).into(), 800);
    let v6 = SocketAddr::new(testbed.vip6(8).into(), 800);
    let config = Config::default()
        .enrol(&client, "")
        .tcp("four", v4, "")
        .tcp("six", v6, "")
        .cluster("four", &[a.addr4(), b.addr4()])
        .cluster("six", &[a.addr6(), b.addr6()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    for vip in [v4, v6] {
        let all = Connect::to(vip).times(20).run(&client)?;
        let names = all.iter().map(greeted_by).collect::<Result<Vec<_>>>()?;
        assert_eq!(
            names.iter().filter(|name| *name == "a").count(),
            10,
            "{vip}: {names:?}"
        );
        assert!(all.iter().all(|one| one.peer == Some(vip)), "{all:?}");
    }
    let metrics = agent.get("/stats/prometheus")?.body;
    assert!(
        metrics.contains("mesh_datapath_connections_total{outcome=\"direct\"} 40"),
        "{metrics}"
    );
    assert!(
        metrics.contains("envoy_listener_downstream_cx_total 0"),
        "{metrics}"
    );
    eventually(
        "the kernel's count of connections returns to zero",
        PATIENCE,
        || {
            agent.get("/services").is_ok_and(|page| {
                let services = page.body;
                services.contains("\"total\": 10") && !services.contains("\"active\": 1")
            })
        },
    )
}

#[test]
fn unknown_destinations_pass_or_are_refused_as_configured() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let base = || Config::default().enrol(&client, "").original_dst("unused");
    let agent = MeshAgent::start(&testbed, &base().yaml())?;
    for at in [app.addr4(), app.addr6()] {
        assert_eq!(greeted_by(&Connect::to(at).run_one(&client)?)?, "app");
    }
    agent.reconfigure(&base().mesh("outbound_traffic_policy: REGISTRY_ONLY").yaml())?;
    for at in [app.addr4(), app.addr6()] {
        eventually("connections are refused", PATIENCE, || {
            Connect::to(at)
                .run_one(&client)
                .is_ok_and(|one| one.errno == 111)
        })?;
    }
    Ok(())
}

#[test]
fn capture_settings_change_without_touching_live_connections() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let (app, other) = (
        Server::tcp(&server, "app", 9000)?,
        Server::tcp(&server, "other", 9001)?,
    );
    // Dialling the application's own address is caught and sent to the other one.
    let config = |capture: &str| {
        Config::default()
            .enrol(&client, &format!(", capture: {{{capture}}}"))
            .tcp("four", app.addr4(), "")
            .tcp("six", app.addr6(), "")
            .cluster("four", &[other.addr4()])
            .cluster("six", &[other.addr6()])
            .yaml()
    };
    let agent = MeshAgent::start(&testbed, &config(""))?;
    let mut held = Connect::to(app.addr4()).times(3).hold(&client)?;
    for (capture, caught) in [
        ("exclude_outbound_ports: [9000]", false),
        ("exclude_outbound_cidrs: [10.0.0.0/8, 'fd00::/8']", false),
        ("include_outbound_cidrs: ['10.0.0.0/8', 'fd00::/8']", true),
        ("include_outbound_cidrs: []", false),
        (
            "include_outbound_cidrs: [], include_outbound_ports: [9000]",
            true,
        ),
        ("include_outbound_cidrs: '*'", true),
    ] {
        agent.reconfigure(&config(capture))?;
        for at in [app.addr4(), app.addr6()] {
            let expected = if caught { "other" } else { "app" };
            eventually(
                &format!("{capture}: {at} is served by {expected}"),
                PATIENCE,
                || {
                    let one = Connect::to(at).run_one(&client);
                    one.and_then(|one| greeted_by(&one))
                        .is_ok_and(|name| name == expected)
                },
            )?;
        }
    }
    let alive = held.check()?;
    ensure!(
        alive.alive == 3,
        "connections made before the changes are gone: {alive:?}"
    );
    Ok(())
}

#[test]
fn inbound_http_is_routed_in_the_server_pod() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&server, "app", "v1", 8080)?;
    let routes = "{match: {path: /denied}, direct_response: {status: 403, body: {inline_string: no}}}, \
                  {match: {prefix: /}, route: {cluster: here}}";
    let config = Config::default()
        .enrol(&server, "")
        .http("inbound", "0.0.0.0:15006".parse()?, "INBOUND", routes)
        .original_dst("here");
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    for at in [app.addr4(), app.addr6()] {
        let denied = Curl::get(&client, &format!("http://{at}/denied")).send()?;
        assert_eq!((denied.status, denied.text().as_str()), (403, "no"), "{at}");
        let served = Curl::get(&client, &format!("http://{at}/")).send()?;
        assert_eq!(served.echo()?.name, "app", "{at}");
        assert_eq!(served.header("server"), Some("envoy"));
    }
    agent.terminate()?;
    let plain = Curl::get(&client, &format!("http://{}/denied", app.addr4())).send()?;
    assert_eq!(
        plain.status, 200,
        "without the agent the pod is reached as before"
    );
    Ok(())
}

#[test]
fn each_connection_is_served_by_its_own_filter_chain_named_or_not() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let _apps = [
        Server::http(&server, "app", "v1", 8080)?,
        Server::http(&server, "app", "v1", 8081)?,
        Server::http(&server, "app", "v1", 8082)?,
    ];
    let answers = |text: &str| {
        json!([{ "name": "envoy.filters.network.http_connection_manager", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config":
                { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
            "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{
                "match": { "prefix": "/" },
                "direct_response": { "status": 200, "body": { "inline_string": text } } }] }] },
        } }])
    };
    let config = json!({
        "workloads": [{ "name": "server", "netns": server.netns_path() }],
        "static_resources": { "listeners": [{
            "name": "inbound",
            "address": { "socket_address": { "address": "0.0.0.0", "port_value": 15006 } },
            "traffic_direction": "INBOUND",
            "filter_chains": [
                { "filter_chain_match": { "destination_port": 8080 }, "filters": answers("one") },
                { "filter_chain_match": { "destination_port": 8081 }, "filters": answers("two") },
            ],
            "default_filter_chain": { "filters": answers("other") },
        }] },
    });
    let _agent = MeshAgent::start(&testbed, &config.to_string())?;
    for (port, expected) in [(8080, "one"), (8081, "two"), (8082, "other")] {
        let served = Curl::get(&client, &format!("http://{}:{port}/", server.ip4())).send()?;
        assert_eq!(served.text(), expected, "port {port}");
    }
    Ok(())
}

#[test]
fn a_bad_reload_keeps_the_last_good_configuration() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&server, "app", "v1", 8080)?;
    let vip = SocketAddr::new(testbed.vip4(9).into(), 80);
    let config = Config::default()
        .enrol(&client, "")
        .http(
            "web",
            vip,
            "OUTBOUND",
            "{match: {prefix: /}, route: {cluster: web}}",
        )
        .cluster("web", &[app.addr4()])
        .yaml();
    let agent = MeshAgent::start(&testbed, &config)?;
    agent.reconfigure(&config.replace("cluster: web}", "cluster: wob}"))?;
    eventually("the refusal is counted", PATIENCE, || {
        agent
            .get("/stats/prometheus")
            .is_ok_and(|page| page.body.contains("mesh_config_reload_failures_total 1"))
    })?;
    let status = agent.command("status")?;
    assert!(
        status.contains("cluster wob does not exist; did you mean web?"),
        "{status}"
    );
    let served = Curl::get(&client, &format!("http://{vip}/")).send()?;
    assert_eq!(served.echo()?.name, "app");
    Ok(())
}

#[test]
fn two_hundred_pods_come_and_go_and_nothing_is_left() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let names: Vec<String> = (0..200).map(|i| format!("p{i}")).collect();
    let pods = testbed.pods(&names)?;
    let without = Config::default().original_dst("unused");
    let with = pods
        .iter()
        .fold(Config::default().original_dst("unused"), |c, pod| {
            c.enrol(pod, "")
        });
    let agent = MeshAgent::start(&testbed, &without.yaml())?;
    let enrolled = |count: usize| {
        let wanted = format!("mesh_workloads_enrolled {count}\n");
        eventually(&wanted, Duration::from_secs(60), || {
            agent
                .get("/stats/prometheus")
                .is_ok_and(|page| page.body.contains(&wanted))
        })
    };
    enrolled(0)?;
    let mut before = 0;
    for round in 0..3 {
        agent.reconfigure(&with.yaml())?;
        enrolled(200)?;
        agent.reconfigure(&without.yaml())?;
        enrolled(0)?;
        if round == 0 {
            // From the first pod on the agent keeps its own namespace open.
            before = agent.open_files()?;
        }
    }
    let now = std::cell::Cell::new(0);
    eventually("descriptors return to where they were", PATIENCE, || {
        now.set(agent.open_files().unwrap_or(usize::MAX));
        now.get() <= before
    })
    .with_context(|| format!("{before} before, {} now", now.get()))?;
    let metrics = agent.get("/stats/prometheus")?.body;
    for map in ["PODS", "IN_PODS", "LISTEN", "CIDRS", "PORTS"] {
        let line = format!("mesh_bpf_map_entries{{map=\"{map}\"}} 0\n");
        assert!(
            metrics.contains(&line),
            "{map} still has entries:\n{metrics}"
        );
    }
    Ok(())
}

/// A pod, a server and an HTTP service in front of it.
fn web(testbed: &Testbed) -> Result<([Pod; 2], Server, SocketAddr, MeshAgent)> {
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&server, "app", "v1", 8080)?;
    let vip = SocketAddr::new(testbed.vip4(3).into(), 80);
    let config = Config::default()
        .enrol(&client, "")
        .http(
            "web",
            vip,
            "OUTBOUND",
            "{match: {prefix: /}, route: {cluster: web}}",
        )
        .cluster("web", &[app.addr4()]);
    let agent = MeshAgent::start(testbed, &config.yaml())?;
    Ok(([client, server], app, vip, agent))
}

#[test]
fn http2_clients_are_served_as_http1_ones() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let ([client, _server], _app, vip, _agent) = web(&testbed)?;
    for flag in ["--http1.1", "--http2-prior-knowledge"] {
        let response = Curl::get(&client, &format!("http://{vip}/a?b=c"))
            .arg(flag)
            .arg("--data")
            .arg("xyz")
            .send()?;
        let echo = response.echo()?;
        assert_eq!(
            (response.status, echo.method.as_str(), echo.path.as_str()),
            (200, "POST", "/a?b=c")
        );
        assert_eq!(echo.body_length, 3, "{flag}");
        assert_eq!(
            echo.authority.as_deref(),
            Some(vip.ip().to_string().as_str()),
            "{flag}"
        );
        assert!(echo.header("x-request-id").is_some(), "{flag}");
        assert_eq!(response.header("server"), Some("envoy"), "{flag}");
    }
    Ok(())
}

/// Requests that two parsers may read differently: refused, and the connection closed, so that
/// nothing behind them is ever taken for a request.
#[test]
fn smuggled_requests_never_arrive() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let ([client, _server], _app, vip, agent) = web(&testbed)?;
    let mut talk = Talk::start(&client)?;
    let right = talk.ask(vip, b"GET /right HTTP/1.1\r\nhost: x\r\n\r\n")?;
    assert_eq!(right.responses[0].status, 200, "{right:?}");
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let corpus = [
        (
            "CL.TE",
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "TE.CL",
            "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "TE unknown",
            "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "obs-fold",
            "GET / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n c: d\r\n\r\n",
        ),
        (
            "space before colon",
            "GET / HTTP/1.1\r\nhost: x\r\ncontent-length : 0\r\n\r\n",
        ),
        ("NUL", "GET / HTTP/1.1\r\nhost: x\r\nx-a: b\0c\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
        (
            "bad length",
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +0\r\n\r\n",
        ),
    ];
    for (name, request) in corpus {
        let bytes = format!("{request}{smuggled}");
        let answers = talk.say(vip, &[bytes.as_bytes()], &["GET", "GET"])?;
        assert_eq!(answers.end, End::Closed, "{name}: {answers:?}");
        let statuses: Vec<u16> = answers.responses.iter().map(|one| one.status).collect();
        assert!(matches!(statuses[..], [400 | 501]), "{name}: {answers:?}");
    }
    let metrics = agent.get("/stats/prometheus")?.body;
    assert!(metrics.contains("mesh_proxy_panics_total 0"), "{metrics}");
    Ok(())
}

#[test]
fn sigterm_drains_serves_meanwhile_and_leaves_nothing() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let vip = SocketAddr::new(testbed.vip4(5).into(), 500);
    let config = Config::default()
        .enrol(&client, "")
        .tcp("app", vip, ", idle_timeout: 60s")
        .cluster("app", &[app.addr4()]);
    let agent = MeshAgent::builder(&testbed)?
        .arg("--drain-duration")
        .arg("2s")
        .start(&config.yaml())?;
    let mut held = Connect::to(vip).times(2).hold(&client)?;
    agent.signal(nix::sys::signal::Signal::SIGTERM)?;
    eventually("the agent drains", PATIENCE, || {
        agent.log().contains("draining")
    })?;
    assert_eq!(held.check()?.alive, 2, "connections in flight go on");
    assert_eq!(
        greeted_by(&Connect::to(vip).run_one(&client)?)?,
        "app",
        "new ones are served"
    );
    let status = agent.wait(PATIENCE)?;
    assert!(status.success(), "{status}");
    assert_eq!(held.check()?.alive, 0, "what outlived the drain is closed");
    let plain = Connect::to(vip).run_one(&client)?;
    assert!(
        !plain.connected,
        "the VIP has no route without the agent: {plain:?}"
    );
    let listening = client.command("ss").args(["-Hltn"]).output()?;
    let listening = String::from_utf8_lossy(&listening.stdout).into_owned();
    assert!(
        !listening.contains(":150"),
        "listeners are left in the pod: {listening}"
    );
    Ok(())
}
