//! `--keep` and `--clean`: this process stays in the background and holds everything.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh_testbed::eventually;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{Pid, setsid};

use super::interrupt::interrupted;
use super::scene::Scene;

/// Holds the pid of the demo that was kept.
const PID_FILE: &str = "/run/mesh-testbed/demo.pid";

/// One kept demo at a time, so that `--clean` knows which.
pub(super) fn refuse_second() -> Result<()> {
    match kept() {
        Some(pid) => bail!("a demo is kept already (pid {pid}); type: cargo xtask demo --clean"),
        None => Ok(()),
    }
}

/// Says how to play, lets go of the terminal and waits for `--clean`.
pub(super) fn hold(scene: &Scene, scripts: &Path) -> Result<()> {
    let script = write_script(scene, scripts)?;
    let (agent, script) = (scene.agent()?, script.display());
    let (reviews, ledger) = (scene.reviews_vip(), scene.ledger_vip());
    let admin = agent.admin();
    println!(
        "\nEverything keeps running. Try:\n  \
         {script} client curl http://{reviews}/\n  \
         {script} client curl -H 'end-user: jason' http://{reviews}/\n  \
         {script} client nc {ledger_ip} {ledger_port}\n  \
         {script} outsider curl http://{reviews}/          # not enrolled: no route\n  \
         {editor} {config}          # taken up when saved\n  \
         curl http://{admin}/workloads          # also /listeners /clusters /config_dump\n\
         Remove it with: cargo xtask demo --clean",
        ledger_ip = ledger.ip(),
        ledger_port = ledger.port(),
        editor = std::env::var("EDITOR").unwrap_or_else(|_| "vi".to_owned()),
        config = agent.config_path().display(),
    );
    std::fs::write(PID_FILE, std::process::id().to_string())
        .with_context(|| format!("cannot write {PID_FILE}"))?;
    background(scripts)?;
    // SIGTERM wakes us through `interrupt::guarded`, which removes everything.
    while !interrupted() {
        std::thread::park();
    }
    Ok(())
}

/// Ends the kept demo and waits until it is gone.
pub(super) fn clean() -> Result<()> {
    let Some(pid) = kept() else {
        println!("no demo is running");
        return Ok(());
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("cannot stop {pid}"))?;
    eventually("the kept demo ends", Duration::from_secs(30), || {
        kept().is_none()
    })?;
    println!("the demo is removed");
    Ok(())
}

/// The pid in the file, if it is that of a demo: pids are used again.
fn kept() -> Option<i32> {
    let pid: i32 = std::fs::read_to_string(PID_FILE).ok()?.parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    words.contains(&b"demo".as_slice()).then_some(pid)
}

/// Leaves the terminal's session; its output goes to a file.
fn background(scripts: &Path) -> Result<()> {
    let log = std::fs::File::create(scripts.join("log")).context("cannot make the log")?;
    // SAFETY: no handler of ours runs.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }.context("cannot ignore SIGHUP")?;
    // It fails only for the leader of a process group, which has no terminal to lose.
    let _ = setsid();
    nix::unistd::dup2_stdout(&log).context("cannot redirect the output")?;
    nix::unistd::dup2_stderr(&log).context("cannot redirect the output")
}

/// A script that runs a command in a pod: its cgroup and its namespace.
fn write_script(scene: &Scene, scripts: &Path) -> Result<PathBuf> {
    let path = scripts.join("in-pod");
    let text = format!(
        "#!/bin/sh\n\
         # in-pod POD COMMAND...: runs a command in a pod of the demo.\n\
         set -e\n\
         pod=$1; shift\n\
         echo $$ > {}/\"$pod\"/cgroup.procs\n\
         exec nsenter --net=/var/run/netns/{}-\"$pod\" \"$@\"\n",
        scene.testbed.cgroup().display(),
        scene.name(),
    );
    std::fs::create_dir_all(scripts).context("cannot make the folder of scripts")?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, executable).context("cannot make the script executable")?;
    Ok(path)
}
