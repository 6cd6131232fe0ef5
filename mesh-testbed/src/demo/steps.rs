//! What the demo shows, each step with its proof.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mesh_testbed::wire::Echo;
use mesh_testbed::{Connect, Curl, MeshAgent, Pod};
use nix::sys::signal::Signal;

use super::config::{self, Weights};
use super::rules;
use super::scene::Scene;

const REQUESTS: u64 = 1000;
const CANARY: Weights = Weights { v1: 90, v2: 10 };
const CHANGED: Weights = Weights { v1: 0, v2: 100 };
/// curl: could not connect.
const CURL_NO_CONNECTION: i32 = 7;

pub(super) fn without_mesh(scene: &mut Scene) -> Result<String> {
    unreachable(&scene.client, scene)?;
    Ok("curl from the client: no route to host".to_owned())
}

pub(super) fn start_agent(scene: &mut Scene) -> Result<String> {
    let agent = MeshAgent::builder(&scene.testbed)?
        .arg("--drain-duration")
        .arg("1s")
        .arg("--parent-shutdown")
        .arg("2s")
        .start(&config::yaml(scene, CANARY)?)?;
    let said = format!("ready; pid {}, admin on {}", agent.pid(), agent.admin());
    scene.agent = Some(agent);
    Ok(said)
}

pub(super) fn canary(scene: &mut Scene) -> Result<String> {
    let url = format!("http://{}/[1-{REQUESTS}]", scene.reviews_vip());
    let output = scene
        .client
        .command("curl")
        .args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "60",
            &url,
        ])
        .output()
        .context("cannot start curl")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
            .lines()
            .last()
            .unwrap_or_default()
    );
    let (mut v1, mut v2) = (0, 0);
    for line in output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let echo: Echo = serde_json::from_slice(line).context("not from a server of ours")?;
        match echo.version.as_str() {
            "v1" => v1 += 1,
            _ => v2 += 1,
        }
    }
    ensure!(
        v1 + v2 == REQUESTS,
        "{} of {REQUESTS} requests were answered",
        v1 + v2
    );
    // 100 expected, standard deviation 9.5: five of them either way.
    ensure!(
        (53..=147).contains(&v2),
        "{v2} of {REQUESTS} requests went to v2"
    );
    Ok(format!("{REQUESTS} requests by curl: v1 {v1}, v2 {v2}"))
}

pub(super) fn header(scene: &mut Scene) -> Result<String> {
    const TIMES: usize = 20;
    let url = format!("http://{}/", scene.reviews_vip());
    for _ in 0..TIMES {
        let response = Curl::get(&scene.client, &url)
            .header("end-user: jason")
            .send()?;
        let echo = response.echo()?;
        ensure!(echo.version == "v2", "jason got {}", echo.version);
    }
    Ok(format!("{TIMES} of {TIMES} requests to v2"))
}

/// The agent is stopped meanwhile (SIGSTOP), so that nothing but the kernel can do it.
pub(super) fn tcp_in_kernel(scene: &mut Scene) -> Result<String> {
    const TIMES: usize = 200;
    let agent = scene.agent()?;
    agent.signal(Signal::SIGSTOP)?;
    let result = Connect::to(scene.ledger_vip())
        .times(TIMES)
        .run(&scene.client);
    agent.signal(Signal::SIGCONT)?;
    let (mut a, mut b) = (0, 0);
    for one in result? {
        let banner = one
            .banner()
            .with_context(|| format!("no greeting: {one:?}"))?;
        ensure!(
            banner.peer.ip() == scene.client.ip4(),
            "the server sees {}, not the client",
            banner.peer
        );
        ensure!(
            one.peer == Some(scene.ledger_vip()),
            "the client sees {:?}",
            one.peer
        );
        match banner.name.as_str() {
            "ledger-a" => a += 1,
            _ => b += 1,
        }
    }
    ensure!(a > TIMES / 4 && b > TIMES / 4, "not balanced: a {a}, b {b}");
    Ok(format!(
        "{TIMES} connections with the agent stopped (SIGSTOP): a {a}, b {b}; each end sees the \
         address it should"
    ))
}

pub(super) fn outsider(scene: &mut Scene) -> Result<String> {
    unreachable(&scene.outsider, scene)?;
    let url = format!("http://{}/", scene.reviews_v1.addr4());
    let echo = Curl::get(&scene.outsider, &url).send()?.echo()?;
    ensure!(
        echo.peer.ip() == scene.outsider.ip4(),
        "the server sees {}",
        echo.peer
    );
    Ok("reviews has no route for it, as before; pod to pod works, its own address seen".to_owned())
}

/// Four clients keep asking; the file is replaced meanwhile.
pub(super) fn reload(scene: &mut Scene) -> Result<String> {
    let (failed, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let url = format!("http://{}/[1-1000000]", scene.reviews_vip());
    let (versions, seen) = channel();
    let took = std::thread::scope(|scope| -> Result<Duration> {
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut child = scene
                .client
                .command("curl")
                .args([
                    "--silent",
                    "--max-time",
                    "120",
                    "--write-out",
                    "%{http_code}\n",
                    &url,
                ])
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start curl")?;
            let stdout = child.stdout.take().context("stdout is piped")?;
            clients.push(Killed(child));
            let (versions, failed, answered) = (versions.clone(), &failed, &answered);
            scope.spawn(move || {
                // A body, if there is one, then the status.
                let lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
                for line in lines {
                    if let Ok(echo) = serde_json::from_slice::<Echo>(&line) {
                        let _ = versions.send(echo.version == "v2");
                    } else if line == b"200" {
                        answered.fetch_add(1, Ordering::Relaxed);
                    } else if line.len() == 3 {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let more = |count: u64| -> Result<()> {
            let goal = answered.load(Ordering::Relaxed) + count;
            let deadline = Instant::now() + Duration::from_secs(30);
            while answered.load(Ordering::Relaxed) < goal {
                ensure!(
                    Instant::now() < deadline,
                    "requests are not answered any more"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        more(500)?;
        let start = Instant::now();
        scene.agent()?.reconfigure(&config::yaml(scene, CHANGED)?)?;
        // By chance 100 responses in a row are of v2 once in 10^100 under the old weights.
        let mut row = 0;
        let mut first = start;
        while row < 100 {
            let v2 = seen
                .recv_timeout(Duration::from_secs(10))
                .context("no response for ten seconds")?;
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "the new weights do not come"
            );
            row = if v2 { row + 1 } else { 0 };
            if row == 1 {
                first = Instant::now();
            }
        }
        more(500)?;
        Ok(first - start)
    })?;
    let (failed, answered) = (failed.into_inner(), answered.into_inner());
    ensure!(failed == 0, "{failed} requests failed, {answered} did not");
    Ok(format!(
        "90/10 to 0/100 in {} ms under traffic: {answered} requests, 0 failed",
        took.as_millis()
    ))
}

pub(super) fn no_rules(scene: &mut Scene) -> Result<String> {
    let tools = rules::tools();
    ensure!(
        !tools.is_empty(),
        "neither nft nor iptables-save is here to ask"
    );
    let pods = [&scene.client, &scene.outsider]
        .into_iter()
        .chain(&scene.servers);
    for pod in pods {
        let rules = rules::of_pod(pod);
        ensure!(rules.is_empty(), "in {}: {}", pod.name(), rules.join("; "));
    }
    let node = rules::of_node();
    ensure!(
        node == scene.rules_before,
        "the node's rules changed: {}",
        node.join("; ")
    );
    Ok(format!(
        "no rule in any pod, none added to the node ({})",
        tools.join(", ")
    ))
}

pub(super) fn stop_agent(scene: &mut Scene) -> Result<String> {
    let agent = scene.agent.take().context("the agent does not run")?;
    let status = agent.terminate()?;
    ensure!(status.success(), "it ended with {status}");
    unreachable(&scene.client, scene)?;
    let pins = std::fs::read_dir(scene.testbed.bpffs()).map_or(0, Iterator::count);
    ensure!(
        pins == 0,
        "{pins} pins are left in {}",
        scene.testbed.bpffs().display()
    );
    Ok("SIGTERM; pods have plain networking again, no pin is left".to_owned())
}

/// After everything was dropped.
pub(super) fn nothing_left(name: &str) -> Result<String> {
    let left = |dir: &str| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|file| file.starts_with(name))
            .collect()
    };
    let left: Vec<String> = ["/var/run/netns", "/sys/class/net", "/sys/fs/bpf"]
        .into_iter()
        .flat_map(left)
        .collect();
    if !left.is_empty() {
        bail!("left: {}", left.join(", "));
    }
    Ok("no namespace, bridge or pin is left".to_owned())
}

/// The service address has no route, and nobody catches the connection.
fn unreachable(pod: &Pod, scene: &Scene) -> Result<()> {
    let url = format!("http://{}/", scene.reviews_vip());
    let response = Curl::get(pod, &url).send()?;
    ensure!(
        response.exit == CURL_NO_CONNECTION,
        "curl from {} ended with {} ({:?}), status {}",
        pod.name(),
        response.exit,
        response.error,
        response.status
    );
    Ok(())
}

/// Killed and waited for when dropped, so that its reader ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
