//! Tests on Debian's older kernels, in virtual machines: `cargo xtask test kernels`.
//!
//! The kernels are downloaded and unpacked, never installed. A machine has no disk: everything it
//! runs is in its initramfs, under the same paths as here - the tests as they were built, the
//! agent, `ip`, and the libraries all of them need. Its first process is `mesh-testbed init`.

mod cpio;
mod debian;
mod image;
mod machine;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::sh::{cargo, is_root, say, show};
use crate::{apt, workspace};

/// Debian's kernels: of bookworm, and of trixie, which bookworm has as a backport.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Tests that run there, with what else they are told: of every program, and of the agent with
/// them. Those that count on speed are left out, for most machines in machines are emulated.
const TESTS: [(&str, &str); 5] = [
    ("programs", "--skip limits::no_"),
    ("restart", "--skip never_fail"),
    ("limits", ""),
    ("authz", ""),
    ("telemetry", ""),
];

/// Packages that are installed here.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "xz-utils"];

/// Runs the tests on every kernel and passes on what the machines say, line by line.
///
/// # Errors
/// A kernel cannot be had or started, or a machine did not run everything.
pub(crate) fn run(mut line: impl FnMut(&str)) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("older kernels are only tested on x86-64");
    }
    if !is_root() {
        bail!(
            "packages are unpacked and device nodes packed as root; type: sudo cargo xtask test kernels"
        );
    }
    apt::ensure(&PACKAGES, "testing older kernels")?;
    let tests = build()?;
    let mut failed = Vec::new();
    for version in KERNELS {
        let kernel = debian::fetch(version)?;
        say(&format!("{} in a virtual machine", kernel.release));
        let initramfs = image::pack(&kernel, &tests)?;
        match machine::run(&kernel.image, &initramfs, &mut line) {
            Ok(()) => {}
            Err(error) => failed.push(format!("{}: {error:#}", kernel.release)),
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// Where downloads and images go.
fn dir() -> PathBuf {
    workspace::target_dir().join("kernels")
}

/// A test program and its arguments.
struct Test {
    program: PathBuf,
    args: &'static str,
}

/// Builds the tests and both programs.
fn build() -> Result<Vec<Test>> {
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-run"])
        .args(TESTS.iter().flat_map(|(name, _)| ["--test", name]))
        .stderr(Stdio::piped());
    let output = command
        .output()
        .with_context(|| format!("cannot start `{}`", show(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{}` failed: {said}", show(&command));
    }
    TESTS
        .into_iter()
        .map(|(name, args)| {
            let program = executable(&said, name)
                .with_context(|| format!("cargo does not say where the test {name} is"))?;
            let program = workspace::root().join(program);
            Ok(Test { program, args })
        })
        .collect()
}

/// `  Executable tests/limits.rs (target/debug/deps/limits-0123456789abcdef)`
fn executable<'a>(said: &'a str, name: &str) -> Option<&'a Path> {
    said.lines().find_map(|line| {
        let (source, program) = line
            .trim()
            .strip_prefix("Executable ")?
            .strip_suffix(')')?
            .split_once(" (")?;
        let source = source.strip_prefix("tests/")?;
        let found = source
            .strip_suffix("/main.rs")
            .or(source.strip_suffix(".rs"))?;
        (found == name).then(|| Path::new(program))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_tests_are() {
        let said = "   Compiling mesh-agent v0.1.0\n\
             \x20 Executable tests/limits.rs (target/debug/deps/limits-01)\n\
             \x20 Executable tests/programs/main.rs (/elsewhere/debug/deps/programs-02)\n";
        assert_eq!(
            executable(said, "limits"),
            Some(Path::new("target/debug/deps/limits-01"))
        );
        assert_eq!(
            executable(said, "programs"),
            Some(Path::new("/elsewhere/debug/deps/programs-02"))
        );
        assert_eq!(executable(said, "chaos"), None);
    }
}
