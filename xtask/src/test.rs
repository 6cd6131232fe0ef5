//! `cargo xtask test`: everything CI runs.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::sh::{cargo, is_root, run as run_command, say, show, which};
use crate::{apt, ebpf, envoy, golang, kernels, python, workspace};

/// A part of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// rustfmt, clippy, and cargo-deny if it is installed.
    Lint,
    /// Tests inside the crates and in their documentation; no root needed.
    Unit,
    /// Tests on the real kernel, in namespaces of their own; root.
    Kernel,
    /// Tests with other people's programs as peer or oracle (`tests/interop_*.rs`); root.
    Interop,
    /// Tests on Debian's older kernels, in virtual machines; root.
    Kernels,
}

/// Packages whose programs the tests and the demo call.
const TOOLS: [(&str, &str); 8] = [
    // The agent's allocator is C with a makefile.
    ("make", "make"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("h2load", "nghttp2-client"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("tcpdump", "tcpdump"),
    ("wrk", "wrk"),
];

/// Tests counted by cargo test's own summary lines.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Variables that tests are told.
type Env<'a> = &'a [(&'a str, &'a OsStr)];

/// A row of the table at the end.
struct Step {
    name: &'static str,
    time: Duration,
    ok: bool,
    count: Option<Count>,
}

/// Runs a part, or all; a failed step does not keep the next from running.
pub(crate) fn run(part: Option<Part>) -> Result<()> {
    let wanted = |one: Part| part.is_none_or(|part| part == one);
    let skip_log = workspace::target_dir().join("skipped-tests.log");
    std::fs::create_dir_all(workspace::target_dir()).context("cannot make the target folder")?;
    std::fs::write(&skip_log, "").context("cannot write the log of skipped tests")?;
    let mut steps = Vec::new();
    if wanted(Part::Kernel) || wanted(Part::Interop) || wanted(Part::Kernels) {
        step(&mut steps, "prerequisites", || tools().map(|()| None));
    }
    step(&mut steps, "build-ebpf", || ebpf::build().map(|_| None));
    if steps.iter().any(|step| !step.ok) {
        return finish(&steps, &skip_log);
    }
    if wanted(Part::Lint) {
        step(&mut steps, "lint", || lint().map(|()| None));
    }
    if !matches!(part, Some(Part::Lint | Part::Kernels)) {
        step(&mut steps, "compile tests", || {
            run_command(cargo().args(["test", "--workspace", "--no-run"])).map(|()| None)
        });
    }
    let (interop, kernel): (Vec<_>, Vec<_>) = test_targets()?
        .into_iter()
        .partition(|name| name.starts_with("interop"));
    if wanted(Part::Unit) {
        step(&mut steps, "unit", || {
            tests(&["--lib", "--bins"], &[], &skip_log)
        });
        step(&mut steps, "documentation", || {
            tests(&["--doc"], &[], &skip_log)
        });
    }
    if wanted(Part::Kernel) {
        step(&mut steps, "kernel", || targets(&kernel, &[], &skip_log));
    }
    if wanted(Part::Interop) {
        step(&mut steps, "interop", || {
            let envoy = envoy::ensure().unwrap_or_default();
            let python = python::ensure().unwrap_or_default();
            let control_plane = golang::control_plane().unwrap_or_default();
            let istiod = golang::istiod().unwrap_or_default();
            let protocols = golang::protocols().unwrap_or_default();
            let peers = [
                ("ENVOY_BIN", envoy.as_os_str()),
                ("MESH_PYTHON", python.as_os_str()),
                ("MESH_GO_CONTROL_PLANE", control_plane.as_os_str()),
                ("MESH_ISTIOD", istiod.as_os_str()),
                ("MESH_PROTOCOLS", protocols.as_os_str()),
            ];
            targets(&interop, &peers, &skip_log)
        });
    }
    if wanted(Part::Kernels) {
        step(&mut steps, "older kernels", || {
            if !is_root() && part.is_none() {
                return Ok(None);
            }
            let mut count = Count::default();
            kernels::run(|line| {
                count.add(line);
                println!("{line}");
            })?;
            Ok(Some(count))
        });
    }
    finish(&steps, &skip_log)
}

fn step(steps: &mut Vec<Step>, name: &'static str, work: impl FnOnce() -> Result<Option<Count>>) {
    say(name);
    let start = Instant::now();
    let result = work();
    if let Err(error) = &result {
        eprintln!("error: {name}: {error:#}");
    }
    let count = result.as_ref().ok().copied().flatten();
    let ok = result.is_ok() && count.is_none_or(|count| count.failed == 0);
    steps.push(Step {
        name,
        time: start.elapsed(),
        ok,
        count,
    });
}

/// The table, and what decides.
fn finish(steps: &[Step], skip_log: &Path) -> Result<()> {
    let skipped = std::fs::read_to_string(skip_log).unwrap_or_default();
    let skipped: Vec<&str> = skipped.lines().collect();
    println!("\n{:<16} {:<7} {:>9}  tests", "step", "result", "time");
    for step in steps {
        let result = if step.ok { "ok" } else { "FAILED" };
        let tests = step.count.map_or(String::new(), |count| {
            format!(
                "{} passed, {} failed, {} ignored",
                count.passed, count.failed, count.ignored
            )
        });
        println!(
            "{:<16} {result:<7} {:>8.1}s  {tests}",
            step.name,
            step.time.as_secs_f64()
        );
    }
    let total: Duration = steps.iter().map(|step| step.time).sum();
    println!("{:<16} {:<7} {:>8.1}s", "all", "", total.as_secs_f64());
    if !skipped.is_empty() {
        println!("{} tests counted as passed were SKIPPED:", skipped.len());
        skipped.iter().for_each(|line| println!("  {line}"));
    }
    let failed: Vec<&str> = steps
        .iter()
        .filter(|step| !step.ok)
        .map(|step| step.name)
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if !skipped.is_empty() && std::env::var("CI").is_ok_and(|ci| ci == "true") {
        bail!("tests were skipped, and CI has to run them all");
    }
    Ok(())
}

/// Programs that tests call.
fn tools() -> Result<()> {
    if !is_root() {
        say(
            "not root: tests on the kernel are skipped; type: sudo -E env PATH=\"$PATH\" cargo xtask test",
        );
    }
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    apt::ensure(&missing, "testing")
}

fn lint() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    run_command(
        cargo()
            .args(["fmt", "--check"])
            .current_dir(workspace::root().join("mesh-ebpf")),
    )?;
    run_command(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    if which("cargo-deny").is_some() {
        // Advisories change without us; they have a job of their own.
        run_command(cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    } else {
        say("cargo-deny is not installed: licences and duplicates are not checked");
    }
    Ok(())
}

/// Names of all integration tests of the workspace.
fn test_targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for member in std::fs::read_dir(workspace::root())? {
        let Ok(files) = std::fs::read_dir(member?.path().join("tests")) else {
            continue;
        };
        for file in files {
            names.extend(target_name(&file?.path()));
        }
    }
    names.sort();
    Ok(names)
}

/// `tests/NAME.rs` and `tests/NAME/main.rs` are test targets.
fn target_name(path: &Path) -> Option<String> {
    let source = path.extension().is_some_and(|extension| extension == "rs");
    (source || path.join("main.rs").is_file())
        .then(|| {
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
        })
        .flatten()
}

fn targets(names: &[String], env: Env<'_>, skip_log: &Path) -> Result<Option<Count>> {
    if names.is_empty() {
        say("none");
        return Ok(Some(Count::default()));
    }
    let args: Vec<&str> = names
        .iter()
        .flat_map(|name| ["--test", name.as_str()])
        .collect();
    tests(&args, env, skip_log)
}

/// cargo test with its output passed on as it comes, counted on the way.
fn tests(args: &[&str], env: Env<'_>, skip_log: &Path) -> Result<Option<Count>> {
    let program = |name: &str| -> PathBuf { workspace::target_dir().join("debug").join(name) };
    let mut command: Command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(args)
        .envs(env.iter().copied())
        .env("MESH_SKIP_LOG", skip_log)
        .env("MESH_TESTBED_BIN", program("mesh-testbed"))
        .env("MESH_AGENT_BIN", program("mesh-agent"))
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", show(&command)))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut count = Count::default();
    let mut terminal = std::io::stdout().lock();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what cargo says")?;
        count.add(&String::from_utf8_lossy(&line));
        terminal.write_all(&line)?;
        terminal.write_all(b"\n")?;
    }
    drop(terminal);
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() && count.failed == 0 {
        bail!("{} failed: {status}", show(&command));
    }
    Ok(Some(count))
}

impl Count {
    /// Adds a line `test result: ok. 4 passed; 0 failed; 0 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, numbers)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in numbers.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_added_up() {
        let mut count = Count::default();
        for line in [
            "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test a::b ... ok",
            "test result: FAILED. 6 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.5s",
        ] {
            count.add(line);
        }
        assert_eq!(
            count,
            Count {
                passed: 10,
                failed: 2,
                ignored: 1
            }
        );
    }

    #[test]
    fn the_testbeds_own_tests_are_found() {
        let targets = test_targets().unwrap();
        assert!(targets.contains(&"testbed".to_owned()), "{targets:?}");
        assert!(targets.contains(&"helper".to_owned()), "{targets:?}");
    }
}
