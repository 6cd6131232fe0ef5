//! Pods come and go while the agent runs: whatever ends, ends alone and leaves nothing.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Connect, Curl, MeshAgent, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, PATIENCE, apply, greeted_by, metric};

/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

/// State of a workload, and the reason for it.
fn workload(agent: &MeshAgent, name: &str) -> Result<(String, String)> {
    let page = agent.get("/workloads")?.body;
    let all: serde_json::Value = serde_json::from_str(&page)?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    all.as_array()
        .into_iter()
        .flatten()
        .find(|one| one["name"] == name)
        .map(|one| (text(&one["state"]), text(&one["reason"])))
        .with_context(|| format!("no {name} in {page}"))
}

fn wait_for(agent: &MeshAgent, name: &str, state: &str, reason: &str) -> Result<()> {
    eventually(&format!("{name} is {state}, {reason:?}"), PATIENCE, || {
        workload(agent, name).is_ok_and(|(is, why)| is == state && why.contains(reason))
    })
    .with_context(|| format!("{:?}", workload(agent, name)))
}

fn served(pod: &Pod, vip: SocketAddr) -> bool {
    Connect::to(vip)
        .run_one(pod)
        .and_then(|one| greeted_by(&one))
        .is_ok_and(|name| name == "app")
}

/// Entries of the pods' maps.
fn entries(agent: &MeshAgent) -> Result<Vec<u64>> {
    ["PODS", "IN_PODS", "LISTEN", "CIDRS", "PORTS"]
        .into_iter()
        .map(|map| metric(agent, &format!("mesh_bpf_map_entries{{map=\"{map}\"}}")))
        .collect()
}

/// TCP sockets in a pod's namespace that belong to the agent's ports.
fn agent_sockets(pod: &Pod) -> Result<String> {
    let output = pod
        .command("ss")
        .args([
            "-Htan",
            "( sport = :15001 or sport = :15006 or dport = :15001 )",
        ])
        .output()?;
    ensure!(output.status.success(), "ss: {}", output.status);
    // What the kernel alone keeps for a while is nobody's any more.
    let sockets = String::from_utf8(output.stdout)?;
    Ok(sockets
        .lines()
        .filter(|line| !line.starts_with("TIME-WAIT"))
        .collect())
}

#[test]
fn a_namespace_that_ends_and_comes_again_is_another_pod() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (mut client, other, server) = (
        testbed.pod("client")?,
        testbed.pod("other")?,
        testbed.pod("server")?,
    );
    let app = Server::tcp(&server, "app", 9000)?;
    let vip = SocketAddr::new(testbed.vip4(7).into(), 700);
    let config = Config::default()
        .enrol(&client, "")
        .enrol(&other, "")
        .tcp("app", vip, IN_AGENT)
        .cluster("app", &[app.addr4()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    assert!(served(&client, vip) && served(&other, vip));
    let mut held = Connect::to(vip).times(3).hold(&other)?;
    let (maps, files) = (entries(&agent)?, agent.open_files()?);
    for _ in 0..3 {
        drop(client);
        wait_for(&agent, "client", "waiting", "No such file")?;
        client = testbed.pod("client")?;
        wait_for(&agent, "client", "enrolled", "")?;
        assert!(served(&client, vip), "the new pod of that name is served");
        assert_eq!(held.check()?.alive, 3, "the other pod noticed nothing");
    }
    assert_eq!(entries(&agent)?, maps);
    eventually("no descriptor of the old pods is left", PATIENCE, || {
        agent.open_files().is_ok_and(|now| now <= files)
    })
}

#[test]
fn a_pod_given_by_process_ends_with_it() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::tcp(&server, "app", 9000)?;
    let vip = SocketAddr::new(testbed.vip4(7).into(), 700);
    // Any process of the pod will do.
    let process = Server::tcp(&client, "process", 9000)?;
    let config = Config::default()
        .enrol_process("client", process.pid())
        .tcp("app", vip, IN_AGENT)
        .cluster("app", &[app.addr4()]);
    let agent = MeshAgent::start(&testbed, &config.yaml())?;
    assert!(served(&client, vip));
    drop(process);
    wait_for(&agent, "client", "waiting", "No such file")?;
    let plain = Connect::to(vip).run_one(&client)?;
    assert!(!plain.connected, "nothing is caught any more: {plain:?}");
    assert_eq!(entries(&agent)?, [0; 5]);
    assert_eq!(agent_sockets(&client)?, "");
    Ok(())
}

#[test]
fn a_taken_port_is_named_and_tried_again() -> Result<()> {
    needs_root!(Ok(()));
    for port in ["15001", "15006"] {
        let testbed = Testbed::new()?;
        let (client, other, server) = (
            testbed.pod("client")?,
            testbed.pod("other")?,
            testbed.pod("server")?,
        );
        let app = Server::tcp(&server, "app", 9000)?;
        let vip = SocketAddr::new(testbed.vip4(7).into(), 700);
        let sidecar = Server::with_args(&client, &["echo-tcp", "--port", port])?;
        let config = Config::default()
            .enrol(&client, "")
            .enrol(&other, "")
            .tcp("app", vip, IN_AGENT)
            .cluster("app", &[app.addr4()]);
        let agent = MeshAgent::start(&testbed, &config.yaml())?;
        let named = format!("port {port} is taken inside the pod");
        wait_for(&agent, "client", "waiting", &named)?;
        assert!(served(&other, vip), "the other pod is served");
        assert!(!served(&client, vip), "this one is not caught");
        drop(sidecar);
        wait_for(&agent, "client", "enrolled", "")?;
        assert!(served(&client, vip), "once the port is free");
        let warned = agent.log().matches(&named).count();
        assert_eq!(warned, 1, "said once, not once a try");
    }
    Ok(())
}

#[test]
fn of_two_pods_with_one_address_the_first_keeps_it() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, first, second) = (
        testbed.pod("client")?,
        testbed.pod("first")?,
        testbed.pod("second")?,
    );
    let app = Server::http(&first, "app", "v1", 8080)?;
    let routes = "{match: {path: /denied}, direct_response: {status: 403}}, \
                  {match: {prefix: /}, route: {cluster: here}}";
    let base = || {
        Config::default()
            .http(
                "inbound",
                "0.0.0.0:15006".parse().expect("an address"),
                "INBOUND",
                routes,
            )
            .original_dst("here")
    };
    let agent = MeshAgent::start(&testbed, &base().enrol(&first, "").yaml())?;
    // Kept from the network, which goes on with the first.
    let silent = second
        .command("sysctl")
        .args(["-qw", "net.ipv4.conf.all.arp_ignore=1"])
        .status()?;
    ensure!(silent.success(), "sysctl: {silent}");
    let shared = format!("addr add {}/32 dev lo", first.ip4());
    let added = second.command("ip").args(shared.split(' ')).status()?;
    ensure!(added.success(), "ip {shared}: {added}");
    apply(&agent, &base().enrol(&first, "").enrol(&second, "").yaml())?;
    let named = format!("{} ", IpAddr::from(first.ip4()));
    wait_for(&agent, "second", "waiting", &named)?;
    wait_for(&agent, "second", "waiting", "default/first")?;
    let denied = Curl::get(&client, &format!("http://{}/denied", app.addr4())).send()?;
    assert_eq!(denied.status, 403, "the first is captured as before");
    let removed = second
        .command("ip")
        .args(shared.replace(" add ", " del ").split(' '))
        .status()?;
    ensure!(removed.success(), "{removed}");
    wait_for(&agent, "second", "enrolled", "")
}

#[test]
fn a_pod_that_is_let_go_leaves_nothing_behind() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, other, server) = (
        testbed.pod("client")?,
        testbed.pod("other")?,
        testbed.pod("server")?,
    );
    let app = Server::tcp(&server, "app", 9000)?;
    let (carried, direct) = (
        SocketAddr::new(testbed.vip4(7).into(), 700),
        SocketAddr::new(testbed.vip4(8).into(), 800),
    );
    let base = || {
        Config::default()
            .tcp("app", carried, IN_AGENT)
            .tcp("direct", direct, "")
            .cluster("app", &[app.addr4()])
            .cluster("direct", &[app.addr4()])
    };
    let with_one = base().enrol(&other, "").yaml();
    let with_both = base()
        .enrol(&other, "")
        .enrol(&client, ", capture: {exclude_outbound_ports: [9]}")
        .yaml();
    let agent = MeshAgent::start(&testbed, &with_one)?;
    let (maps, files) = (entries(&agent)?, agent.open_files()?);
    apply(&agent, &with_both)?;
    wait_for(&agent, "client", "enrolled", "")?;
    let mut through_agent = Connect::to(carried).times(20).hold(&client)?;
    let mut through_kernel = Connect::to(direct).times(5).hold(&client)?;
    let mut others = Connect::to(carried).times(5).hold(&other)?;
    assert!(entries(&agent)? > maps && agent.open_files()? > files + 40);
    apply(&agent, &with_one)?;
    eventually("the agent's connections are closed", PATIENCE, || {
        through_agent.check().is_ok_and(|held| held.alive == 0)
    })?;
    assert_eq!(through_kernel.check()?.alive, 5, "the kernel's go on");
    assert_eq!(others.check()?.alive, 5, "the other pod's go on");
    assert_eq!(entries(&agent)?, maps);
    drop(through_agent);
    eventually(
        "no socket of the agent is left in the pod",
        PATIENCE,
        || agent_sockets(&client).is_ok_and(|sockets| sockets.is_empty()),
    )?;
    drop(others);
    eventually("descriptors are back", PATIENCE, || {
        agent.open_files().is_ok_and(|now| now <= files)
    })?;
    drop(through_kernel);
    eventually("the kernel counts no connection", PATIENCE, || {
        agent
            .get("/services")
            .is_ok_and(|page| !page.body.contains("\"active\": 5"))
    })
}

/// `ConfigMap` volumes: `mesh.yaml -> ..data/mesh.yaml`, `..data -> ..VERSION`, and the second link
/// replaced by a rename.
fn publish(volume: &Path, version: usize, config: &str) -> Result<()> {
    let data = volume.join(format!("..{version}"));
    std::fs::create_dir(&data)?;
    std::fs::write(data.join("mesh.yaml"), config)?;
    let next = volume.join("..data_tmp");
    symlink(format!("..{version}"), &next)?;
    std::fs::rename(&next, volume.join("..data"))?;
    if version == 0 {
        symlink("..data/mesh.yaml", volume.join("mesh.yaml"))?;
    } else {
        std::fs::remove_dir_all(volume.join(format!("..{}", version - 1)))?;
    }
    Ok(())
}

#[test]
fn a_swapped_volume_is_taken_up_under_traffic_without_a_failed_request() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let app = Server::http(&server, "app", "v1", 8080)?;
    let vip = SocketAddr::new(testbed.vip4(3).into(), 80);
    let config = |version: usize| {
        let routes = format!(
            "{{match: {{path: /version}}, direct_response: {{status: 200, body: {{inline_string: \
             \"{version}\"}}}}}}, {{match: {{prefix: /}}, route: {{cluster: web}}}}"
        );
        Config::default()
            .enrol(&client, "")
            .http("web", vip, "OUTBOUND", &routes)
            .cluster("web", &[app.addr4()])
            .yaml()
    };
    let volume = tempfile::tempdir()?;
    publish(volume.path(), 0, &config(0))?;
    let agent = MeshAgent::builder(&testbed)?.start_from(volume.path())?;
    let wrk = client
        .command("wrk")
        .args([
            "-t1",
            "-c8",
            "-d4s",
            "--timeout",
            "4s",
            &format!("http://{vip}/"),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start wrk")?;
    for version in 1..=8 {
        publish(volume.path(), version, &config(version))?;
        eventually(&format!("version {version} is served"), PATIENCE, || {
            Curl::get(&client, &format!("http://{vip}/version"))
                .send()
                .is_ok_and(|page| page.status == 200 && page.text() == version.to_string())
        })?;
    }
    let output = String::from_utf8(wrk.wait_with_output()?.stdout)?;
    ensure!(
        output.contains("requests in")
            && !output.contains("Non-2xx")
            && !output.contains("Socket errors"),
        "{output}"
    );
    assert_eq!(metric(&agent, "mesh_config_reload_failures_total")?, 0);
    Ok(())
}
