//! Machines and invocations on which the agent cannot run: named, with the fix.

use std::net::TcpListener;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use mesh_testbed::{NODE_CGROUP_AGENT, Testbed, needs_root};

fn config() -> Result<tempfile::NamedTempFile> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), "static_resources: {}\n")?;
    Ok(file)
}

/// Runs `mesh-agent run` with these arguments by way of a wrapper, and expects it to end at once.
fn run(wrapper: &[&str], args: &[&str]) -> Result<Output> {
    let config = config()?;
    let program = env!("CARGO_BIN_EXE_mesh-agent");
    let mut words = wrapper.iter().copied().chain([program]);
    let mut command = Command::new(words.next().unwrap_or(program));
    command
        .args(words)
        .args(["run", "--config"])
        .arg(config.path())
        .args([
            "--admin",
            "127.0.0.1:0",
            "--readiness",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
        ])
        .args(args);
    command.output().context("cannot start it")
}

/// It failed, and said all of this.
fn says(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn without_root_it_says_so() -> Result<()> {
    needs_root!(Ok(()));
    // The program may lie in a folder that only root can enter.
    let copy = tempfile::tempdir()?;
    let program = copy.path().join("mesh-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_mesh-agent"), &program)?;
    let config = config()?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(copy.path(), open)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(config.path(), open)?;
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&program)
        .args(["run", "--config"])
        .arg(config.path())
        .output()?;
    says(&output, &["must run as root"]);
    Ok(())
}

#[test]
fn a_directory_that_is_no_cgroup_is_named_with_the_mount() -> Result<()> {
    needs_root!(Ok(()));
    says(
        &run(&[], &["--cgroup", "/tmp"])?,
        &[
            "/tmp is not a cgroup v2 directory",
            "cgroup v2 is mounted on",
        ],
    );
    says(
        &run(&[], &["--cgroup", "/sys/fs/cgroup/nowhere"])?,
        &["/sys/fs/cgroup/nowhere", "No such file", "kubepods.slice"],
    );
    Ok(())
}

#[test]
fn without_cgroup_v2_the_mount_command_is_told() -> Result<()> {
    needs_root!(Ok(()));
    // A mount namespace of its own, from which every cgroup v2 mount is taken.
    let script = "for m in $(awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo); do umount -l $m; done; exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    says(
        &run(&wrapper, &[])?,
        &["cgroup v2 is not mounted", "mount -t cgroup2"],
    );
    Ok(())
}

#[test]
fn an_agent_among_its_pods_would_catch_itself() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let own = testbed.cgroup().join(NODE_CGROUP_AGENT);
    let script = "echo $$ > \"$0/cgroup.procs\"; exec \"$@\"";
    let own = own.display().to_string();
    says(
        &run(&["sh", "-c", script, &own], &["--cgroup", &own])?,
        &["the agent runs in", "a cgroup of its own"],
    );
    Ok(())
}

#[test]
fn a_taken_port_of_the_node_is_named() -> Result<()> {
    needs_root!(Ok(()));
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    for flag in ["--admin", "--readiness", "--metrics"] {
        let config = config()?;
        let others: Vec<&str> = ["--admin", "--readiness", "--metrics"]
            .into_iter()
            .filter(|other| *other != flag)
            .flat_map(|other| [other, "127.0.0.1:0"])
            .collect();
        let output = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
            .args(["run", "--config"])
            .arg(config.path())
            .args(others)
            .args([flag, &address])
            .output()?;
        says(&output, &[&address, "in use", flag]);
    }
    Ok(())
}

#[test]
fn wrong_flags_say_what_is_right() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
        .args(["run", "--config", "/nowhere.yaml"])
        .output()?;
    says(&output, &["/nowhere.yaml", "cannot be read"]);
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-agent"))
        .args(["run", "--config", "x", "--log-level", "loud"])
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("\"loud\" is not a level"));
    Ok(())
}
