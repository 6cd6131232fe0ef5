//! Where the programs of this workspace are.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// The helper program.
pub(crate) fn helper() -> Result<PathBuf> {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    once(&PATH, "MESH_TESTBED_BIN", "mesh-testbed")
}

/// The agent.
pub(crate) fn agent() -> Result<PathBuf> {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    once(&PATH, "MESH_AGENT_BIN", "mesh-agent")
}

fn once(cell: &OnceLock<PathBuf>, variable: &str, name: &str) -> Result<PathBuf> {
    match cell.get() {
        Some(path) => Ok(path.clone()),
        None => {
            let found = find(variable, name)?;
            Ok(cell.get_or_init(|| found).clone())
        }
    }
}

/// The variable, else beside the running test, else built. Cargo tells an integration test only
/// of its own package's programs.
fn find(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable} names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    let test = std::env::current_exe().context("cannot find the running program")?;
    // TARGET/debug/deps/TEST-HASH, or TARGET/debug/PROGRAM.
    let beside = test.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    if let Some(path) = beside.clone().find(|path| path.is_file()) {
        return Ok(path);
    }
    eprintln!("testbed: building {name}");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", name, "--bin", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot start cargo")?;
    beside
        .into_iter()
        .find(|path| status.success() && path.is_file())
        .with_context(|| format!("cannot build {name}; type: cargo build -p {name}"))
}
