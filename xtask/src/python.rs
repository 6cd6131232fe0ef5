//! Peers written in Python: gRPC's own library, WebSocket, HTTP/2 for HBONE.

use std::path::PathBuf;

use anyhow::Result;

use crate::pip::{pip, whole};
use crate::sh::{run, say};
use crate::workspace;

/// What the tests import.
const PACKAGES: [&str; 3] = ["grpcio==1.76.0", "websockets==15.0.1", "h2==4.3.0"];

/// The folder for PYTHONPATH; `None`, with a line that says why, if it cannot be filled.
pub(crate) fn ensure() -> Option<PathBuf> {
    let named = std::env::var_os("MESH_PYTHON").filter(|path| !path.is_empty());
    if let Some(path) = named {
        return Some(path.into());
    }
    // Another choice of packages is another folder.
    let place = workspace::target_dir()
        .join("tools")
        .join(format!("python-{}", PACKAGES.join("-").replace("==", "_")));
    if place.is_dir() {
        return Some(place);
    }
    match fetch(&place) {
        Ok(()) => Some(place),
        Err(error) => {
            say(&format!(
                "no Python packages, the tests with them are skipped: {error:#}; MESH_PYTHON names a folder with grpcio, websockets and h2"
            ));
            None
        }
    }
}

fn fetch(place: &std::path::Path) -> Result<()> {
    let mut pip = pip("Python peers of the tests")?;
    say(&format!("{} from PyPI", PACKAGES.join(", ")));
    whole(place, |part| {
        run(pip
            .args(["install", "--quiet", "--only-binary=:all:", "--target"])
            .arg(part)
            .args(PACKAGES))
    })
}
