//! Arguments and environment variables of `mesh-agent`.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::datapath::acceleration::Acceleration;

use super::duration;
use super::identity::IdentityArgs;
use super::xds::XdsArgs;
use crate::datapath::MapSize;

const ABOUT: &str = "\
Examples:
  mesh-agent doctor                                  can this machine run it?
  mesh-agent validate --config /etc/mesh/mesh.yaml   is this configuration right?
  mesh-agent run --config /etc/mesh/mesh.yaml        run it
  mesh-agent status                                  what does the running one do?

Every flag has an environment variable MESH_*; the flag wins.";

const RUN: &str = "\
Examples:
  mesh-agent run --config /etc/mesh/mesh.yaml
  mesh-agent run --config /etc/mesh/conf.d --cgroup /sys/fs/cgroup/kubepods.slice
  MESH_LOG_FORMAT=json mesh-agent run --config mesh.yaml --concurrency 2
  mesh-agent run --config pods.yaml --xds istiod.istio-system.svc:15010

The configuration is watched: a changed file is checked as a whole and takes effect at once, a
wrong one is reported (log, metric, `mesh-agent status`) and the old one keeps serving.

SIGTERM and SIGINT drain: no new connections are caught, those that are open may end by
themselves for --drain-duration; then programs, maps and listeners are removed and the pods have
plain networking again, unless --on-exit keep. --parent-shutdown bounds all of it.";

const VALIDATE: &str = "\
Examples:
  mesh-agent validate --config mesh.yaml
  mesh-agent validate --config /etc/mesh/conf.d && systemctl reload mesh-agent

Prints every error with file, line, field, reason and remedy. Exit code 0: it is right; 1: it is
not. Needs neither root nor a running agent.";

const STATUS: &str = "\
Examples:
  mesh-agent status
  mesh-agent status --json | jq '.services[] | select(.verdict == \"agent\")'

Shows the running agent: version, source and state of its configuration, the pods it serves, and
for every service whether the kernel or the agent carries it and why. Exit code 1: no agent
answers.";

const CERTS: &str = "\
Examples:
  mesh-agent certs
  mesh-agent certs --json | jq '.certificates[] | select(.error != null)'

Shows each identity of the node with its certificate, and the certificates that configurations find
in files and at secret discovery servers. Exit code 1: no agent answers.";

const UNINSTALL: &str = "\
Examples:
  mesh-agent uninstall
  mesh-agent uninstall --bpffs /sys/fs/bpf/other

For a node that an agent has left behind: one that was killed and does not come back, or that was
stopped with --on-exit keep. Removes every pin, of every version, and with that every program and
map; connections the kernel balanced go on. Exit code 1: an agent is running.";

const DOCTOR: &str = "\
Examples:
  mesh-agent doctor
  mesh-agent doctor --cgroup /sys/fs/cgroup/kubepods.slice

Each line is ok, warn (it runs, something is lost) or fail (it cannot run), with what that costs
and the fix. Exit code 1: something failed.";

/// A service mesh without sidecars: one agent per node, and eBPF programs.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, after_help = ABOUT, disable_help_subcommand = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node (as root).
    #[command(after_help = RUN)]
    Run(Box<RunArgs>),
    /// Check a configuration without running it.
    #[command(after_help = VALIDATE)]
    Validate(ValidateArgs),
    /// Show what the running agent does.
    #[command(after_help = STATUS)]
    Status(StatusArgs),
    /// Show the running agent's certificates: whose, who signed them, how long they last, and when
    /// the next ones come.
    #[command(after_help = CERTS)]
    Certs(StatusArgs),
    /// Say what this machine has and lacks, each with the fix.
    #[command(after_help = DOCTOR)]
    Doctor(DoctorArgs),
    /// Remove what agents that are gone have left in the kernel.
    #[command(after_help = UNINSTALL)]
    Uninstall(UninstallArgs),
    /// Print the version.
    Version,
}

/// What is left in the kernel when the agent is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Nothing: the pods have plain networking again.
    Remove,
    /// Programs, maps and pods, for the next agent.
    Keep,
}

/// Arguments of `uninstall`.
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    /// The bpf file system that the agent was told.
    #[arg(
        long,
        env = "MESH_BPFFS",
        value_name = "PATH",
        default_value = DEFAULT_BPFFS
    )]
    pub bpffs: PathBuf,
}

/// Arguments of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// A YAML or JSON file, or a folder of them.
    #[arg(long, env = "MESH_CONFIG", value_name = "PATH")]
    pub config: PathBuf,
    /// The cgroup v2 directory that holds all pods; programs are attached to it. The whole
    /// hierarchy when absent, wherever it is mounted.
    #[arg(long, env = "MESH_CGROUP", value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Where maps and links are pinned, in mesh-vN: a bpf file system. What the kernel does goes on
    /// when the agent is killed; --on-exit says what happens when it is stopped.
    #[arg(
        long,
        env = "MESH_BPFFS",
        value_name = "PATH",
        default_value = DEFAULT_BPFFS
    )]
    pub bpffs: PathBuf,
    /// Gives a kernel map room for so many entries instead of the default, which `mesh-agent status`
    /// shows; may be given several times. Maps that an agent before this one left keep their size.
    #[arg(
        long = "map-size",
        env = "MESH_MAP_SIZES",
        value_name = "NAME=ENTRIES",
        value_delimiter = ','
    )]
    pub map_sizes: Vec<MapSize>,
    /// What is left in the kernel when the agent is stopped. `keep` is for replacing it by another
    /// version: the next one takes over what runs in the kernel without a gap, and what needs an
    /// agent is refused until then.
    #[arg(
        long,
        env = "MESH_ON_EXIT",
        value_name = "WHAT",
        default_value = "remove"
    )]
    pub on_exit: OnExit,
    /// What pods of this node say to each other in small messages goes from socket to socket, past
    /// TCP. Kernels differ in what applications notice of it: each is tried when the agent starts,
    /// and `mesh-agent doctor` shows every trial.
    #[arg(
        long,
        env = "MESH_ACCELERATION",
        value_name = "WHAT",
        default_value = "auto"
    )]
    pub acceleration: Acceleration,
    /// Where the admin pages are served. They have no authentication: keep it on loopback.
    #[arg(
        long,
        env = "MESH_ADMIN",
        value_name = "ADDR:PORT",
        default_value_t = DEFAULT_ADMIN
    )]
    pub admin: SocketAddr,
    /// Where /healthz/ready is served.
    #[arg(
        long,
        env = "MESH_READINESS",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:15021"
    )]
    pub readiness: SocketAddr,
    /// Where /stats/prometheus is served to scrapers, as Istio's agent does on 15020.
    #[arg(
        long,
        env = "MESH_METRICS",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:15020"
    )]
    pub metrics: SocketAddr,
    /// How long open connections may go on after SIGTERM.
    #[arg(
        long,
        env = "MESH_DRAIN_DURATION",
        value_name = "DURATION",
        default_value = "45s",
        value_parser = duration::parse
    )]
    pub drain_duration: Duration,
    /// When a stopping agent exits at the latest.
    #[arg(
        long,
        env = "MESH_PARENT_SHUTDOWN",
        value_name = "DURATION",
        default_value = "60s",
        value_parser = duration::parse
    )]
    pub parent_shutdown: Duration,
    /// Worker threads of the proxy; one per CPU when absent.
    #[arg(long, env = "MESH_CONCURRENCY", value_name = "N")]
    pub concurrency: Option<NonZeroUsize>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or per module: `info,mesh_agent::proxy=debug`.
    #[arg(
        long,
        env = "MESH_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = log_level
    )]
    pub log_level: String,
    /// How log lines look.
    #[arg(
        long,
        env = "MESH_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// Configuration by xDS.
    #[command(flatten)]
    pub xds: XdsArgs,
    /// Certificates.
    #[command(flatten)]
    pub identity: IdentityArgs,
}

/// Arguments of `validate`.
#[derive(Debug, Clone, clap::Args)]
pub struct ValidateArgs {
    /// A YAML or JSON file, or a folder of them.
    #[arg(long, env = "MESH_CONFIG", value_name = "PATH")]
    pub config: PathBuf,
}

/// Arguments of `status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// Where the agent's admin pages are.
    #[arg(
        long,
        env = "MESH_ADMIN",
        value_name = "ADDR:PORT",
        default_value_t = DEFAULT_ADMIN
    )]
    pub admin: SocketAddr,
    /// JSON for programs.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// The cgroup v2 directory that holds all pods.
    #[arg(long, env = "MESH_CGROUP", value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// How much each trial of same-node acceleration sends both ways, in MiB.
    #[arg(
        long,
        env = "MESH_TRIAL_SIZE",
        value_name = "MIB",
        default_value_t = 16
    )]
    pub trial_size: u64,
    /// Where maps and links will be pinned.
    #[arg(
        long,
        env = "MESH_BPFFS",
        value_name = "PATH",
        default_value = DEFAULT_BPFFS
    )]
    pub bpffs: PathBuf,
}

/// A filter that tracing understands. A bare word must be a level: taken for a module's name it
/// would switch everything off.
fn log_level(text: &str) -> Result<String, String> {
    const RIGHT: &str =
        "write error, warn, info, debug or trace, or per module: info,mesh_agent::proxy=debug";
    let levels = ["error", "warn", "info", "debug", "trace", "off"];
    let bare = text
        .split(',')
        .filter(|part| !part.contains(['=', ':', '[']));
    for word in bare {
        if !levels.contains(&word.trim().to_ascii_lowercase().as_str()) {
            return Err(format!("{word:?} is not a level; {RIGHT}"));
        }
    }
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; {RIGHT}")),
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The admin pages' default address, Envoy's under Istio.
pub const DEFAULT_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const DEFAULT_BPFFS: &str = "/sys/fs/bpf";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn definitions_hold_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_istios() {
        let args = Args::parse_from(["mesh-agent", "run", "--config", "mesh.yaml"]);
        let Command::Run(run) = args.command else {
            panic!("not run: {args:?}");
        };
        assert_eq!(run.admin.to_string(), "127.0.0.1:15000");
        assert_eq!(run.readiness.port(), 15021);
        assert_eq!(run.metrics.port(), 15020);
        assert_eq!(run.drain_duration, Duration::from_secs(45));
        assert_eq!(run.parent_shutdown, Duration::from_secs(60));
    }

    #[test]
    fn every_flag_of_run_has_a_variable() {
        let command = Args::command();
        let run = command.find_subcommand("run").expect("run exists");
        for arg in run.get_arguments().filter(|arg| arg.get_id() != "help") {
            let id = arg.get_id().as_str();
            let variable = format!("MESH_{}", id.to_uppercase());
            let env = arg.get_env().and_then(|env| env.to_str());
            assert_eq!(env, Some(variable.as_str()), "--{id}");
        }
    }

    #[test]
    fn a_wrong_log_level_says_what_is_right() {
        let parse = |level| {
            let args = ["mesh-agent", "run", "--config", "x", "--log-level", level];
            Args::try_parse_from(args)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let error = parse("loud").expect_err("not a level");
        assert!(
            error.contains("\"loud\" is not a level; write error"),
            "{error}"
        );
        assert!(parse("info,mesh_agent=loud").is_err());
        assert_eq!(parse("info,mesh_agent::proxy=debug"), Ok(()));
    }

    #[test]
    fn a_wrong_duration_says_what_is_right() {
        let error = Args::try_parse_from([
            "mesh-agent",
            "run",
            "--config",
            "x",
            "--drain-duration",
            "soon",
        ])
        .expect_err("not a duration")
        .to_string();
        assert!(error.contains("1m30s"), "{error}");
    }
}
