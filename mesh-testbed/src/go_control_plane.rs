//! A management server on the go-control-plane library, which nobody of this project wrote.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::loopback;
use crate::page::send;
use crate::process::Process;

/// A running server. Ends when dropped.
#[derive(Debug)]
pub struct GoControlPlane {
    process: Option<Process>,
    ready: Ready,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Ready {
    listening: SocketAddr,
    control: SocketAddr,
}

impl GoControlPlane {
    /// The program (`cargo xtask test interop` builds it), unless there is none.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("MESH_GO_CONTROL_PLANE").filter(|path| !path.is_empty())?;
        Some(path.into())
    }

    /// Starts it on free ports of loopback.
    ///
    /// # Errors
    /// There is no program.
    pub fn start() -> Result<Self> {
        let (process, ready) = spawn(loopback::socket()?, loopback::socket()?)?;
        Ok(Self {
            process: Some(process),
            ready,
        })
    }

    /// Where xDS is served.
    pub fn address(&self) -> SocketAddr {
        self.ready.listening
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it again at the same address. It knows nothing any more.
    ///
    /// # Errors
    /// Another took the port.
    pub fn resume(&mut self) -> Result<()> {
        let (process, ready) = spawn(self.ready.listening, self.ready.control)?;
        self.process = Some(process);
        self.ready = ready;
        Ok(())
    }

    /// Replaces everything a node is sent: resources that say their `@type`.
    ///
    /// # Errors
    /// The library refuses them.
    pub fn put(&self, node: &str, version: &str, resources: &[Value]) -> Result<()> {
        let body = json!({ "version": version, "resources": resources }).to_string();
        let path = format!("/snapshot?node={node}");
        let page = send(self.ready.control, "PUT", &path, &body)?;
        ensure!(page.status == 200, "go-control-plane: {}", page.body);
        Ok(())
    }

    /// Every request it got.
    ///
    /// # Errors
    /// It does not answer.
    pub fn log(&self) -> Result<Vec<Value>> {
        let page = send(self.ready.control, "GET", "/log", "")?;
        let log: Option<Vec<Value>> = serde_json::from_str(&page.body)?;
        Ok(log.unwrap_or_default())
    }
}

fn spawn(xds: SocketAddr, control: SocketAddr) -> Result<(Process, Ready)> {
    let program =
        GoControlPlane::program().context("no go-control-plane; type: cargo xtask test interop")?;
    let mut command = Command::new(program);
    command.args(["-xds", &xds.to_string(), "-control", &control.to_string()]);
    let mut process = Process::spawn(command)?;
    let ready = process.read()?;
    Ok((process, ready))
}
