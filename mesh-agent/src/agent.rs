//! The running agent: one control loop that owns the kernel side, the pods and the pages.
//!
//! Source -> store -> snapshot -> { BPF maps | proxy workers }: each turn of the loop takes what
//! came from the left and hands it to the right.

pub(crate) mod certificates;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::admin::{Applied, Question, State, serve_admin, serve_metrics, serve_readiness};
use crate::cgroup;
use crate::cli::args::{OnExit, RunArgs};
use crate::config::model::Name;
use crate::config::model::workload::Workload;
use crate::datapath::{Datapath, Options};
use crate::proxy::Proxy;
use crate::pulse::Pulse;
use crate::sched::give_way;
use crate::snapshot::{DnsTable, Inputs, Retired, SharedSnapshot, Snapshot, compile};
use crate::source::dns::{self, DnsSource, DnsStats, Queries, Resolver};
use crate::source::file::{self, Loaded, ReloadStatus};
use crate::source::xds::{Published, Sight, Views};
use crate::store::ResourceSet;
use crate::telemetry::Telemetry;
use crate::workload::{Manager, Netns, Phase, WorkloadState};

use certificates::Certificates;

/// How often namespaces are looked at and the kernel is told that the agent lives.
const TICK: Duration = Duration::from_millis(250);

/// How long services keep endpoints of an agent before this one while their names are unknown.
const INHERITANCE_LIMIT: Duration = Duration::from_secs(5);

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
        .worker_threads(2)
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
    sight: Sight,
    /// The management server's part.
    xds: Option<Views>,
    dns: Arc<DnsTable>,
    dns_stats: Arc<DnsStats>,
    reloads: Arc<ReloadStatus>,
    snapshots: SharedSnapshot,
    retired: Retired,
    datapath: Datapath,
    proxy: Proxy,
    manager: Manager,
    telemetry: Telemetry,
    /// Changes of the manager's pods that telemetry knows of.
    pods_known: u64,
    ready: watch::Sender<bool>,
    /// What an agent before this one left in the kernel is still as it was.
    inheriting: bool,
    applied: Applied,
    /// Keeps certificates.
    certificates: Certificates,
    /// Tells the kernel that the agent lives.
    _pulse: Pulse,
}

async fn control(args: &RunArgs, loaded: Arc<Loaded>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut rotated = signal(SignalKind::user_defined1())?;
    let (questions, mut asked) = mpsc::channel::<Question>(16);
    let (quit, mut quitting) = mpsc::channel(1);
    let (ready, readiness) = watch::channel(false);
    serve_metrics(args.metrics, questions.clone()).await?;
    serve_admin(args.admin, questions, quit).await?;
    serve_readiness(args.readiness, readiness).await?;
    let (mut reloaded, reloads) = file::watch(args.config.clone(), loaded.clone())
        .with_context(|| format!("cannot watch {}", args.config.display()))?;
    let options = args.xds.options(loaded.bootstrap.as_ref());
    let xds = options.map(|options| Views::new(options, args.xds.scope()));
    let mut xds = xds.transpose().context("cannot start the xDS thread")?;
    let streams = xds.as_ref().map(Views::changed).unwrap_or_default();
    let sight = match &mut xds {
        Some(xds) => xds.sight(&loaded.resources),
        None => Sight::of_file(&loaded.resources),
    };
    let (wanted, queries) = watch::channel(dns_queries(&sight));
    let names = DnsSource::start(Resolver::system(), queries);
    let mut resolved = names.table();

    let (cgroup, agent_cgroup) = cgroup::choose(args.cgroup.as_deref())?;
    let mut datapath = Datapath::load(&Options {
        cgroup,
        agent_cgroup,
        bpffs: Some(args.bpffs.clone()),
        map_sizes: args.map_sizes.clone(),
        acceleration: args.acceleration,
        trace: matches!(args.log_level.as_str(), "debug" | "trace"),
    })?;
    let heart = datapath.heart().context("the heart is taken once")?;
    let pulse = Pulse::start(heart).context("cannot start the thread of the heartbeat")?;
    datapath
        .forward_logs()
        .context("cannot read what the kernel programs log")?;
    let snapshots = Snapshot::shared();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let concurrency = args.concurrency.map_or(cores, std::num::NonZero::get);
    let certificates = Certificates::start(&args.identity, args.xds.node())?;
    let proxy = Proxy::start(
        concurrency,
        snapshots.clone(),
        datapath.original_dst(),
        certificates.credentials().clone(),
        args.identity.trust_domain.as_str().into(),
    )
    .context("cannot start the proxy workers")?;
    let events = datapath
        .events()
        .context("the connection records have a reader")?;
    let telemetry = Telemetry::start(snapshots.clone(), events)
        .context("cannot start the reader of connection records")?;
    datapath
        .watch_sockets(telemetry.sampler())
        .context("cannot start looking at open connections")?;
    let inherited = datapath.inherited_pod();
    let mut agent = Agent {
        args: args.clone(),
        started: Instant::now(),
        loaded,
        sight,
        xds,
        dns: Arc::default(),
        dns_stats: names.stats().clone(),
        reloads,
        snapshots,
        retired: Retired::default(),
        datapath,
        proxy,
        manager: Manager::starting_after(inherited),
        telemetry,
        pods_known: u64::MAX,
        inheriting: true,
        applied: Applied::default(),
        certificates,
        _pulse: pulse,
        ready,
    };
    if agent.datapath.has_inherited() {
        let view = agent.datapath.inherited_view();
        if let Some(xds) = &mut agent.xds {
            xds.number_after(view);
        }
        agent.follow_pods();
    }
    agent.apply();
    agent.tell_ready();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => agent.tick(),
            Ok(()) = reloaded.changed() => {
                let _way = give_way();
                agent.loaded = reloaded.borrow_and_update().clone();
                agent.follow_pods();
                agent.look();
                wanted.send_replace(dns_queries(&agent.sight));
                agent.apply();
                agent.tell_ready();
                tracing::info!(generation = agent.snapshots.load().generation, "configuration reloaded");
            }
            () = streams.notified() => {
                let _way = give_way();
                if agent.xds.as_mut().is_some_and(Views::take) {
                    agent.look();
                    wanted.send_replace(dns_queries(&agent.sight));
                    agent.apply();
                }
                agent.tell_ready();
            }
            Ok(()) = resolved.changed() => {
                let _way = give_way();
                agent.dns = resolved.borrow_and_update().clone();
                agent.apply();
                agent.tell_ready();
            }
            Some(question) = asked.recv() => agent.answer(question),
            // As Envoy: access logs were moved away.
            _ = rotated.recv() => agent.proxy.access_log().reopen(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = quitting.recv() => break,
        }
    }
    agent.stop().await;
    Ok(())
}

impl Agent {
    /// Makes what pods see of what the sources have.
    fn look(&mut self) {
        let file = &self.loaded.resources;
        self.sight = match &mut self.xds {
            Some(xds) => xds.sight(file),
            None => Sight::of_file(file),
        };
    }

    /// Opens and closes the streams of pods that came and went. Says whether one was closed.
    fn follow_pods(&mut self) -> bool {
        let present = |workload: &Workload| {
            let netns = Netns::open(&workload.netns.path()).ok()?;
            netns.addresses().ok()
        };
        let workloads = &self.loaded.node.workloads;
        self.xds
            .as_mut()
            .is_some_and(|xds| xds.follow_pods(workloads, present))
    }

    /// Says whose certificates are needed: of the pods that are here.
    fn want_identities(&mut self) {
        let workloads = &self.loaded.node.workloads;
        self.certificates.want_identities(workloads, &self.sight);
    }

    /// Whether there is a configuration to serve pods by.
    fn configured(&self) -> bool {
        self.xds.as_ref().is_none_or(Views::ready)
    }

    /// Whether the configuration can replace what another agent left: before streams delivered and
    /// names are resolved it would leave pods without services, and those without endpoints. What
    /// stays unknown does not hold it up for long.
    fn supersedes(&self) -> bool {
        let resolved = || {
            let mut names = dns_queries(&self.sight);
            Arc::make_mut(&mut names).retain(|query, _| !self.dns.contains_key(query));
            names.is_empty()
        };
        let delivered = || self.xds.as_ref().is_none_or(Views::complete);
        let late = self.started.elapsed() > INHERITANCE_LIMIT;
        self.configured() && (late || delivered() && resolved())
    }

    /// Says once that the agent is ready.
    fn tell_ready(&self) {
        if self.configured() && !self.inheriting && !self.ready.send_replace(true) {
            tracing::info!(config = %self.args.config.display(), admin = %self.args.admin, "ready");
        }
    }

    /// Pods are caught from the first configuration on; until then nobody connects to those that
    /// may turn out to let nobody in without TLS.
    fn reconcile_pods(&mut self, snapshot: &Snapshot) {
        let phase = match (self.configured(), self.inheriting) {
            (false, _) => Phase::Unconfigured,
            (true, true) => Phase::Inheriting,
            (true, false) => Phase::Serving,
        };
        self.manager
            .reconcile(phase, snapshot, &mut self.datapath, &self.proxy);
        if phase == Phase::Serving && self.pods_known != self.manager.changes() {
            self.pods_known = self.manager.changes();
            let pods = self.manager.known_pods();
            if let Some(sockets) = self.datapath.sockets() {
                sockets.know(pods.iter().map(|known| known.pod.clone()).collect());
            }
            self.proxy.requests().know(&pods);
            self.telemetry.know(pods);
        }
    }

    /// Everything downstream of the store, in the order that never leaves a caught connection
    /// unserved: snapshot for the proxy, then the kernel's maps, then pods.
    fn apply(&mut self) {
        let start = Instant::now();
        let previous = self.snapshots.load_full();
        let in_use = self.manager.views_in_use();
        let inputs = Inputs {
            views: &self.sight.views,
            pods: self.sight.pods.clone(),
            in_use: &in_use,
            node: &self.loaded.node,
            dns: &self.dns,
        };
        // Before the snapshot: what it names in files is read when it is used.
        self.certificates.want_named(&self.sight);
        let snapshot = Arc::new(compile(&inputs, &previous));
        self.snapshots.store(snapshot.clone());
        self.retired.keep(previous);
        self.want_identities();
        let inherits = self.inheriting && self.datapath.has_inherited();
        if inherits && !self.supersedes() {
            self.reconcile_pods(&snapshot);
            return;
        }
        let report = self.datapath.apply(&snapshot);
        for (key, error) in &report.failed {
            let address: std::net::IpAddr = key.addr.into();
            tracing::error!(%address, port = key.port, %error, "a service was not written to the kernel");
        }
        let first = std::mem::replace(&mut self.inheriting, false);
        self.reconcile_pods(&snapshot);
        self.proxy.recheck();
        if first
            && self.configured()
            && let Err(error) = self.datapath.drop_inherited()
        {
            tracing::error!(%error, "what another agent left is not taken over in full");
        }
        self.retired.sweep();
        let took = start.elapsed();
        self.applied.count += 1;
        self.applied.total += took;
        self.applied.last = took;
        tracing::debug!(
            generation = snapshot.generation,
            changed = report.changed,
            removed = report.removed,
            microseconds = took.as_micros() as u64,
            "applied"
        );
    }

    fn tick(&mut self) {
        self.datapath.sweep();
        if !self.retired.is_empty() {
            let _way = give_way();
            self.retired.sweep();
        }
        if !self.inheriting {
            for (_, error) in self.datapath.follow_health().failed {
                tracing::error!(%error, "an endpoint's health was not written to the kernel");
            }
        }
        self.telemetry.denied(&self.datapath.take_denied());
        if self.inheriting {
            self.apply();
            self.tell_ready();
        }
        self.want_identities();
        self.certificates.look();
        let snapshot = self.snapshots.load_full();
        let closed = self.follow_pods();
        if closed {
            self.look();
        }
        // Views that pods left behind with the last snapshot go, too.
        if closed || snapshot.views.len() > self.sight.views.len() {
            return self.apply();
        }
        self.reconcile_pods(&snapshot);
    }

    fn state(&self) -> StateHolder<'_> {
        StateHolder {
            agent: self,
            snapshot: self.snapshots.load_full(),
            resources: self.sight.all(),
        }
    }

    fn answer(&self, question: Question) {
        let holder = self.state();
        let streams: Vec<_> = self.xds.iter().flat_map(Views::streams).collect();
        let state = holder.state(&streams);
        // Whoever asked may have left.
        match question {
            Question::Page(page, answer) => drop(answer.send(state.render(page))),
            Question::ClientStatus(answer) => drop(answer.send(state.client_status())),
            Question::ReopenLogs(answer) => {
                self.proxy.access_log().reopen();
                let _ = answer.send(());
            }
        }
    }

    /// Drains, then removes everything: the pods have plain networking again.
    async fn stop(mut self) {
        self.ready.send_replace(false);
        let open = self.proxy.stats().active_connections();
        let (drain, shutdown) = (self.args.drain_duration, self.args.parent_shutdown);
        tracing::info!(connections = open, ?drain, "draining");
        let limit = drain.min(shutdown);
        if !self.proxy.drain(limit).await {
            let left = self.proxy.stats().active_connections();
            tracing::warn!(
                connections = left,
                "closing connections that did not end in time"
            );
        }
        if self.args.on_exit == OnExit::Keep {
            tracing::info!("stopped; the kernel goes on for the next agent");
            return;
        }
        self.manager.release_all(&mut self.datapath, &self.proxy);
        if let Err(error) = self.datapath.unpin() {
            tracing::error!(%error, "pins are left behind");
        }
        tracing::info!("stopped");
    }
}

/// Holds the snapshot that a page is rendered from.
struct StateHolder<'a> {
    agent: &'a Agent,
    snapshot: Arc<Snapshot>,
    resources: Arc<ResourceSet>,
}

impl StateHolder<'_> {
    fn state<'s>(&'s self, streams: &'s [(&'s Name, &'s Published)]) -> State<'s> {
        let agent = self.agent;
        let state = State {
            ready: *agent.ready.borrow(),
            started: agent.started,
            config: agent.args.config.display().to_string(),
            reloads: agent.reloads.get(),
            resources: &self.resources,
            file: &agent.loaded.resources,
            streams,
            applied: agent.applied,
            snapshot: &self.snapshot,
            datapath: &agent.datapath,
            workloads: agent.manager.status(),
            proxy: agent.proxy.stats(),
            access_log: agent.proxy.access_log().stats(),
            requests: agent.proxy.requests(),
            telemetry: &agent.telemetry,
            dns: &agent.dns_stats,
            certificates: &agent.certificates,
        };
        debug_assert!(
            state
                .workloads
                .iter()
                .all(|w| w.state != WorkloadState::Enrolled || w.pod.is_some())
        );
        state
    }
}

/// The names the configuration needs resolved.
fn dns_queries(sight: &Sight) -> Arc<Queries> {
    let views = sight.views.iter();
    let clusters = views.flat_map(|(_, resources)| resources.clusters.values());
    Arc::new(dns::queries(clusters.map(|resource| &*resource.value)))
}
