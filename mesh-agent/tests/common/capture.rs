//! Bytes between pods.

use std::path::Path;

use anyhow::Result;
use mesh_testbed::{Pod, eventually};

use super::PATIENCE;

/// What tcpdump sees of a pod's cable.
pub(crate) struct Capture {
    tcpdump: std::process::Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    pub(crate) fn start(pod: &Pod) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        let tcpdump = pod
            .command("tcpdump")
            .args(["-i", "eth0", "-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(file.path())
            .arg("tcp")
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let capture = Self { tcpdump, file };
        let begun = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.len() >= 24);
        eventually("tcpdump listens", PATIENCE, || begun(capture.file.path()))?;
        Ok(capture)
    }

    pub(crate) fn end(mut self) -> Result<Vec<u8>> {
        let pid = nix::unistd::Pid::from_raw(self.tcpdump.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.tcpdump.wait()?;
        Ok(std::fs::read(self.file.path())?)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}
