//! Envoy, as peer and as the reference for what a configuration means.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::page::{Page, request};
use crate::{Pod, eventually};

/// A running Envoy in a pod. Ends when dropped.
#[derive(Debug)]
pub struct Envoy {
    child: Child,
    admin: SocketAddr,
    dir: tempfile::TempDir,
}

/// How Envoy is run.
#[derive(Debug, Clone, Copy)]
pub struct EnvoyOptions {
    /// Its worker threads.
    pub concurrency: u32,
    /// The user it runs as; root if none. Istio's sidecar is 1337, by which its packet filter
    /// rules know what not to catch.
    pub user: Option<u32>,
}

impl Default for EnvoyOptions {
    fn default() -> Self {
        Self {
            concurrency: 1,
            user: None,
        }
    }
}

impl Envoy {
    /// The program: what `ENVOY_BIN` names (`cargo xtask test interop` fetches one), else
    /// `envoy` on `PATH`.
    pub fn program() -> Option<PathBuf> {
        if let Some(path) = std::env::var_os("ENVOY_BIN").filter(|path| !path.is_empty()) {
            return Some(path.into());
        }
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("envoy"))
            .find(|file| file.is_file())
    }

    /// Starts it with `static_resources`, in YAML, and waits until it is ready. The admin
    /// interface is added on the given port of the pod's loopback.
    ///
    /// # Errors
    /// There is no Envoy, or it rejects the configuration; its log is in the error.
    pub fn start(pod: &Pod, static_resources: &str, admin_port: u16) -> Result<Self> {
        Self::start_with(pod, static_resources, admin_port, EnvoyOptions::default())
    }

    /// As [`Self::start`], run in another way.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        pod: &Pod,
        static_resources: &str,
        admin_port: u16,
        options: EnvoyOptions,
    ) -> Result<Self> {
        let mut program = Self::program()
            .context("no Envoy; type: cargo xtask test interop, or name one with ENVOY_BIN")?;
        let dir = tempfile::tempdir().context("cannot make a directory for Envoy")?;
        let file = dir.path().join("envoy.yaml");
        let config = format!(
            "admin: {{ address: {{ socket_address: \
             {{ address: 127.0.0.1, port_value: {admin_port} }} }} }}\n{static_resources}"
        );
        std::fs::write(&file, config).context("cannot write Envoy's configuration")?;
        let log = std::fs::File::create(dir.path().join("log")).context("cannot make the log")?;
        if options.user.is_some() {
            program = readable_by_all(&program, dir.path())?;
        }
        let mut command = pod.command(program);
        if let Some(user) = options.user {
            // SAFETY: system calls only. They come after those of the pod, which need root.
            unsafe { command.pre_exec(move || become_user(user)) };
        }
        let child = command
            .arg("--config-path")
            .arg(&file)
            .args(["--concurrency", &options.concurrency.to_string()])
            .args(["--disable-hot-restart", "--log-level", "warning"])
            .args(["--file-flush-interval-msec", "50"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot start Envoy")?;
        let admin = (Ipv4Addr::LOCALHOST, admin_port).into();
        let mut envoy = Self { child, admin, dir };
        let mut ended = false;
        let ready = eventually("Envoy is ready", Duration::from_secs(30), || {
            ended = !matches!(envoy.child.try_wait(), Ok(None));
            ended
                || envoy
                    .get(pod, "/ready")
                    .is_ok_and(|page| page.status == 200)
        });
        if ended || ready.is_err() {
            bail!("Envoy does not become ready; its log:\n{}", envoy.log());
        }
        Ok(envoy)
    }

    /// An admin page.
    ///
    /// # Errors
    /// It does not answer.
    pub fn get(&self, pod: &Pod, path: &str) -> Result<Page> {
        pod.within(|| request(self.admin, "GET", path))?
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends it and waits until it is gone.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Lets another user read the directory, and puts the program there: its own place may be closed
/// to others.
fn readable_by_all(program: &Path, dir: &Path) -> Result<PathBuf> {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755))
        .context("cannot open Envoy's directory to its user")?;
    let copy = dir.join("envoy");
    if std::fs::hard_link(program, &copy).is_err() {
        std::fs::copy(program, &copy)
            .with_context(|| format!("cannot copy {}", program.display()))?;
    }
    Ok(copy)
}

fn become_user(user: u32) -> std::io::Result<()> {
    // SAFETY: no groups, so no memory is read.
    if unsafe { libc::setgroups(0, std::ptr::null()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: numbers only.
    if unsafe { libc::setgid(user) } != 0 || unsafe { libc::setuid(user) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
