//! Programs and libraries from PyPI, for interop tests, put into the target folder.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt;
use crate::sh::which;

/// `python3 -m pip`, installed if it is missing.
pub(crate) fn pip(what_for: &str) -> Result<Command> {
    if which("python3").is_none() {
        apt::ensure(&["python3", "python3-pip"], what_for)?;
    }
    let pip = || {
        let mut command = Command::new("python3");
        command.args(["-m", "pip"]);
        command
    };
    let there = pip().arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        apt::ensure(&["python3-pip"], what_for)?;
    }
    Ok(pip())
}

/// Fills a folder beside `place` and renames it, so that what is interrupted leaves nothing half
/// done.
pub(crate) fn whole(place: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = place.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part).context("cannot remove a half-done fetch")?;
    }
    std::fs::create_dir_all(&part).context("cannot make the folder of tools")?;
    fill(&part)?;
    std::fs::rename(&part, place).with_context(|| format!("cannot move to {}", place.display()))
}
