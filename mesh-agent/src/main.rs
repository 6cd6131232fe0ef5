//! `mesh-agent`: the node agent. `mesh-agent --help` explains its commands.

mod allocator;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use mesh_agent::agent;
use mesh_agent::cli::args::{LogFormat, RunArgs};
use mesh_agent::cli::{Args, Command, certs, doctor, status, uninstall};
use mesh_agent::source::file;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => {
            start_logging(&args);
            raise_open_files();
            agent::run(&args)
        }
        Command::Validate(args) => match file::load(&args.config, None) {
            Ok(loaded) => {
                let resources = &loaded.resources;
                println!(
                    "right: {} listeners, {} route configurations, {} clusters, {} workloads",
                    resources.listeners.len(),
                    resources.routes.len(),
                    resources.clusters.len(),
                    loaded.node.workloads.len()
                );
                Ok(())
            }
            Err(errors) => {
                eprintln!("{errors}");
                return ExitCode::FAILURE;
            }
        },
        Command::Status(args) => status::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Doctor(args) => {
            return if doctor::run(&args) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        Command::Uninstall(args) => uninstall::run(&args),
        Command::Version => {
            println!("mesh-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Every connection is two files: as many as the system grants are better than the few that a
/// shell hands down.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
}

fn start_logging(args: &RunArgs) {
    let filter = EnvFilter::try_new(&args.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}
