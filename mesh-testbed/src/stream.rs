//! Streams of numbered bytes from inside pods.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::Pod;
use crate::process::Process;
use crate::server::helper;
use crate::wire::Streamed;

/// Streams to an `echo-tcp` server that waits for the client to speak.
#[derive(Debug, Clone)]
pub struct Stream {
    to: SocketAddr,
    bytes: u64,
    args: Vec<String>,
}

/// Streams under way.
#[derive(Debug)]
pub struct Streaming {
    process: Process,
    wanted: u64,
}

impl Stream {
    /// One stream of so many bytes, all in small messages.
    pub fn new(to: SocketAddr, bytes: u64) -> Self {
        Self {
            to,
            bytes,
            args: Vec::new(),
        }
    }

    /// An option of `mesh-testbed stream`, for example `--small`, `--pause-us`.
    #[must_use]
    pub fn option(mut self, option: &str, value: u64) -> Self {
        self.args.extend([option.to_owned(), value.to_string()]);
        self
    }

    /// Waits for the echo of each small message before the next.
    #[must_use]
    pub fn turns(mut self) -> Self {
        self.args.push("--turns".into());
        self
    }

    /// Starts it. `streams` is how many there are in all.
    ///
    /// # Errors
    /// The helper program cannot be found or started.
    pub fn start(&self, pod: &Pod, streams: u64) -> Result<Streaming> {
        let mut command = helper(pod)?;
        command.args(["stream", &self.to.to_string()]);
        command.args(["--bytes", &self.bytes.to_string()]);
        command.args(&self.args);
        Ok(Streaming {
            process: Process::spawn(command)?,
            wanted: self.bytes * streams,
        })
    }

    /// Runs one to its end.
    ///
    /// # Errors
    /// A byte was lost, changed or out of its place.
    pub fn run(&self, pod: &Pod) -> Result<()> {
        self.start(pod, 1)?.finish()
    }
}

impl Streaming {
    /// Waits until all have ended, at most some minutes.
    ///
    /// # Errors
    /// A byte was lost, changed or out of its place.
    pub fn finish(mut self) -> Result<()> {
        let streamed: Streamed = self.process.read_in_time(crate::stream::PATIENCE)?;
        ensure!(
            streamed.failures.is_empty(),
            "{}",
            streamed.failures.join("; ")
        );
        ensure!(streamed.bytes == self.wanted, "{} bytes", streamed.bytes);
        Ok(())
    }
}

/// A gigabyte on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(240);
