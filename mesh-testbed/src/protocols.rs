//! h2spec and gRPC's interop programs, which nobody of this project wrote.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::Pod;
use crate::process::Process;
use crate::wire::Ready;

/// The program (`cargo xtask test interop` builds it), unless there is none.
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("MESH_PROTOCOLS").filter(|path| !path.is_empty())?;
    Some(path.into())
}

fn command(pod: &Pod) -> Result<Command> {
    let program = program().context("MESH_PROTOCOLS names no program")?;
    Ok(pod.command(program))
}

/// How a server fares under h2spec.
#[derive(Debug, Deserialize)]
pub struct Conformance {
    /// How many cases it passed.
    pub passed: usize,
    /// The others.
    pub failed: Vec<Deviation>,
}

/// A case that a server failed.
#[derive(Debug, Deserialize)]
pub struct Deviation {
    /// Section, number and what is asked.
    pub case: String,
    /// What happened instead.
    pub error: String,
}

/// Every case of h2spec, from a pod.
///
/// # Errors
/// There is no program, or it does not run.
pub fn h2spec(pod: &Pod, at: SocketAddr) -> Result<Conformance> {
    let output = command(pod)?
        .args(["h2spec", &at.ip().to_string(), &at.port().to_string()])
        .output()?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The cases of gRPC's interop client.
pub const GRPC_CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
];

/// One of [`GRPC_CASES`], from a pod.
///
/// # Errors
/// It fails, with what the client says.
pub fn grpc_case(pod: &Pod, at: SocketAddr, case: &str) -> Result<()> {
    let output = command(pod)?
        .args(["grpc-client", &at.to_string(), case])
        .output()?;
    ensure!(
        output.status.success(),
        "{case}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// gRPC's interop server in a pod. Ends when dropped.
#[derive(Debug)]
pub struct GrpcServer {
    _process: Process,
    address: SocketAddr,
}

impl GrpcServer {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// There is no program.
    pub fn start(pod: &Pod) -> Result<Self> {
        let mut command = command(pod)?;
        command.arg("grpc-server");
        let mut process = Process::spawn(command)?;
        let ready: Ready = process.read()?;
        Ok(Self {
            _process: process,
            address: SocketAddr::new(IpAddr::V4(pod.ip4()), ready.listening.port()),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
