//! The agent as a child process, told what to do as an operator would.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::page::{Page, request};
use crate::testbed::NODE_CGROUP_AGENT;
use crate::{Testbed, binary, cgroup, loopback};

/// How long the agent may take to become ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is shown of its log when a test fails.
const LOG_TAIL: usize = 20_000;

/// A running agent. Killed when dropped, if it was not stopped; its log is shown if the test
/// panics meanwhile.
#[derive(Debug)]
pub struct MeshAgent {
    child: Child,
    admin: SocketAddr,
    readiness: SocketAddr,
    dir: tempfile::TempDir,
    stopped: bool,
}

/// An agent to be started.
#[derive(Debug)]
pub struct MeshAgentBuilder {
    cgroup: PathBuf,
    procs: PathBuf,
    bpffs: PathBuf,
    admin: SocketAddr,
    readiness: SocketAddr,
    args: Vec<String>,
    env: Vec<(String, String)>,
    resolv_conf: Option<PathBuf>,
}

impl MeshAgent {
    /// The agent of a testbed's node, on ports of its own.
    ///
    /// # Errors
    /// No port is free.
    pub fn builder(testbed: &Testbed) -> Result<MeshAgentBuilder> {
        Ok(MeshAgentBuilder {
            cgroup: testbed.cgroup().to_owned(),
            procs: testbed
                .cgroup()
                .join(NODE_CGROUP_AGENT)
                .join("cgroup.procs"),
            bpffs: testbed.bpffs().to_owned(),
            admin: loopback::socket()?,
            readiness: loopback::socket()?,
            args: Vec::new(),
            env: Vec::new(),
            resolv_conf: None,
        })
    }

    /// Starts an agent with this configuration and waits until it is ready.
    ///
    /// # Errors
    /// It does not start or does not become ready; its log is in the error.
    pub fn start(testbed: &Testbed, config: &str) -> Result<Self> {
        Self::builder(testbed)?.start(config)
    }

    fn ready(mut self) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if request(self.admin, "GET", "/ready").is_ok_and(|page| page.status == 200) {
                return Ok(self);
            }
            if let Some(status) = self.child.try_wait()? {
                self.stopped = true;
                bail!("the agent stopped: {status}; its log:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent is not ready after {PATIENCE:?}; its log:\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An admin page.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn get(&self, path: &str) -> Result<Page> {
        request(self.admin, "GET", path)
    }

    /// An admin page that is posted to.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn post(&self, path: &str) -> Result<Page> {
        request(self.admin, "POST", path)
    }

    /// Where the admin pages are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Where readiness is told.
    pub fn readiness(&self) -> SocketAddr {
        self.readiness
    }

    /// The file with its configuration.
    pub fn config_path(&self) -> PathBuf {
        config_path(self.dir.path())
    }

    /// Replaces the configuration at once, as a rename does. The agent takes it up on its own;
    /// wait for what you expect of it with [`crate::eventually`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn reconfigure(&self, config: &str) -> Result<()> {
        let new = self.dir.path().join(".new");
        std::fs::write(&new, config).context("cannot write the configuration")?;
        std::fs::rename(&new, self.config_path()).context("cannot replace the configuration")
    }

    /// `mesh-agent COMMAND --admin ADDRESS` and what it prints.
    ///
    /// # Errors
    /// It cannot be started or fails.
    pub fn command(&self, command: &str) -> Result<String> {
        let output = Command::new(binary::agent()?)
            .args([command, "--admin", &self.admin.to_string()])
            .output()
            .context("cannot start the agent")?;
        if !output.status.success() {
            bail!(
                "{command}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        log(self.dir.path())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// It is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// It is gone.
    pub fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kibibytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("/proc/PID/status has no VmRSS")?
            .parse()?;
        Ok(kibibytes << 10)
    }

    /// A signal, without waiting.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).context("cannot signal the agent")
    }

    /// SIGTERM, and waits until it has stopped.
    ///
    /// # Errors
    /// It does not stop in time.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(PATIENCE)
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        self.stopped |= self.child.try_wait()?.is_some();
        Ok(!self.stopped)
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// It does not stop in time.
    pub fn wait(mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.stopped = true;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent does not stop within {patience:?}; its log:\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL: what it pinned stays.
    ///
    /// # Errors
    /// It is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.stopped = true;
        Ok(())
    }
}

impl MeshAgentBuilder {
    /// Another flag, for example `--drain-duration`.
    #[must_use]
    pub fn arg(mut self, arg: impl ToString) -> Self {
        self.args.push(arg.to_string());
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// It pins there instead of in the testbed's directory.
    #[must_use]
    pub fn bpffs(mut self, path: &Path) -> Self {
        self.bpffs = path.to_owned();
        self
    }

    /// It sees this file as `/etc/resolv.conf`.
    #[must_use]
    pub fn resolv_conf(mut self, file: PathBuf) -> Self {
        self.resolv_conf = Some(file);
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// As [`MeshAgent::start`].
    pub fn start(self, config: &str) -> Result<MeshAgent> {
        self.spawn(config)?.ready()
    }

    /// As [`Self::start`], with a configuration that is somewhere else: a file or a directory.
    /// [`MeshAgent::reconfigure`] has no effect.
    ///
    /// # Errors
    /// As [`MeshAgent::start`].
    pub fn start_from(self, config: &Path) -> Result<MeshAgent> {
        let dir = tempfile::tempdir().context("cannot make a directory for the agent")?;
        self.spawn_from(dir, config)?.ready()
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// Its program cannot be found or started.
    pub fn spawn(self, config: &str) -> Result<MeshAgent> {
        let dir = tempfile::tempdir().context("cannot make a directory for the agent")?;
        let file = config_path(dir.path());
        std::fs::write(&file, config).context("cannot write the configuration")?;
        self.spawn_from(dir, &file)
    }

    /// `dir` is for what the agent writes.
    fn spawn_from(self, dir: tempfile::TempDir, config: &Path) -> Result<MeshAgent> {
        let log = File::create(dir.path().join("log")).context("cannot make the log")?;
        let mut command = Command::new(binary::agent()?);
        command
            .arg("run")
            .arg("--config")
            .arg(config)
            .arg("--cgroup")
            .arg(&self.cgroup)
            .arg("--bpffs")
            .arg(&self.bpffs)
            .args(["--admin", &self.admin.to_string()])
            .args(["--readiness", &self.readiness.to_string()])
            // Several agents run at once; their figures are on the admin port too.
            .args(["--metrics", "127.0.0.1:0"])
            .args(&self.args)
            // Its trials take a while; who wants them says so.
            .env("MESH_ACCELERATION", "off")
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log)
            // Ctrl-C is ours to handle.
            .process_group(0);
        let enter = cgroup::enter(&self.procs)?;
        // SAFETY: only system calls, see `cgroup::enter`.
        unsafe { command.pre_exec(enter) };
        if let Some(file) = &self.resolv_conf {
            let file = CString::new(file.as_os_str().as_bytes())?;
            // SAFETY: only system calls.
            unsafe { command.pre_exec(move || overlay(&file, c"/etc/resolv.conf")) };
        }
        let child = command.spawn().context("cannot start the agent")?;
        Ok(MeshAgent {
            child,
            admin: self.admin,
            readiness: self.readiness,
            dir,
            stopped: false,
        })
    }
}

impl Drop for MeshAgent {
    fn drop(&mut self) {
        if !self.stopped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL));
            eprintln!("--- log of the agent\n{}---", &log[start..]);
        }
    }
}

/// Puts a file over another one for this process and its children only. What others mount is
/// still seen: pods' namespaces are mounts.
fn overlay(file: &CStr, over: &CStr) -> std::io::Result<()> {
    const NONE: Option<&CStr> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, c"/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    mount(Some(file), over, NONE, MsFlags::MS_BIND, NONE)?;
    Ok(())
}

fn config_path(dir: &Path) -> PathBuf {
    dir.join("mesh.yaml")
}

fn log(dir: &Path) -> String {
    let bytes = std::fs::read(dir.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}
