//! A client that sends requests at a steady rate, checks the answers and measures how long they
//! take.

use std::net::SocketAddr;

use anyhow::Result;

use crate::Pod;
use crate::process::Process;
use crate::server::helper;
use crate::wire::Pace;

/// What it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A gRPC call with one message each way.
    Grpc,
}

/// A client inside a pod, sending until it is dropped.
#[derive(Debug)]
pub struct Paced {
    process: Process,
}

impl Paced {
    /// Starts it: `connections` connections that stay open, each with `rate` requests a second.
    /// An answer is right if its status is 200 and its body is `expected`; a gRPC answer, if its
    /// message is the one sent and the call ended well.
    ///
    /// # Errors
    /// The helper program cannot be found or started.
    pub fn start(
        pod: &Pod,
        to: SocketAddr,
        protocol: Protocol,
        expected: &str,
        connections: u32,
        rate: u32,
    ) -> Result<Self> {
        let mut command = helper(pod)?;
        command
            .arg("paced")
            .arg(to.to_string())
            .args(match protocol {
                Protocol::Http1 => ["--protocol", "http1"],
                Protocol::Http2 => ["--protocol", "http2"],
                Protocol::Grpc => ["--protocol", "grpc"],
            })
            .arg(format!("--expect={expected}"))
            .arg(format!("--connections={connections}"))
            .arg(format!("--rate={rate}"));
        Ok(Self {
            process: Process::spawn(command)?,
        })
    }

    /// What happened since it was asked last.
    ///
    /// # Errors
    /// The helper program ended.
    pub fn read(&mut self) -> Result<Pace> {
        self.process.write("")?;
        self.process.read()
    }
}
