//! iproute2, many commands a process.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs the lines as commands of `ip`, in a namespace if one is named. Stops at the first error.
pub(crate) fn batch(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start `ip`; install iproute2")?;
    let written = child
        .stdin
        .take()
        .context("stdin is piped")?
        .write_all(lines.as_bytes());
    let output = child.wait_with_output().context("cannot wait for `ip`")?;
    if !output.status.success() {
        bail!(
            "`ip -batch` failed{}: {}\n{lines}",
            netns.map(|name| format!(" in {name}")).unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    written.context("`ip` did not read its commands")
}
