//! Agents that are killed and replaced under traffic: who does not need an agent notices nothing,
//! who does is told so at once.

mod common;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use mesh_testbed::{Connect, Curl, MeshAgent, Pod, Server, Testbed, eventually, needs_root};

use common::{Config, greeted_by};

const KILLS: u32 = 10;
/// How long all takes; `MESH_CHAOS_SECONDS` asks for another time.
const SECONDS: u32 = 60;
/// What makes the agent carry a service that the kernel could.
const IN_AGENT: &str = ", idle_timeout: 3000s";

struct Bed {
    traffic: Traffic,
    app: Server,
    web: Server,
    _server: Pod,
    testbed: Testbed,
}

/// Who talks to whom.
struct Traffic {
    client: Pod,
    direct: [SocketAddr; 2],
    http: [SocketAddr; 2],
    carried: [SocketAddr; 2],
}

impl Bed {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let server = testbed.pod("server")?;
        let vips = |number| -> [SocketAddr; 2] {
            [
                (testbed.vip4(number), 700).into(),
                (testbed.vip6(number), 700).into(),
            ]
        };
        Ok(Self {
            traffic: Traffic {
                client: testbed.pod("client")?,
                direct: vips(7),
                http: vips(8),
                carried: vips(9),
            },
            app: Server::tcp(&server, "app", 9000)?,
            web: Server::http(&server, "web", "v1", 8080)?,
            _server: server,
            testbed,
        })
    }

    fn start(&self) -> Result<MeshAgent> {
        let mut config = Config::default().enrol(&self.traffic.client, "");
        for (name, vips, [four, six], extra) in [
            ("direct", self.traffic.direct, ends(&self.app), ""),
            ("http", self.traffic.http, ends(&self.web), ""),
            ("carried", self.traffic.carried, ends(&self.app), IN_AGENT),
        ] {
            let other = format!("{name}-six");
            config = config
                .tcp(name, vips[0], extra)
                .tcp(&other, vips[1], extra)
                .cluster(name, &[four])
                .cluster(&other, &[six]);
        }
        MeshAgent::builder(&self.testbed)?
            .arg("--on-exit=keep")
            .arg("--drain-duration=0s")
            .start(&config.yaml())
    }

    /// Where the agent's pins are.
    fn pins(&self) -> Result<PathBuf> {
        let mut entries = std::fs::read_dir(self.testbed.bpffs())?;
        Ok(entries.next().context("pins")??.path())
    }
}

fn ends(server: &Server) -> [SocketAddr; 2] {
    [server.addr4(), server.addr6()]
}

/// New connections to services of the kernel.
fn connect_forever(traffic: &Traffic, done: &AtomicBool) -> Result<usize> {
    let mut made = 0;
    while !done.load(Ordering::Relaxed) {
        for vip in traffic.direct {
            for one in Connect::to(vip).times(20).run(&traffic.client)? {
                greeted_by(&one).with_context(|| format!("connection {made} failed"))?;
                made += 1;
            }
        }
    }
    Ok(made)
}

/// Requests over the kernel's services.
fn request_forever(traffic: &Traffic, done: &AtomicBool) -> Result<usize> {
    let mut made = 0;
    while !done.load(Ordering::Relaxed) {
        for vip in traffic.http {
            let answer = Curl::get(&traffic.client, &format!("http://{vip}/")).send()?;
            ensure!(answer.status == 200, "request {made}: {answer:?}");
            made += 1;
        }
    }
    Ok(made)
}

/// Streams over the kernel's services, that were there before all.
fn stream_forever(traffic: &Traffic, done: &AtomicBool) -> Result<usize> {
    let mut held = Vec::new();
    for vip in traffic.direct {
        held.push(Connect::to(vip).times(5).hold(&traffic.client)?);
    }
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        for open in &mut held {
            let alive = open.check()?.alive;
            ensure!(
                alive == 5,
                "{alive} of 5 streams live after {rounds} rounds"
            );
            rounds += 1;
        }
    }
    Ok(rounds)
}

/// How long connects to services of the agent took until they were refused, in microseconds.
fn refused_forever(traffic: &Traffic, done: &AtomicBool) -> Result<Vec<u64>> {
    let mut took = Vec::new();
    while !done.load(Ordering::Relaxed) {
        for vip in traffic.carried {
            for one in Connect::to(vip).times(10).run(&traffic.client)? {
                if !one.connected {
                    let errno = one.errno;
                    ensure!(errno == libc::ECONNREFUSED, "{vip}: errno {errno}");
                    took.push(one.connect_us);
                }
            }
        }
    }
    took.sort_unstable();
    Ok(took)
}

fn served(traffic: &Traffic, vip: SocketAddr) -> bool {
    Connect::to(vip)
        .run_one(&traffic.client)
        .and_then(|one| greeted_by(&one))
        .is_ok_and(|name| name == "app")
}

/// Ten agents are killed and three replaced; the last of those finds another layout.
fn chaos(bed: &Bed, first: MeshAgent) -> Result<MeshAgent> {
    let seconds = std::env::var("MESH_CHAOS_SECONDS").map_or(Ok(SECONDS), |text| text.parse())?;
    // Agents live and are missing for a while; nothing is waited for.
    let pause = Duration::from_secs(seconds.into()) / (KILLS + 3) / 2;
    let mut agent = first;
    for round in 0..KILLS + 3 {
        std::thread::sleep(pause);
        if round < KILLS {
            agent.kill()?;
        } else {
            agent.terminate()?;
        }
        if round == KILLS + 2 {
            let pins = bed.pins()?;
            std::fs::rename(&pins, pins.with_file_name("mesh-v0"))?;
        }
        std::thread::sleep(pause);
        agent = bed.start()?;
        for vip in bed.traffic.carried {
            let recovered = || served(&bed.traffic, vip);
            eventually("the agent serves again", Duration::from_secs(1), recovered)?;
        }
    }
    Ok(agent)
}

#[test]
fn nobody_notices_who_needs_no_agent() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let first = bed.start()?;
    let (traffic, done) = (&bed.traffic, &AtomicBool::new(false));
    let (result, connects, requests, rounds, refused) = std::thread::scope(|scope| {
        let connects = scope.spawn(move || connect_forever(traffic, done));
        let requests = scope.spawn(move || request_forever(traffic, done));
        let rounds = scope.spawn(move || stream_forever(traffic, done));
        let refused = scope.spawn(move || refused_forever(traffic, done));
        let result = chaos(&bed, first);
        done.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread panicked");
        Ok::<_, anyhow::Error>((
            result,
            connects.join().map_err(panicked)?,
            requests.join().map_err(panicked)?,
            rounds.join().map_err(panicked)?,
            refused.join().map_err(panicked)?,
        ))
    })?;
    let (connects, requests, rounds, refused) = (connects?, requests?, rounds?, refused?);
    let agent = result?;
    let most = *refused
        .get(refused.len() * 9 / 10)
        .context("nothing was refused while no agent was there")?;
    eprintln!(
        "{connects} connections, {requests} requests, {rounds} rounds of streams; {} refused, nine \
         of ten within {most} us, all within {} us",
        refused.len(),
        refused[refused.len() - 1]
    );
    assert!(connects > 200 && requests > 50 && rounds > 50);
    // The slowest waited for a core, of which the agents that start take some.
    assert!(most < 1000, "{most} us");
    let slowest = refused[refused.len() - 1];
    assert!(slowest < 1_000_000, "{slowest} us");
    assert!(!bed.testbed.bpffs().join("mesh-v0").exists());
    agent.kill()
}

#[test]
fn uninstall_leaves_nothing_and_no_running_agent() -> Result<()> {
    needs_root!(Ok(()));
    let bed = Bed::new()?;
    let agent = bed.start()?;
    let uninstall = || -> Result<std::process::Output> {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command
            .arg("uninstall")
            .arg("--bpffs")
            .arg(bed.testbed.bpffs());
        command.output().context("cannot start it")
    };
    let refused = uninstall()?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && text.contains("another agent"),
        "{text}"
    );
    assert!(served(&bed.traffic, bed.traffic.direct[0]));
    agent.terminate()?;
    assert!(
        served(&bed.traffic, bed.traffic.direct[0]),
        "stopped with --on-exit keep"
    );
    std::fs::create_dir(bed.testbed.bpffs().join("mesh-v0"))?;
    let done = uninstall()?;
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(text.matches("removed").count(), 2, "{text}");
    // The kernel detaches a program a moment after its last pin is gone.
    eventually(
        "the VIP has no route any more",
        Duration::from_secs(5),
        || !served(&bed.traffic, bed.traffic.direct[0]),
    )?;
    assert_eq!(std::fs::read_dir(bed.testbed.bpffs())?.count(), 0);
    Ok(())
}
