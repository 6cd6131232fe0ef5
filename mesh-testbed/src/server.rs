//! Servers inside pods.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;

use crate::process::Process;
use crate::wire::Ready;
use crate::{Pod, binary};

/// A running server of the helper program. Ends when dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    listening: SocketAddr,
    pod_ips: [std::net::IpAddr; 2],
}

impl Server {
    /// `echo-http`, on IPv4 and IPv6; port 0 takes a free one.
    ///
    /// # Errors
    /// The helper program cannot be found or started, or the port is taken.
    pub fn http(pod: &Pod, name: &str, version: &str, port: u16) -> Result<Self> {
        let args = ["echo-http", "--name", name, "--version", version, "--port"];
        Self::start(pod, &args, port)
    }

    /// `echo-tcp`, on IPv4 and IPv6; port 0 takes a free one.
    ///
    /// # Errors
    /// As [`Self::http`].
    pub fn tcp(pod: &Pod, name: &str, port: u16) -> Result<Self> {
        Self::start(pod, &["echo-tcp", "--name", name, "--port"], port)
    }

    /// As [`Self::tcp`], listening for multipath TCP.
    ///
    /// # Errors
    /// As [`Self::http`], or the kernel has no MPTCP.
    pub fn mptcp(pod: &Pod, name: &str, port: u16) -> Result<Self> {
        Self::start(
            pod,
            &["echo-tcp", "--mptcp", "--name", name, "--port"],
            port,
        )
    }

    /// A subcommand with its arguments.
    ///
    /// # Errors
    /// As [`Self::http`].
    pub fn with_args(pod: &Pod, args: &[&str]) -> Result<Self> {
        let mut command = helper(pod)?;
        command.args(args);
        let mut process = Process::spawn(command)?;
        let ready: Ready = process.read()?;
        Ok(Self {
            process,
            listening: ready.listening,
            pod_ips: pod.ips(),
        })
    }

    fn start(pod: &Pod, args: &[&str], port: u16) -> Result<Self> {
        let port = port.to_string();
        let args: Vec<&str> = args.iter().copied().chain([port.as_str()]).collect();
        Self::with_args(pod, &args)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.listening.port()
    }

    /// The pod's IPv4 address and its port.
    pub fn addr4(&self) -> SocketAddr {
        SocketAddr::new(self.pod_ips[0], self.port())
    }

    /// The pod's IPv6 address and its port.
    pub fn addr6(&self) -> SocketAddr {
        SocketAddr::new(self.pod_ips[1], self.port())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The helper program inside a pod.
pub(crate) fn helper(pod: &Pod) -> Result<Command> {
    Ok(pod.command(binary::helper()?))
}
