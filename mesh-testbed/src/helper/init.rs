//! `init`: the first process of a virtual machine that tests another kernel.
//!
//! There is nothing but what `cargo xtask test kernels` packed: this mounts what a system has,
//! loads the modules it finds, runs the commands it is told one after the other, says what became
//! of each on the console, and turns the machine off.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};

/// What is to be run: a command a line, words separated by blanks.
const COMMANDS: &str = "/vm/commands";
/// Environment of the commands, `NAME=VALUE` a line.
const ENVIRONMENT: &str = "/vm/environment";
/// Modules to load, a path a line, each after those it needs.
const MODULES: &str = "/vm/modules";

/// A cgroup that nobody is in.
const PODS: &str = "/sys/fs/cgroup/pods";

/// File systems: type and place.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Never returns when this is the first process.
pub(crate) fn run() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is for the first process of a virtual machine only"
    );
    let result = all();
    match &result {
        Ok(failed) => println!("vm: all commands ended, {failed} failed"),
        Err(error) => println!("vm: {error:#}"),
    }
    // What is on its way to the console is written before the machine stops.
    nix::unistd::sync();
    // SAFETY: a plain number.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    Err(std::io::Error::last_os_error()).context("cannot turn the machine off")
}

/// How many commands failed.
fn all() -> Result<usize> {
    for (kind, at) in MOUNTS {
        fs::create_dir_all(at).with_context(|| format!("cannot create {at}"))?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} on {at}"))?;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("vm: Linux {}", release.trim());
    for module in lines(MODULES)? {
        load(Path::new(&module)).with_context(|| format!("cannot load {module}"))?;
    }
    // What the agent is told of when it only is asked about the kernel.
    fs::create_dir(PODS).with_context(|| format!("cannot create {PODS}"))?;
    let environment = lines(ENVIRONMENT)?;
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .filter_map(|line| line.split_once('='))
        .collect();
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .envs(environment.iter().copied())
        .status();
    ensure!(up.context("cannot start ip")?.success(), "loopback is down");
    let mut failed = 0;
    for command in lines(COMMANDS)? {
        let mut words = command.split(' ');
        let program = words.next().context("a command has a program")?;
        let start = Instant::now();
        println!("vm: {command}");
        let status = Command::new(program)
            .args(words)
            .envs(environment.iter().copied())
            .status()
            .with_context(|| format!("cannot start {program}"))?;
        println!("vm: {status} after {:.1} s", start.elapsed().as_secs_f64());
        failed += usize::from(!status.success());
    }
    Ok(failed)
}

fn lines(path: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// finit_module(2)
fn load(module: &Path) -> Result<()> {
    let file = File::open(module)?;
    let parameters = CString::default();
    // SAFETY: an open descriptor and a string that live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_finit_module,
            file.as_raw_fd(),
            parameters.as_ptr(),
            0,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
