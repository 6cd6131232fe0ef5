//! Clients inside pods.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::Pod;
use crate::process::Process;
use crate::server::helper;
use crate::wire::{Connection, Held};

/// Connections to be opened from a pod: one, unless said otherwise, that waits for the server to
/// say something.
#[derive(Debug, Clone)]
pub struct Connect {
    to: SocketAddr,
    count: usize,
    args: Vec<String>,
}

impl Connect {
    /// One connection.
    pub fn to(to: impl Into<SocketAddr>) -> Self {
        Self {
            to: to.into(),
            count: 1,
            args: Vec::new(),
        }
    }

    /// So many, one after the other.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.count = count;
        self
    }

    /// A flag of `mesh-testbed connect`, for example `--nonblocking`, `--mapped`, `--mptcp`,
    /// `--fastopen`, `--udp`, `--until-close`, `--no-read`.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.args.push(flag.to_owned());
        self
    }

    /// An option of `mesh-testbed connect`, for example `--then ADDRESS`, `--bind ADDRESS`,
    /// `--send TEXT`, `--timeout-ms NUMBER`.
    #[must_use]
    pub fn option(mut self, option: &str, value: impl ToString) -> Self {
        self.args.extend([option.to_owned(), value.to_string()]);
        self
    }

    /// Opens them and tells what became of each.
    ///
    /// # Errors
    /// The helper program cannot be found or started. A connection that fails is no error.
    pub fn run(&self, pod: &Pod) -> Result<Vec<Connection>> {
        let (_, connections) = self.start(pod, &[])?;
        Ok(connections)
    }

    /// Opens one.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_one(&self, pod: &Pod) -> Result<Connection> {
        self.run(pod)?
            .pop()
            .context("at least one connection was asked for")
    }

    /// Opens them and keeps them open until the returned value is dropped.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn hold(&self, pod: &Pod) -> Result<Open> {
        let (process, connections) = self.start(pod, &["--hold"])?;
        Ok(Open {
            process,
            connections,
        })
    }

    fn start(&self, pod: &Pod, more: &[&str]) -> Result<(Process, Vec<Connection>)> {
        let mut command = helper(pod)?;
        command
            .args([
                "connect",
                &self.to.to_string(),
                "--count",
                &self.count.to_string(),
            ])
            .args(&self.args)
            .args(more);
        let mut process = Process::spawn(command)?;
        let connections = (0..self.count)
            .map(|_| process.read())
            .collect::<Result<_>>()?;
        Ok((process, connections))
    }
}

/// Connections that are held open.
#[derive(Debug)]
pub struct Open {
    process: Process,
    /// What became of each when it was opened.
    pub connections: Vec<Connection>,
}

impl Open {
    /// Sends a byte over each and counts those that come back.
    ///
    /// # Errors
    /// The client is gone.
    pub fn check(&mut self) -> Result<Held> {
        self.process.write("")?;
        self.process.read()
    }
}
