//! Peers written in Go, built once into the target folder.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::sh::{run, say, which};
use crate::workspace;

/// The management server on go-control-plane; `None`, with a line that says why, if it cannot be
/// built.
pub(crate) fn control_plane() -> Option<PathBuf> {
    let named = std::env::var_os("MESH_GO_CONTROL_PLANE").filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Some(path.into());
    }
    if which("go").is_none() {
        say("no Go, the tests with go-control-plane are skipped; type: apt-get install golang");
        return None;
    }
    match build() {
        Ok(program) => Some(program),
        Err(error) => {
            say(&format!(
                "go-control-plane cannot be built, its tests are skipped: {error:#}"
            ));
            None
        }
    }
}

fn build() -> Result<PathBuf> {
    let program = workspace::target_dir().join("tools/go-control-plane");
    if !program.is_file() {
        say("go-control-plane from the Go module proxy (the first time takes a minute)");
    }
    run(Command::new("go")
        .current_dir(workspace::root().join("mesh-testbed/interop"))
        .args(["build", "-o"])
        .arg(&program)
        .arg("."))?;
    Ok(program)
}
