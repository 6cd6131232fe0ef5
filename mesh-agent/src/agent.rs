//! The running agent: one control loop that owns the kernel side, the pods and the pages.
//!
//! Source -> store -> snapshot -> { BPF maps | proxy workers }: each turn of the loop takes what
//! came from the left and hands it to the right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin::{Question, State, serve_admin, serve_metrics, serve_readiness};
use crate::cgroup;
use crate::cli::args::RunArgs;
use crate::datapath::{Datapath, Options};
use crate::proxy::Proxy;
use crate::snapshot::{DnsTable, Inputs, SharedSnapshot, Snapshot, ViewId, compile};
use crate::source::dns::{self, DnsSource, DnsStats, Queries, Resolver};
use crate::source::file::{self, Loaded, ReloadStatus};
use crate::source::xds::{self, Published};
use crate::store::ResourceSet;
use crate::workload::{Manager, WorkloadState};

/// How often namespaces are looked at and the kernel is told that the agent lives.
const TICK: Duration = Duration::from_millis(250);

/// Runs until SIGTERM, SIGINT or `POST /quitquitquit`, and cleans up.
///
/// # Errors
/// The configuration is wrong, or the machine cannot run the agent.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let loaded = Arc::new(file::load(&args.config, None)?);
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("must run as root: it loads kernel programs and enters the pods' namespaces");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    runtime.block_on(control(args, loaded))
}

struct Agent {
    args: RunArgs,
    started: Instant,
    loaded: Arc<Loaded>,
    /// What the data plane is made of: of the file, of the management server, or of both.
    resources: Arc<ResourceSet>,
    /// The management server's part, once it has come whole.
    xds: Option<Published>,
    dns: Arc<DnsTable>,
    dns_stats: Arc<DnsStats>,
    reloads: Arc<ReloadStatus>,
    snapshots: SharedSnapshot,
    datapath: Datapath,
    proxy: Proxy,
    manager: Manager,
    ready: watch::Sender<bool>,
}

async fn control(args: &RunArgs, loaded: Arc<Loaded>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (questions, mut asked) = mpsc::channel::<Question>(16);
    let (quit, mut quitting) = mpsc::channel(1);
    let (ready, readiness) = watch::channel(false);
    serve_metrics(args.metrics, questions.clone()).await?;
    serve_admin(args.admin, questions, quit).await?;
    serve_readiness(args.readiness, readiness).await?;
    let (mut reloaded, reloads) = file::watch(args.config.clone(), loaded.clone())
        .with_context(|| format!("cannot watch {}", args.config.display()))?;
    let follows = args
        .xds
        .options()
        .map(|options| xds::follow(options, Arc::default()));
    let (_unused, nothing) = watch::channel(Published::default());
    let mut published = follows.clone().unwrap_or(nothing);
    let resources = Arc::new(loaded.resources.clone());
    let (wanted, queries) = watch::channel(dns_queries(&resources));
    let names = DnsSource::start(Resolver::system(), queries);
    let mut resolved = names.table();

    let (cgroup, agent_cgroup) = cgroup::choose(args.cgroup.as_deref())?;
    let mut datapath = Datapath::load(&Options {
        cgroup,
        agent_cgroup,
        trace: matches!(args.log_level.as_str(), "debug" | "trace"),
    })?;
    datapath
        .forward_logs()
        .context("cannot read what the kernel programs log")?;
    let snapshots = Snapshot::shared();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let concurrency = args.concurrency.map_or(cores, std::num::NonZero::get);
    let proxy = Proxy::start(concurrency, snapshots.clone(), datapath.original_dst())
        .context("cannot start the proxy workers")?;
    let mut agent = Agent {
        args: args.clone(),
        started: Instant::now(),
        loaded,
        resources,
        xds: follows.is_some().then(Published::default),
        dns: Arc::default(),
        dns_stats: names.stats().clone(),
        reloads,
        snapshots,
        datapath,
        proxy,
        manager: Manager::default(),
        ready,
    };
    agent.apply();
    agent.tell_ready();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => agent.tick(),
            Ok(()) = reloaded.changed() => {
                agent.loaded = reloaded.borrow_and_update().clone();
                agent.merge();
                wanted.send_replace(dns_queries(&agent.resources));
                agent.apply();
                tracing::info!(generation = agent.snapshots.load().generation, "configuration reloaded");
            }
            Ok(()) = published.changed(), if agent.xds.is_some() => {
                let news = published.borrow_and_update().clone();
                if agent.take(news) {
                    wanted.send_replace(dns_queries(&agent.resources));
                    agent.apply();
                }
                agent.tell_ready();
            }
            Ok(()) = resolved.changed() => {
                agent.dns = resolved.borrow_and_update().clone();
                agent.apply();
            }
            Some((page, answer)) = asked.recv() => {
                // Whoever asked may have left.
                let _ = answer.send(agent.state().render(page));
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = quitting.recv() => break,
        }
    }
    agent.stop().await;
    Ok(())
}

impl Agent {
    /// Takes what the management server published. Says whether the data plane changes by it.
    fn take(&mut self, news: Published) -> bool {
        let Some(known) = &self.xds else {
            return false;
        };
        // The first configuration is used whole or not at all: half of it would refuse what the
        // other half allows.
        let usable = known.complete || news.complete;
        let changed = usable && !Arc::ptr_eq(&known.resources, &news.resources);
        self.xds = Some(Published {
            complete: usable,
            ..news
        });
        if changed {
            self.merge();
        }
        changed
    }

    /// The file's resources, and the management server's under names that the file does not use.
    fn merge(&mut self) {
        let file = &self.loaded.resources;
        self.resources = match &self.xds {
            Some(xds) if xds.complete && file.is_empty() => xds.resources.clone(),
            Some(xds) if xds.complete => Arc::new(file.over(&xds.resources)),
            _ => Arc::new(file.clone()),
        };
    }

    /// Whether there is a configuration to serve pods by.
    fn configured(&self) -> bool {
        self.xds.as_ref().is_none_or(|xds| xds.complete)
    }

    /// Says once that the agent is ready.
    fn tell_ready(&self) {
        if self.configured() && !self.ready.send_replace(true) {
            tracing::info!(config = %self.args.config.display(), admin = %self.args.admin, "ready");
        }
    }

    /// Pods are caught from the first configuration on; until then their traffic is plain.
    fn reconcile_pods(&mut self, snapshot: &Snapshot) {
        if self.configured() {
            self.manager
                .reconcile(snapshot, &mut self.datapath, &self.proxy);
        }
    }

    /// Everything downstream of the store, in the order that never leaves a caught connection
    /// unserved: snapshot for the proxy, then the kernel's maps, then pods.
    fn apply(&mut self) {
        let start = Instant::now();
        let previous = self.snapshots.load_full();
        let views = [(ViewId::NODE, &*self.resources)];
        let inputs = Inputs {
            views: &views,
            node: &self.loaded.node,
            dns: &self.dns,
        };
        let snapshot = Arc::new(compile(&inputs, &previous));
        self.snapshots.store(snapshot.clone());
        let report = self.datapath.apply(&snapshot);
        for (key, error) in &report.failed {
            let address: std::net::IpAddr = key.addr.into();
            tracing::error!(%address, port = key.port, %error, "a service was not written to the kernel");
        }
        self.reconcile_pods(&snapshot);
        tracing::debug!(
            generation = snapshot.generation,
            changed = report.changed,
            removed = report.removed,
            microseconds = start.elapsed().as_micros() as u64,
            "applied"
        );
    }

    fn tick(&mut self) {
        if let Err(error) = self.datapath.heartbeat() {
            tracing::error!(%error, "the kernel takes the agent for dead");
        }
        let snapshot = self.snapshots.load_full();
        self.reconcile_pods(&snapshot);
    }

    fn state(&self) -> StateHolder<'_> {
        StateHolder {
            agent: self,
            snapshot: self.snapshots.load_full(),
        }
    }

    /// Drains, then removes everything: the pods have plain networking again.
    async fn stop(mut self) {
        self.ready.send_replace(false);
        let open = self.proxy.stats().active_connections();
        let (drain, shutdown) = (self.args.drain_duration, self.args.parent_shutdown);
        tracing::info!(connections = open, ?drain, "draining");
        let limit = drain.min(shutdown);
        let mut drained = std::pin::pin!(self.proxy.drain(limit));
        let mut tick = tokio::time::interval(TICK);
        let all = loop {
            tokio::select! {
                all = drained.as_mut() => break all,
                // Still caught, still served.
                _ = tick.tick() => {
                    let _ = self.datapath.heartbeat();
                }
            }
        };
        if !all {
            let left = self.proxy.stats().active_connections();
            tracing::warn!(
                connections = left,
                "closing connections that did not end in time"
            );
        }
        self.manager.release_all(&mut self.datapath, &self.proxy);
        tracing::info!("stopped");
    }
}

/// Holds the snapshot that a page is rendered from.
struct StateHolder<'a> {
    agent: &'a Agent,
    snapshot: Arc<Snapshot>,
}

impl StateHolder<'_> {
    fn render(&self, page: crate::admin::Page) -> (&'static str, String) {
        let agent = self.agent;
        let state = State {
            ready: *agent.ready.borrow(),
            started: agent.started,
            config: agent.args.config.display().to_string(),
            reloads: agent.reloads.get(),
            resources: &agent.resources,
            snapshot: &self.snapshot,
            datapath: &agent.datapath,
            workloads: agent.manager.status(),
            proxy: agent.proxy.stats(),
            dns: &agent.dns_stats,
        };
        debug_assert!(
            state
                .workloads
                .iter()
                .all(|w| w.state != WorkloadState::Enrolled || w.pod.is_some())
        );
        state.render(page)
    }
}

/// The names the configuration needs resolved.
fn dns_queries(resources: &ResourceSet) -> Arc<Queries> {
    let clusters = resources.clusters.values();
    Arc::new(dns::queries(clusters.map(|resource| &*resource.value)))
}
