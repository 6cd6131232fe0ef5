//! `cargo xtask bench instructions`: how many instructions single steps of the request path take,
//! counted by callgrind, which no other load of the machine changes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh::{cargo, say, which};
use crate::{apt, ebpf};

/// A step runs so often, and then so much more often: the difference is without what is done once.
const FEW: u32 = 100;
const MORE: u32 = 1000;

pub(super) fn run() -> Result<()> {
    if which("valgrind").is_none() {
        apt::ensure(&["valgrind"], "counting instructions")?;
    }
    ebpf::build()?;
    say("the steps, optimised (the first time takes minutes)");
    let program = program()?;
    let listed = Command::new(&program)
        .output()
        .context("cannot start the steps")?;
    ensure!(listed.status.success(), "the steps: {}", listed.status);
    println!("{:<28}{:>16}", "step", "instructions");
    for step in String::from_utf8_lossy(&listed.stdout).lines() {
        let few = count(&program, step, FEW)?;
        let many = count(&program, step, FEW + MORE)?;
        println!("{step:<28}{:>16}", (many - few) / u64::from(MORE));
    }
    Ok(())
}

/// Builds the benchmark and tells where it is.
fn program() -> Result<PathBuf> {
    let output = cargo()
        .args(["bench", "--package=mesh-agent", "--bench=instructions"])
        .args(["--no-run", "--message-format=json"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo bench: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = artifacts
        .filter(|artifact| artifact["target"]["name"] == "instructions")
        .filter_map(|artifact| artifact["executable"].as_str().map(PathBuf::from));
    programs
        .next_back()
        .context("cargo built no program of that name")
}

fn count(program: &Path, step: &str, times: u32) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([step, &times.to_string()])
        .output()
        .context("cannot start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind {step}: {}\n{text}", output.status);
    }
    collected(&text).with_context(|| format!("valgrind said: {text}"))
}

/// The number in `==123== Collected : 456`.
fn collected(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("Collected :")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn callgrind_is_understood() {
        let text = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n";
        assert_eq!(super::collected(text), Some(123_456));
        assert_eq!(super::collected("==7== killed"), None);
    }
}
