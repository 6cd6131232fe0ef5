//! Pods that try to get around the mesh, and nodes that are short of something.

mod common;

use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::wire::Ending;
use mesh_testbed::{Churn, Connect, MeshAgent, Server, Testbed, eventually, foreign, needs_root};

use common::{Config, PATIENCE, cluster_stat, greeted_by, metric};

/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

#[test]
fn neither_marks_nor_users_nor_cgroup_namespaces_get_around() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&pod, "app", 9000)?;
    let vips: [SocketAddr; 3] = [
        (testbed.vip4(7), 700).into(),
        (testbed.vip6(7), 700).into(),
        (testbed.vip4(8), 700).into(),
    ];
    let config = Config::default()
        .mesh("outbound_traffic_policy: REGISTRY_ONLY")
        .enrol(&client, "")
        .tcp("four", vips[0], "")
        .tcp("six", vips[1], "")
        .tcp("carried", vips[2], IN_AGENT)
        .cluster("four", &[app.addr4()])
        .cluster("six", &[app.addr6()])
        .cluster("carried", &[app.addr4()]);
    let _agent = MeshAgent::start(&testbed, &config.yaml())?;
    let disguise = |connect: Connect, number: usize| match number {
        // Istio's proxies are told by user and group 1337 and this mark.
        0 => connect.option("--mark", 1337),
        1 => connect.option("--uid", 1337),
        2 => connect.option("--mark", 0x111),
        3 => connect.flag("--cgroup-namespace"),
        _ => connect.flag("--mptcp").option("--mark", 1337),
    };
    for number in 0..5 {
        for vip in vips {
            let one = disguise(Connect::to(vip), number).run_one(&client)?;
            assert_eq!(greeted_by(&one)?, "app", "disguise {number} at {vip}");
        }
        // Dialled past the mesh, the server is nowhere.
        let past = disguise(Connect::to(app.addr4()), number).run_one(&client)?;
        assert_eq!(
            past.errno,
            libc::ECONNREFUSED,
            "disguise {number}: {past:?}"
        );
    }
    Ok(())
}

#[test]
fn half_open_connects_stop_at_the_limit_and_harm_nobody_else() -> Result<()> {
    needs_root!(Ok(()));
    const LIMIT: usize = 500;
    let testbed = Testbed::new()?;
    let (client, other) = (testbed.pod("client")?, testbed.pod("other")?);
    let pod = testbed.pod("server")?;
    let app = Server::tcp(&pod, "app", 9000)?;
    // An address of the pods' network where nobody answers.
    let gone = testbed.pod("gone")?;
    let nobody = SocketAddr::new(gone.ip4().into(), 9000);
    drop(gone);
    let (hole, vip) = (testbed.vip4(7), testbed.vip4(8));
    let (hole, vip): (SocketAddr, SocketAddr) = ((hole, 700).into(), (vip, 700).into());
    let limit = format!(", circuit_breakers: {{thresholds: [{{max_connections: {LIMIT}}}]}}");
    let config = Config::default()
        .enrol(&client, "")
        .enrol(&other, "")
        .tcp("hole", hole, "")
        .tcp("app", vip, "")
        .cluster_with("hole", &[nobody], &limit)
        .cluster("app", &[app.addr4()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    let held = Connect::to(hole)
        .times(3000)
        .flag("--half-open")
        .hold(&client)?;
    let with = |errno| {
        held.connections
            .iter()
            .filter(|one| one.errno == errno)
            .count()
    };
    let (waiting, refused) = (with(libc::EINPROGRESS), with(libc::ECONNREFUSED));
    assert_eq!(waiting + refused, 3000);
    // Some may have ended meanwhile and made room.
    assert!(waiting >= LIMIT, "{waiting} wait");
    assert!(cluster_stat(&agent, "hole", "upstream_cx_active")? <= LIMIT as u64);
    assert_eq!(
        cluster_stat(&agent, "hole", "upstream_cx_overflow")?,
        refused as u64
    );
    for pod in [&client, &other] {
        assert_eq!(greeted_by(&Connect::to(vip).run_one(pod)?)?, "app");
    }
    drop(held);
    eventually("every place is given back", PATIENCE, || {
        cluster_stat(&agent, "hole", "upstream_cx_active").is_ok_and(|active| active == 0)
    })
}

#[test]
fn services_that_find_no_room_in_the_kernel_are_served_by_the_agent() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let servers = (9000..9008)
        .map(|port| Server::tcp(&pod, &port.to_string(), port))
        .collect::<Result<Vec<_>>>()?;
    for full in ["SVC=5", "SLOTS=5", "BACK=5", "CONNS=7"] {
        let vip = |number: usize| SocketAddr::new(testbed.vip4(number as u8 + 1).into(), 700);
        let mut config = Config::default().enrol(&client, "");
        for (number, server) in servers.iter().enumerate() {
            let name = server.addr4().port().to_string();
            config = config
                .tcp(&name, vip(number), "")
                .cluster(&name, &[server.addr4()]);
        }
        let agent = MeshAgent::builder(&testbed)?
            .arg(format!("--map-size={full}"))
            .start(&config.yaml())?;
        for (number, server) in servers.iter().enumerate() {
            let one = Connect::to(vip(number)).run_one(&client)?;
            let name = greeted_by(&one)?;
            assert_eq!(
                name,
                server.addr4().port().to_string(),
                "{full}: service {number}"
            );
        }
        let log = agent.log();
        assert!(log.contains("is full: fewer services"), "{full}: {log}");
        let services = agent.get("/services")?.body;
        assert!(
            services.contains("the kernel has no room for all services"),
            "{services}"
        );
        agent.terminate()?;
    }
    Ok(())
}

#[test]
fn a_pod_without_room_is_told_of_and_enrolled_when_there_is_some() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let pods = testbed.pods(["one", "two"])?;
    let server = testbed.pod("server")?;
    let web = Server::http(&server, "web", "v1", 8080)?;
    let vip: SocketAddr = (testbed.vip4(7), 700).into();
    let config = |pods: &[mesh_testbed::Pod]| {
        let mut config = Config::default()
            .tcp("web", vip, "")
            .cluster("web", &[web.addr4()])
            .http(
                "inbound",
                SocketAddr::from(([0, 0, 0, 0], 15006)),
                "INBOUND",
                "{match: {prefix: /}, direct_response: {status: 403}}",
            );
        for pod in pods {
            config = config.enrol(pod, "");
        }
        config.yaml()
    };
    let agent = MeshAgent::builder(&testbed)?
        .arg("--map-size=PODS=1")
        .start(&config(&pods))?;
    let status = agent.command("status")?;
    assert!(status.contains("PODS is full"), "{status}");
    let caught = |pod: &mesh_testbed::Pod| {
        Connect::to(vip)
            .flag("--no-read")
            .run_one(pod)
            .is_ok_and(|one| one.connected)
    };
    let enrolled = pods.iter().filter(|pod| caught(pod)).count();
    assert_eq!(enrolled, 1, "{status}");
    // Nothing of the other one is left in the kernel: two addresses and one listener of the first.
    let entries = |map: &str| metric(&agent, &format!("mesh_bpf_map_entries{{map=\"{map}\"}}"));
    assert_eq!((entries("IN_PODS")?, entries("LISTEN")?), (2, 1));
    let (stays, leaves) = match caught(&pods[0]) {
        true => (1, 0),
        false => (0, 1),
    };
    assert!(caught(&pods[leaves]));
    common::apply(&agent, &config(&pods[stays..=stays]))?;
    eventually("the other one is enrolled", PATIENCE, || {
        caught(&pods[stays])
    })?;
    eventually("nothing of the first one is left", PATIENCE, || {
        entries("IN_PODS").is_ok_and(|n| n == 2) && entries("LISTEN").is_ok_and(|n| n == 1)
    })
}

#[test]
fn records_that_find_no_room_are_counted_and_connections_do_not_notice() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&pod, "app", 9000)?;
    let vip: SocketAddr = (testbed.vip4(7), 700).into();
    let unlimited = ", circuit_breakers: {thresholds: [{max_connections: 4294967295}]}";
    let config = Config::default()
        .enrol(&client, "")
        .tcp("app", vip, "")
        .cluster_with("app", &[app.addr4()], unlimited)
        .yaml();
    MeshAgent::start(&testbed, &config)?.kill()?;
    // Two records each, and nobody reads them.
    let made = Churn::new(vip, Ending::Reset, 20_000).run(&client)?;
    assert!(made.failed.is_empty(), "{made:?}");
    let agent = MeshAgent::start(&testbed, &config)?;
    let lost = metric(
        &agent,
        "mesh_datapath_connections_total{outcome=\"event_lost\"}",
    )?;
    assert!(lost > 0, "nothing was lost");
    let told = || -> Result<u64> {
        let page = agent.get("/stats/prometheus")?.body;
        let of = |name: &str| -> u64 {
            page.lines()
                .filter(|line| line.starts_with(name))
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum()
        };
        Ok(of("istio_tcp_connections_opened_total") + of("istio_tcp_connections_closed_total"))
    };
    eventually("what is not lost is told", PATIENCE, || {
        told().is_ok_and(|told| told + lost == 40_000)
    })?;
    assert_eq!(greeted_by(&Connect::to(vip).run_one(&client)?)?, "app");
    Ok(())
}

#[test]
fn pinned_maps_of_another_layout_are_not_used() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&pod, "app", 9000)?;
    let vip: SocketAddr = (testbed.vip4(7), 700).into();
    let config = Config::default()
        .enrol(&client, "")
        .tcp("app", vip, "")
        .cluster("app", &[app.addr4()])
        .yaml();
    MeshAgent::builder(&testbed)?
        .arg("--on-exit=keep")
        .start(&config)?
        .terminate()?;
    // Somebody else's map has taken the place of one of ours.
    let pins = std::fs::read_dir(testbed.bpffs())?
        .flatten()
        .map(|entry| entry.path())
        .next();
    let map = pins.map(|pins| pins.join("maps/SVC"));
    let map = map.filter(|map| map.exists()).expect("the map is pinned");
    std::fs::remove_file(&map)?;
    foreign::pin_map(&map, 4, 4)?;
    let agent = MeshAgent::start(&testbed, &config)?;
    assert!(
        agent.log().contains("another layout than it claims"),
        "{}",
        agent.log()
    );
    assert_eq!(greeted_by(&Connect::to(vip).run_one(&client)?)?, "app");
    agent.terminate()?;
    assert_eq!(std::fs::read_dir(testbed.bpffs())?.count(), 0);
    Ok(())
}
