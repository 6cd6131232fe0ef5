//! Great numbers of short connections.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

use crate::Pod;
use crate::server::helper;
use crate::wire::{Churned, Ending};

/// Connections to be made from a pod and to be ended at once.
#[derive(Debug, Clone)]
pub struct Churn {
    to: SocketAddr,
    ending: Ending,
    count: usize,
    mptcp: bool,
}

impl Churn {
    /// So many, ended so.
    pub fn new(to: SocketAddr, ending: Ending, count: usize) -> Self {
        Self {
            to,
            ending,
            count,
            mptcp: false,
        }
    }

    /// Multipath TCP.
    #[must_use]
    pub fn mptcp(mut self) -> Self {
        self.mptcp = true;
        self
    }

    /// Makes them.
    ///
    /// # Errors
    /// The helper program cannot be found, or fails. A connection that fails is no error.
    pub fn run(&self, pod: &Pod) -> Result<Churned> {
        let ending = self.ending.to_possible_value();
        let ending = ending.context("an ending with a name")?;
        let mut command = helper(pod)?;
        command.args(["churn", &self.to.to_string(), "--ending"]);
        command.args([ending.get_name(), "--count", &self.count.to_string()]);
        if self.mptcp {
            command.arg("--mptcp");
        }
        let output = command.output().context("cannot start churn")?;
        ensure!(output.status.success(), "churn: {}", output.status);
        serde_json::from_slice(&output.stdout).context("what churn said")
    }
}
