//! istiod's PeerAuthentication, for a workload and for single ports of it, changed while strangers
//! keep asking in plaintext: every verdict is that of the policy in force.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Istiod, MeshAgent, Pod, Server, Talk, Testbed, eventually, needs_root};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);

/// An Istio resource of the namespace `default`.
fn resource(api: &str, kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": format!("{api}.istio.io/v1"), "kind": kind,
        "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

/// Modes of the workload, and of its second port.
fn policy(mode: &str, second: Option<(u16, &str)>) -> Value {
    let mut spec =
        json!({ "selector": { "matchLabels": { "app": "web" } }, "mtls": { "mode": mode } });
    if let Some((port, mode)) = second {
        spec["portLevelMtls"] = json!({ port.to_string(): { "mode": mode } });
    }
    resource("security", "PeerAuthentication", "web", &spec)
}

/// A verdict, and when it was asked for and given.
type Verdict = (Instant, Instant, bool);

/// Asks in plaintext, one connection after the other.
struct Stranger {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<Result<Vec<Verdict>>>,
}

impl Stranger {
    fn start(from: &Pod, to: SocketAddr) -> Result<Self> {
        let mut talk = Talk::start(from)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let thread = std::thread::spawn(move || {
            let mut verdicts = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                verdicts.push(ask(&mut talk, to)?);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(verdicts)
        });
        Ok(Self {
            stop,
            asked,
            thread,
        })
    }

    /// Waits for some verdicts more.
    fn has_asked_again(&self) -> Result<()> {
        let before = self.asked.load(Ordering::Relaxed);
        eventually("the stranger asks on", PATIENCE, || {
            self.asked.load(Ordering::Relaxed) >= before + 6
        })
    }

    fn end(self) -> Result<Vec<Verdict>> {
        self.stop.store(true, Ordering::Relaxed);
        let verdicts = self.thread.join();
        verdicts.map_err(|_| anyhow::anyhow!("the stranger panicked"))?
    }
}

fn ask(talk: &mut Talk, to: SocketAddr) -> Result<Verdict> {
    let begun = Instant::now();
    let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    let answers = talk.ask(to, request)?;
    let served = answers
        .responses
        .first()
        .is_some_and(|one| one.status == 200);
    ensure!(
        served || answers.raw.is_empty(),
        "half an answer: {answers:?}"
    );
    Ok((begun, Instant::now(), served))
}

#[test]
fn strangers_are_served_exactly_while_the_policy_says_so() -> Result<()> {
    needs_root!(Ok(()));
    if Istiod::program().is_none() {
        mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (web, stranger) = (testbed.pod("web")?, testbed.pod("stranger")?);
    let first = Server::http(&web, "first", "v1", 0)?;
    let second = Server::http(&web, "second", "v1", 0)?;
    let service = |name: &str, vip: u8, port: u16| {
        resource(
            "networking",
            "ServiceEntry",
            name,
            &json!({
            "hosts": [format!("{name}.default.svc.cluster.local")],
            "addresses": [testbed.vip4(vip)], "location": "MESH_INTERNAL", "resolution": "STATIC",
            "ports": [{ "number": 80, "name": "http", "protocol": "HTTP", "targetPort": port }],
            "endpoints": [{ "address": web.ip4(), "labels": { "app": "web" } }] }),
        )
    };
    let istiod = Istiod::start(
        testbed.pod("istiod")?,
        &json!({ "trustDomain": "cluster.local", "rootNamespace": "istio-system" }),
        &[
            (
                "services",
                &[
                    service("first", 1, first.port()),
                    service("second", 2, second.port()),
                ],
            ),
            ("policy", &[policy("STRICT", None)]),
        ],
    )?;
    let ca = tempfile::tempdir()?;
    let agent = MeshAgent::builder(&testbed)?
        .arg("--xds")
        .arg(istiod.xds())
        .arg("--xds-scope")
        .arg("workload")
        .arg("--ca")
        .arg(format!("dev:{}", ca.path().display()))
        .start(
            &json!({ "workloads": [{ "name": "web", "namespace": "default",
                "service_account": "web", "labels": { "app": "web" }, "netns": web.netns_path() }] })
            .to_string(),
        )?;
    let mut talk = Talk::start(&stranger)?;
    let ports = [first.addr4(), second.addr4()];
    let mut holds = |what: &str, wanted: [bool; 2]| -> Result<Instant> {
        eventually(what, PATIENCE, || {
            ports.iter().zip(wanted).all(|(at, wanted)| {
                ask(&mut talk, *at).is_ok_and(|(_, _, served)| served == wanted)
            })
        })
        .with_context(|| agent.log())?;
        Ok(Instant::now())
    };
    let mut since = holds("STRICT holds", [false, false])?;
    let strangers = [
        Stranger::start(&stranger, ports[0])?,
        Stranger::start(&stranger, ports[1])?,
    ];
    let q = second.port();
    let steps = [
        (policy("PERMISSIVE", None), [true, true]),
        (policy("STRICT", Some((q, "PERMISSIVE"))), [false, true]),
        (policy("PERMISSIVE", Some((q, "STRICT"))), [true, false]),
        (policy("STRICT", Some((q, "DISABLE"))), [false, true]),
        (policy("DISABLE", Some((q, "STRICT"))), [true, false]),
        (policy("STRICT", None), [false, false]),
    ];
    // From when to when which verdicts hold.
    let mut in_force = Vec::new();
    let mut wanted = [false, false];
    for (policy, next) in steps {
        strangers.iter().try_for_each(Stranger::has_asked_again)?;
        in_force.push((since, Instant::now(), wanted));
        istiod.put("policy", &[policy])?;
        since = holds(&format!("{next:?} holds"), next)?;
        wanted = next;
    }
    strangers.iter().try_for_each(Stranger::has_asked_again)?;
    in_force.push((since, Instant::now(), wanted));
    for (port, stranger) in strangers.into_iter().enumerate() {
        let verdicts = stranger.end()?;
        let mut judged = 0;
        for (from, until, wanted) in &in_force {
            let within = verdicts
                .iter()
                .filter(|(begun, ended, _)| begun >= from && ended <= until);
            for (begun, _, served) in within {
                judged += 1;
                ensure!(
                    *served == wanted[port],
                    "port {port}: {served} {:?} after {wanted:?} held",
                    *begun - *from
                );
            }
        }
        ensure!(
            judged >= 20,
            "only {judged} of {} verdicts fall into times in which one policy holds",
            verdicts.len()
        );
    }
    Ok(())
}
