//! `cargo xtask demo`: builds everything and hands over to `mesh-testbed demo`, which has the
//! pods, so that the other commands need not compile them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;

use crate::sh::{cargo, is_root, run as run_command, say, which};
use crate::{apt, ebpf, workspace};

/// Flags of the demo.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Leave everything running and print commands to play with.
    #[arg(long)]
    keep: bool,
    /// Remove what `--keep` left running.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the demo makes network namespaces and loads kernel programs; \
             type: sudo -E env PATH=\"$PATH\" cargo xtask demo"
        );
    }
    let mut missing: Vec<&str> = [("ip", "iproute2"), ("curl", "curl"), ("make", "make")]
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if which("nft").is_none() && which("apt-get").is_some() {
        // To show that there is no rule.
        missing.push("nftables");
    }
    apt::ensure(&missing, "the demo")?;
    ebpf::build()?;
    say("mesh-agent and the testbed (the first time takes minutes)");
    run_command(cargo().args([
        "build",
        "--package=mesh-agent",
        "--package=mesh-testbed",
        "--bins",
    ]))?;
    let programs = workspace::target_dir().join("debug");
    let mut demo = Command::new(programs.join("mesh-testbed"));
    demo.arg("demo")
        .env("MESH_AGENT_BIN", programs.join("mesh-agent"));
    demo.arg("--scripts")
        .arg(workspace::target_dir().join("demo"));
    if args.keep {
        demo.arg("--keep");
    }
    if args.clean {
        demo.arg("--clean");
    }
    // Ctrl-C is the demo's to handle; we wait until it has cleaned up.
    // SAFETY: no other thread runs, and ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    // A pipe, because a demo that is kept lets go of its output and stays.
    let mut child = demo
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the demo")?;
    if let Some(mut stdout) = child.stdout.take() {
        std::io::copy(&mut stdout, &mut std::io::stdout()).context("cannot pass on the output")?;
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if args.keep && Instant::now() > deadline => return Ok(()),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(130) => std::process::exit(130),
        _ => bail!("the demo failed: {status}"),
    }
}
