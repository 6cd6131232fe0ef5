//! `mesh-testbed bench`: the mesh beside no mesh and beside Envoy, on the same machine in the same
//! run. Called by `cargo xtask bench`, which builds everything as it is released.

mod chart;
mod config;
mod cpu;
mod envoy;
mod hooks;
mod load;
mod measure;
mod mtls;
mod path;
mod pods;
mod report;
mod scale;
mod servers;
mod stage;
mod stats;
mod syscalls;
mod waits;
mod world;
mod xds;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args as ClapArgs, Subcommand};
use mesh_testbed::{Envoy, is_root};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use measure::Plan;
use path::{Asked, Ground, Path};
use stage::{Stage, System};

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// What to measure; everything if none is named. `mtls` is every path over mutual TLS.
    #[arg(value_parser = path::asked, value_name = "PATH")]
    paths: Vec<Asked>,
    /// One second a measurement, three times, about three minutes for all paths.
    #[arg(long)]
    quick: bool,
    /// Write the results to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the configurations that are compared, and every single measurement.
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// A large mesh over delta ADS: ten thousand services.
    Xds(xds::Args),
    /// What every kernel program costs.
    Hooks(hooks::Args),
    /// What grows with the mesh, and what does not.
    Scale(scale::Args),
    /// System calls that a proxy makes for a request.
    Syscalls(syscalls::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("the benchmark makes namespaces and loads kernel programs: run it as root");
    }
    match &args.other {
        Some(Other::Xds(args)) => return xds::run(args),
        Some(Other::Hooks(args)) => return hooks::run(args),
        Some(Other::Scale(_) | Other::Syscalls(_)) | None => {}
    }
    many_files()?;
    if let Some(Other::Scale(args)) = &args.other {
        return scale::run(args);
    }
    if Envoy::program().is_none() {
        bail!("no Envoy to compare with; type: cargo xtask bench, or name one with ENVOY_BIN");
    }
    if let Some(Other::Syscalls(args)) = &args.other {
        return syscalls::run(args);
    }
    let asked = args.paths.iter().flat_map(|asked| &asked.0);
    let mut paths: Vec<Path> = asked.copied().collect();
    if paths.is_empty() {
        paths = Path::all().to_vec();
    }
    let plan = if args.quick {
        Plan::quick()
    } else {
        Plan::thorough()
    };
    let mut rows = Vec::new();
    let (mut noise, mut failures) = (Vec::new(), Vec::new());
    // Servers of paths over mutual TLS take nothing in the clear, so they stand apart.
    for ground in Ground::ALL {
        let paths: Vec<Path> = paths
            .iter()
            .copied()
            .filter(|path| path.ground() == ground)
            .collect();
        if paths.is_empty() {
            continue;
        }
        let systems = System::ALL.into_iter().filter(|system| {
            let mut paths = paths.iter();
            paths.any(|path| path.ours() == *system || path.references().contains(system))
        });
        let stages = systems
            .map(|system| Stage::set(system, ground, args.verbose))
            .collect::<Result<Vec<_>>>()?;
        for path in paths {
            let measured = measure::path(path, &stages, plan, args.verbose)
                .with_context(|| format!("{} cannot be measured", path.name()))?;
            report::print(&measured.rows);
            rows.extend(measured.rows);
            noise.extend(measured.noise);
            failures.extend(measured.failures);
        }
    }
    report::print_noise(&noise);
    report::print_failures(&failures);
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(file, text + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &args.svg {
        std::fs::write(file, chart::draw(&rows))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Ten thousand connections need more descriptors than a shell allows. Children inherit it.
fn many_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}
