//! `cargo xtask bench`: builds everything as it is released and hands over to `mesh-testbed bench`,
//! which has the pods.

mod instructions;

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;

use crate::sh::{cargo, is_root, run as run_command, say, which};
use crate::{apt, ebpf, envoy, workspace};

/// Packages whose programs make the load, and lead Envoy's traffic to it.
const TOOLS: [(&str, &str); 9] = [
    // The agent's allocator is C with a makefile.
    ("make", "make"),
    ("ip", "iproute2"),
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("iperf3", "iperf3"),
    ("sockperf", "sockperf"),
    ("iptables", "iptables"),
    ("strace", "strace"),
];

/// Flags of the benchmark.
#[derive(Debug, ClapArgs)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// What `mesh-testbed bench` understands: try --help. `micro` measures single steps instead,
    /// and takes what criterion understands; `instructions` counts theirs under callgrind.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(("micro", criterion)) = args
        .args
        .split_first()
        .map(|(first, rest)| (&**first, rest))
    {
        return micro(criterion);
    }
    if args
        .args
        .first()
        .is_some_and(|first| first == "instructions")
    {
        return instructions::run();
    }
    if !is_root() {
        bail!(
            "the benchmark makes network namespaces and loads kernel programs; \
             type: sudo -E env PATH=\"$PATH\" cargo xtask bench"
        );
    }
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    apt::ensure(&missing, "the benchmark")?;
    ebpf::build()?;
    say("mesh-agent and the testbed, release (the first time takes minutes)");
    run_command(cargo().args([
        "build",
        "--release",
        "--package=mesh-agent",
        "--package=mesh-testbed",
        "--bins",
    ]))?;
    let envoy = envoy::ensure().context("the benchmark compares with Envoy")?;
    let programs = workspace::target_dir().join("release");
    run_command(
        Command::new(programs.join("mesh-testbed"))
            .arg("bench")
            .args(&args.args)
            .env("MESH_AGENT_BIN", programs.join("mesh-agent"))
            .env("MESH_TESTBED_BIN", programs.join("mesh-testbed"))
            .env("ENVOY_BIN", envoy),
    )
}

/// Single steps of the data plane, by criterion; needs no root.
fn micro(args: &[String]) -> Result<()> {
    ebpf::build()?;
    say("the benchmarks of single steps, optimised (the first time takes minutes)");
    run_command(
        cargo()
            .args(["bench", "--package=mesh-agent", "--bench=micro", "--"])
            .args(args),
    )
}
