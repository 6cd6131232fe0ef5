//! A virtual machine: qemu, with KVM where there is one, else emulated.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::sh::{say, show};

/// How long a machine may run; emulated ones are some ten times slower.
const LIMIT: Duration = Duration::from_secs(600);
const LIMIT_EMULATED: Duration = Duration::from_secs(3600);
/// How long a kernel may take until it says something.
const BOOT: Duration = Duration::from_secs(20);

/// What the first process says first, after the kernel's warnings.
const BEGIN: &str = "vm: Linux ";
/// What the first process says last.
const END: &str = "vm: all commands ended, ";

/// Runs a machine until it turns itself off, and passes on what it writes to its console.
///
/// # Errors
/// It cannot be started, does not end in time, ended early, or a command failed in it.
pub(super) fn run(image: &Path, initramfs: &Path, line: &mut impl FnMut(&str)) -> Result<()> {
    let kvm = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if kvm {
        match start("kvm", image, initramfs, [BOOT, LIMIT], line) {
            // Machines inside machines do not always have a KVM that works.
            Err(error) if error.is::<Mute>() => say("KVM does not work here: emulated"),
            result => return result,
        }
    }
    start("tcg", image, initramfs, [LIMIT_EMULATED; 2], line)
}

/// A machine whose kernel said nothing.
#[derive(Debug)]
struct Mute;

impl std::fmt::Display for Mute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the machine's kernel says nothing")
    }
}

impl std::error::Error for Mute {}

fn start(
    accelerator: &str,
    image: &Path,
    initramfs: &Path,
    limits: [Duration; 2],
    line: &mut impl FnMut(&str),
) -> Result<()> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", &format!("q35,accel={accelerator}")])
        .args(["-cpu", "max", "-smp", "2", "-m", "3072", "-no-reboot"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        // A panic ends the machine. What comes after the dashes is for the first process.
        .args(["-append", "console=ttyS0 loglevel=4 panic=-1 -- init"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", show(&command)))?;
    let result = follow(&mut child, limits, line);
    // It is gone already, unless it was given up.
    let _ = child.kill();
    let _ = child.wait();
    result
}

fn follow(
    child: &mut Child,
    [boot, limit]: [Duration; 2],
    line: &mut impl FnMut(&str),
) -> Result<()> {
    let stdout = child.stdout.take().context("stdout is piped")?;
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for text in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text);
            if sender.send(text.trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let mut deadline = Instant::now() + boot;
    let (mut booted, mut failed) = (false, None);
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                if !booted && (text.starts_with('[') || text.starts_with(BEGIN)) {
                    booted = true;
                    deadline = Instant::now() + limit;
                }
                if let Some(end) = text.strip_prefix(END) {
                    failed = Some(end.to_owned());
                }
                line(&text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if !booted => return Err(Mute.into()),
            Err(RecvTimeoutError::Timeout) => bail!("the machine still runs after {limit:?}"),
        }
    }
    let _ = reader.join();
    match failed.as_deref() {
        Some("0 failed") => Ok(()),
        None if !booted => Err(Mute.into()),
        Some(failed) => bail!("commands in the machine failed: {failed}"),
        None => bail!("the machine ended before its commands did"),
    }
}
