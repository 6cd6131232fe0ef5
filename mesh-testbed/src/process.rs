//! A child process that speaks one JSON object a line and ends with us.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

/// How long a program may take to say something. Generous: two cores may run many tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// Killed and waited for when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    what: String,
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is ours to handle.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {what}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            stdin,
            lines,
            what,
        })
    }

    /// The next line.
    pub(crate) fn read<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.read_in_time(PATIENCE)
    }

    /// The next line, of a program that needs so long.
    pub(crate) fn read_in_time<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => {
                serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.what))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing for {limit:?}", self.what)
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{} ended: {}", self.what, self.child.wait()?)
            }
        }
    }

    /// Asks for a line.
    pub(crate) fn write(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("stdin is open until it is dropped")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} ended", self.what))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, together with its pod.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
