//! What a pod more costs, where each has a stream as if it had a sidecar and all are sent the same.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_testbed::ads::Ads;
use mesh_testbed::{MeshAgent, Pod, Testbed};
use serde_json::json;

use super::world::{self, World};

/// How long all pods may take to be served.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the agent is given to free what it needed on the way.
const SETTLE: Duration = Duration::from_secs(6);

/// The memory of agents of one and of many pods.
#[derive(Debug, serde::Serialize)]
pub(super) struct Figures {
    pods: usize,
    services: u32,
    /// Of one pod, and of all.
    rss_mib: [f64; 2],
    /// The same without a service: what the agent and its pods' listeners need.
    rss_without_services_mib: [f64; 2],
}

/// Measures agents of one and of `count` pods.
pub(super) fn measure(services: u32, endpoints: u32, count: usize) -> Result<Figures> {
    let testbed = Testbed::new()?;
    let pods = testbed.pods((0..count).map(|number| format!("pod-{number}")))?;
    let both = |services| -> Result<[f64; 2]> {
        let world = World {
            services,
            endpoints,
        };
        Ok([
            agent(&testbed, world, &pods[..1])?,
            agent(&testbed, world, &pods)?,
        ])
    };
    Ok(Figures {
        pods: count,
        services,
        rss_without_services_mib: both(0)?,
        rss_mib: both(services)?,
    })
}

impl Figures {
    pub(super) fn rows(&self) -> [(String, String); 3] {
        let two = |[one, all]: [f64; 2]| format!("{one:.0}, {all:.0} MiB");
        let [one, all] = self.rss_mib;
        let [empty, bare] = self.rss_without_services_mib;
        [
            (
                format!("RSS of 1 and {} pods, no services", self.pods),
                two(self.rss_without_services_mib),
            ),
            (
                format!("the same, {} services, a stream a pod", self.services),
                two(self.rss_mib),
            ),
            (
                "what the services cost, all pods / one pod".to_owned(),
                format!("{:.2}", (all - bare) / (one - empty)),
            ),
        ]
    }
}

/// What an agent with these pods needs once it is quiet, in MiB.
fn agent(testbed: &Testbed, world: World, pods: &[Pod]) -> Result<f64> {
    let ads = Ads::start()?;
    let resources = world.resources(1)?;
    ads.change(|state| world::serve(state, &resources));
    let workloads: Vec<_> = pods
        .iter()
        .map(|pod| {
            json!({ "name": pod.name(), "namespace": "shop", "labels": { "app": "web" },
                "netns": pod.netns_path() })
        })
        .collect();
    let agent = MeshAgent::builder(testbed)?
        .arg("--xds")
        .arg(ads.address())
        .arg("--xds-scope")
        .arg("workload")
        .start(&json!({ "workloads": workloads }).to_string())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let views = views(&agent)?;
        if views.len() == pods.len() && views.iter().all(Option::is_some) {
            ensure!(
                views.iter().all(|view| *view == views[0]),
                "pods with equal contents see {views:?}"
            );
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "not all pods are served within {PATIENCE:?}; the agent's log:\n{}",
            agent.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(SETTLE);
    let memory = agent.memory()?;
    agent.terminate()?;
    Ok(memory as f64 / f64::from(1 << 20))
}

/// Which view each enrolled pod sees.
fn views(agent: &MeshAgent) -> Result<Vec<Option<u64>>> {
    let page: serde_json::Value = serde_json::from_str(&agent.get("/workloads")?.body)?;
    let all = page.as_array().cloned().unwrap_or_default();
    Ok(all.iter().map(|one| one["view"].as_u64()).collect())
}
