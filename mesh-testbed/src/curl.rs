//! curl, as a client that nobody of this project wrote.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::Pod;
use crate::wire::Echo;

/// A request by curl from a pod.
#[derive(Debug)]
pub struct Curl {
    command: Command,
}

/// What curl says of the transfer.
#[derive(Debug, Clone)]
pub struct Response {
    /// curl's exit code, 0 if a response was received whole. 7: could not connect, 28: timeout,
    /// 52: empty reply, 56: connection reset.
    pub exit: i32,
    /// curl's word for the exit code.
    pub error: Option<String>,
    /// Status of the last response, 0 without one.
    pub status: u16,
    /// Protocol of the response: `1.1`, `2`.
    pub version: String,
    /// Header lines of all responses, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body of the response.
    pub body: Vec<u8>,
    /// What getpeername() said.
    pub remote: Option<(IpAddr, u16)>,
    /// From start to end.
    pub time: Duration,
}

/// curl's own names.
#[derive(Debug, Deserialize)]
struct WriteOut {
    #[serde(default)]
    errormsg: Option<String>,
    http_code: u16,
    http_version: String,
    #[serde(default)]
    remote_ip: String,
    #[serde(default)]
    remote_port: i64,
    time_total: f64,
}

impl Curl {
    /// A GET, at most 10 seconds.
    pub fn get(pod: &Pod, url: &str) -> Self {
        let mut command = pod.command("curl");
        command.args(["--silent", "--globoff", "--max-time", "10", url]);
        Self { command }
    }

    /// With a header, `name: value`.
    #[must_use]
    pub fn header(mut self, line: &str) -> Self {
        self.command.args(["--header", line]);
        self
    }

    /// With another argument of curl.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// curl is not installed or did not understand us. A failed transfer is no error.
    pub fn send(mut self) -> Result<Response> {
        let dir = tempfile::tempdir().context("cannot make a directory for curl")?;
        let (head, body) = (dir.path().join("head"), dir.path().join("body"));
        let output = self
            .command
            .arg("--dump-header")
            .arg(&head)
            .arg("--output")
            .arg(&body)
            .args(["--write-out", "%{json}"])
            .output()
            .context("cannot start curl; type: apt-get install curl")?;
        let Ok(told) = serde_json::from_slice::<WriteOut>(&output.stdout) else {
            bail!(
                "curl: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        };
        Ok(Response {
            exit: output.status.code().unwrap_or(-1),
            error: told.errormsg,
            status: told.http_code,
            version: told.http_version,
            headers: headers(&head),
            // curl makes no file if there is no body.
            body: std::fs::read(&body).unwrap_or_default(),
            remote: told
                .remote_ip
                .parse()
                .ok()
                .zip(u16::try_from(told.remote_port).ok()),
            time: Duration::try_from_secs_f64(told.time_total).unwrap_or_default(),
        })
    }
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What `echo-http` said.
    ///
    /// # Errors
    /// No `echo-http` answered.
    pub fn echo(&self) -> Result<Echo> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, {:?}: {}", self.status, self.error, self.text()))
    }
}

fn headers(path: &Path) -> Vec<(String, String)> {
    let head = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&head)
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect()
}
