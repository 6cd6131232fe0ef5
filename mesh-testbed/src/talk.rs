//! A client that sends what it is told, right or wrong.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::Pod;
use crate::http1::{RawResponse, responses};
use crate::process::Process;
use crate::server::helper;
use crate::wire::{End, Heard, Say, bytes_of, latin1};

/// A client inside a pod: one connection a talk, nothing added to the bytes sent.
#[derive(Debug)]
pub struct Talk {
    process: Process,
    patience: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Responses in order, the last one perhaps not whole.
    pub responses: Vec<RawResponse>,
    /// How the connection ended.
    pub end: End,
    /// All bytes.
    pub raw: Vec<u8>,
}

impl Talk {
    /// Starts it.
    ///
    /// # Errors
    /// The helper program cannot be found or started.
    pub fn start(pod: &Pod) -> Result<Self> {
        let mut command = helper(pod)?;
        command.arg("talk");
        Ok(Self {
            process: Process::spawn(command)?,
            patience: Duration::from_secs(10),
        })
    }

    /// How long to wait for bytes that do not come (10 s).
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends one request and reads its response.
    ///
    /// # Errors
    /// The helper program ended.
    pub fn ask(&mut self, to: SocketAddr, request: &[u8]) -> Result<Answers> {
        let method = request.split(|byte| *byte == b' ').next();
        let method = String::from_utf8_lossy(method.unwrap_or_default()).into_owned();
        self.say(to, &[request], &[&method])
    }

    /// Sends the parts, each by a write of its own, and reads the responses to requests of these
    /// methods, or what comes until the connection ends.
    ///
    /// # Errors
    /// The helper program ended.
    pub fn say(&mut self, to: SocketAddr, parts: &[&[u8]], methods: &[&str]) -> Result<Answers> {
        let say = Say {
            to,
            parts: parts.iter().map(|part| latin1(part)).collect(),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            patience_ms: self.patience.as_millis() as u64,
        };
        self.process.write(&serde_json::to_string(&say)?)?;
        let heard: Heard = self.process.read()?;
        let raw = bytes_of(&heard.received);
        let (responses, _) = responses(&raw, &say.methods, heard.end == End::Closed);
        Ok(Answers {
            responses,
            end: heard.end,
            raw,
        })
    }
}
