//! Peers written in Python: gRPC's own library and a WebSocket one, which nobody of this project
//! wrote. The scripts around them are in `py/`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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

    /// Serves the files of a folder on the pod's loopback, on the port returned.
    ///
    /// # Errors
    /// Python is missing.
    pub fn file_server(pod: &Pod, folder: &Path) -> Result<(Self, SocketAddr)> {
        let script = "import functools, http.server as h, json, sys\n\
            handler = functools.partial(h.SimpleHTTPRequestHandler, directory=sys.argv[1])\n\
            server = h.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n\
            port = server.server_address[1]\n\
            print(json.dumps({'listening': f'127.0.0.1:{port}'}), flush=True)\n\
            server.serve_forever()\n";
        let mut command: Command = pod.command("python3");
        command
            .args(["-c", script])
            .arg(folder)
            .stderr(std::process::Stdio::null());
        let mut python = Self {
            process: Process::spawn(command)?,
        };
        let ready: Ready = python.read()?;
        Ok((python, ready.listening))
    }

    /// A secret discovery server on a Unix socket, as SPIRE's agent is one. It has no secret yet:
    /// see [`Self::serve_secrets`].
    ///
    /// # Errors
    /// As [`Self::grpc_server`].
    pub fn sds_server(socket: &Path) -> Result<Self> {
        let script = include_str!("../py/sds_server.py");
        let mut command = Command::new("python3");
        Self::prepare(&mut command, script)?.arg(socket);
        let mut python = Self {
            process: Process::spawn(command)?,
        };
        let _ready: Value = python.read()?;
        Ok(python)
    }

    /// Replaces the secrets of an [`Self::sds_server`], by name: `version`, and `chain` and `key`,
    /// or `roots`, or `domains`. Returns every request it got so far.
    ///
    /// # Errors
    /// It ended.
    pub fn serve_secrets(&mut self, secrets: &Value) -> Result<Vec<Value>> {
        self.process.write(&secrets.to_string())?;
        self.read()
    }

    fn server(pod: &Pod, script: &str) -> Result<(Self, u16)> {
        let mut python = Self::start(pod, script, &[])?;
        let ready: Ready = python.read()?;
        Ok((python, ready.listening.port()))
    }

    fn start(pod: &Pod, script: &str, args: &[&str]) -> Result<Self> {
        let mut command: Command = pod.command("python3");
        Self::prepare(&mut command, script)?.args(args);
        Ok(Self {
            process: Process::spawn(command)?,
        })
    }

    fn prepare<'a>(command: &'a mut Command, script: &str) -> Result<&'a mut Command> {
        let libraries = Self::libraries().context("MESH_PYTHON names no folder")?;
        Ok(command
            .env("PYTHONPATH", libraries)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-c", script]))
    }

    fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.process.read()
    }
}
