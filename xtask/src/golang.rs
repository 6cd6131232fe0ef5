//! Peers written in Go, built once into the target folder.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::sh::{run, say, which};
use crate::workspace;

/// A program that tests talk to.
struct Program {
    /// Its file below `tools/`, and what people call it.
    name: &'static str,
    /// Names one that was built elsewhere.
    variable: &'static str,
    /// Its module below `mesh-testbed/interop`.
    module: &'static str,
    /// How long the first build takes.
    takes: &'static str,
}

/// The management server on go-control-plane; `None`, with a line that says why, if it cannot be
/// built.
pub(crate) fn control_plane() -> Option<PathBuf> {
    find(&Program {
        name: "go-control-plane",
        variable: "MESH_GO_CONTROL_PLANE",
        module: "",
        takes: "a minute",
    })
}

/// Istio's discovery server; likewise.
pub(crate) fn istiod() -> Option<PathBuf> {
    find(&Program {
        name: "istiod",
        variable: "MESH_ISTIOD",
        module: "istiod",
        takes: "five minutes and 3 GB",
    })
}

/// h2spec and gRPC's interop programs; likewise.
pub(crate) fn protocols() -> Option<PathBuf> {
    find(&Program {
        name: "protocols",
        variable: "MESH_PROTOCOLS",
        module: "protocols",
        takes: "a minute",
    })
}

fn find(program: &Program) -> Option<PathBuf> {
    let named = std::env::var_os(program.variable).filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Some(path.into());
    }
    let name = program.name;
    if which("go").is_none() {
        say(&format!(
            "no Go, the tests with {name} are skipped; type: apt-get install golang"
        ));
        return None;
    }
    match build(program) {
        Ok(path) => Some(path),
        Err(error) => {
            say(&format!(
                "{name} cannot be built, its tests are skipped: {error:#}"
            ));
            None
        }
    }
}

fn build(program: &Program) -> Result<PathBuf> {
    let path = workspace::target_dir().join("tools").join(program.name);
    if !path.is_file() {
        say(&format!(
            "{} from the Go module proxy (the first time takes {})",
            program.name, program.takes
        ));
    }
    run(Command::new("go")
        .current_dir(
            workspace::root()
                .join("mesh-testbed/interop")
                .join(program.module),
        )
        .args(["build", "-buildvcs=false", "-ldflags", "-s -w", "-o"])
        .arg(&path)
        .arg("."))?;
    Ok(path)
}
