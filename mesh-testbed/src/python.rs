//! Peers written in Python: gRPC's own library and a WebSocket one, which nobody of this project
//! wrote. The scripts around them are in `py/`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Pod;
use crate::process::Process;
use crate::wire::Ready;

/// A running script. Ends when dropped.
#[derive(Debug)]
pub struct Python {
    process: Process,
}

impl Python {
    /// The folder with the libraries (`cargo xtask test interop` fills one), unless there is
    /// none.
    pub fn libraries() -> Option<PathBuf> {
        let path = std::env::var_os("MESH_PYTHON").filter(|path| !path.is_empty())?;
        Some(path.into())
    }

    /// A gRPC server with a service of every kind of call. Returns it and its port.
    ///
    /// # Errors
    /// Python or the library is missing.
    pub fn grpc_server(pod: &Pod) -> Result<(Self, u16)> {
        Self::server(pod, include_str!("../py/grpc_server.py"))
    }

    /// A WebSocket server that sends back what it gets. Returns it and its port.
    ///
    /// # Errors
    /// As [`Self::grpc_server`].
    pub fn websocket_server(pod: &Pod) -> Result<(Self, u16)> {
        Self::server(pod, include_str!("../py/websocket_server.py"))
    }

    /// Makes every kind of gRPC call and tells what came of each.
    ///
    /// # Errors
    /// As [`Self::grpc_server`], or it says something else.
    pub fn grpc_client<T: DeserializeOwned>(pod: &Pod, target: &str) -> Result<T> {
        Self::start(pod, include_str!("../py/grpc_client.py"), &[target])?.read()
    }

    /// Talks over a WebSocket and tells what came of it.
    ///
    /// # Errors
    /// As [`Self::grpc_client`].
    pub fn websocket_client<T: DeserializeOwned>(pod: &Pod, url: &str) -> Result<T> {
        Self::start(pod, include_str!("../py/websocket_client.py"), &[url])?.read()
    }

    /// An HBONE client: one tunnel, made as `spec` says. Its first answer tells what came of the
    /// handshake; [`Self::ask`] for the rest.
    ///
    /// # Errors
    /// As [`Self::grpc_server`].
    pub fn hbone_client(pod: &Pod, spec: &Value) -> Result<(Self, Value)> {
        let script = include_str!("../py/hbone_client.py");
        let mut python = Self::start(pod, script, &[&spec.to_string()])?;
        let first = python.read()?;
        Ok((python, first))
    }

    /// An HBONE server at port 15008, which answers as `spec` says.
    ///
    /// # Errors
    /// As [`Self::grpc_server`].
    pub fn hbone_server(pod: &Pod, spec: &Value) -> Result<Self> {
        let script = include_str!("../py/hbone_server.py");
        let mut python = Self::start(pod, script, &[&spec.to_string()])?;
        let _: Ready = python.read()?;
        Ok(python)
    }

    /// Lets it do something, and says what came of it.
    ///
    /// # Errors
    /// It ended, or said nothing.
    pub fn ask(&mut self, step: &Value) -> Result<Value> {
        self.process.write(&step.to_string())?;
        self.read()
    }

    fn server(pod: &Pod, script: &str) -> Result<(Self, u16)> {
        let mut python = Self::start(pod, script, &[])?;
        let ready: Ready = python.read()?;
        Ok((python, ready.listening.port()))
    }

    fn start(pod: &Pod, script: &str, args: &[&str]) -> Result<Self> {
        let libraries = Self::libraries().context("MESH_PYTHON names no folder")?;
        let mut command: Command = pod.command("python3");
        command
            .env("PYTHONPATH", libraries)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-c", script])
            .args(args);
        Ok(Self {
            process: Process::spawn(command)?,
        })
    }

    fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.process.read()
    }
}
