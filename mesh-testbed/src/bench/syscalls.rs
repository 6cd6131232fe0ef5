//! `cargo xtask bench syscalls`: system calls that a proxy makes for a request, counted by strace at
//! a low rate, where no call serves two requests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use mesh_testbed::Paced;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::path::{self, Asked, Ground, Path};
use super::servers::BODY;
use super::stage::{Port, Stage, System};

/// Connections, and requests a second on each.
const CONNECTIONS: u32 = 8;
const RATE: u32 = 25;
/// How long calls are counted.
const COUNTED: Duration = Duration::from_secs(3);
/// How long strace may take to begin and to end.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Which paths; every one with a proxy if none is named.
    #[arg(value_parser = path::asked, value_name = "PATH")]
    paths: Vec<Asked>,
    /// Write the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Calls for a request, of all proxies of a path together.
#[derive(Debug, Default, serde::Serialize)]
struct Calls {
    path: &'static str,
    system: &'static str,
    proxies: usize,
    reads: f64,
    writes: f64,
    waits: f64,
    others: f64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut paths: Vec<Path> = args
        .paths
        .iter()
        .flat_map(|asked| asked.0.clone())
        .collect();
    if paths.is_empty() {
        paths = Path::all().to_vec();
    }
    println!(
        "{:<16}{:<8}{:>8}{:>8}{:>8}{:>8}{:>8}",
        "path", "", "proxies", "reads", "writes", "waits", "others"
    );
    let mut rows = Vec::new();
    for ground in Ground::ALL {
        // What the kernel carries alone costs no call of a proxy.
        let paths = paths.iter().copied().filter(|path| {
            path.ground() == ground && !matches!(path, Path::L4Direct | Path::L4DirectSockmap)
        });
        let paths: Vec<Path> = paths.collect();
        if paths.is_empty() {
            continue;
        }
        for system in [System::Ours, System::Envoy] {
            let stage = Stage::set(system, ground, false)?;
            for &path in &paths {
                let calls = count(&stage, path)
                    .with_context(|| format!("{} of {}", path.name(), system.name()))?;
                calls.print();
                rows.push(calls);
            }
        }
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

impl Calls {
    fn print(&self) {
        println!(
            "{:<16}{:<8}{:>8}{:>8.2}{:>8.2}{:>8.2}{:>8.2}",
            self.path, self.system, self.proxies, self.reads, self.writes, self.waits, self.others
        );
    }
}

fn count(stage: &Stage, path: Path) -> Result<Calls> {
    let to = stage.address(path, Port::Web);
    let mut client = Paced::start(&stage.client, to, path.protocol(), BODY, CONNECTIONS, RATE)?;
    // Connections are made before anything counts.
    std::thread::sleep(Duration::from_millis(500));
    let proxies = stage.proxy_pids();
    let strace = Strace::attach(&proxies)?;
    client.read()?;
    std::thread::sleep(COUNTED);
    let pace = client.read()?;
    let counted = strace.end()?;
    ensure!(
        pace.failed == 0 && pace.answered > 0,
        "{} requests failed; the first: {:?}",
        pace.failed,
        pace.failure
    );
    let each = |names: &[&str]| {
        let calls: u64 = names.iter().filter_map(|name| counted.get(*name)).sum();
        calls as f64 / pace.answered as f64
    };
    let reads = each(&["read", "readv", "recvfrom", "recvmsg"]);
    let writes = each(&["write", "writev", "sendto", "sendmsg"]);
    let waits = each(&["epoll_wait", "epoll_pwait", "epoll_pwait2", "futex"]);
    let all: u64 = counted.values().sum();
    Ok(Calls {
        path: path.name(),
        system: stage.system.name(),
        proxies: proxies.len(),
        reads,
        writes,
        waits,
        others: all as f64 / pace.answered as f64 - reads - writes - waits,
    })
}

/// strace, counting the calls of processes.
struct Strace {
    child: Child,
    _folder: tempfile::TempDir,
    table: PathBuf,
}

impl Strace {
    fn attach(pids: &[u32]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let table = folder.path().join("calls");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(&table);
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start strace; type: apt-get install strace")?;
        let mut strace = Self {
            child,
            _folder: folder,
            table,
        };
        let deadline = Instant::now() + PATIENCE;
        while !pids.iter().all(|pid| is_traced(*pid)) {
            if strace.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("strace does not attach to {pids:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(strace)
    }

    /// Calls by name.
    fn end(mut self) -> Result<BTreeMap<String, u64>> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "strace does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(table(&std::fs::read_to_string(&self.table)?))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether every thread has a tracer.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        std::fs::read_to_string(thread.path().join("status")).is_ok_and(|text| {
            let tracer = text
                .lines()
                .find_map(|line| line.strip_prefix("TracerPid:"));
            tracer.is_some_and(|tracer| tracer.trim() != "0")
        })
    })
}

/// Reads `% time, seconds, usecs/call, calls, [errors,] syscall`.
fn table(text: &str) -> BTreeMap<String, u64> {
    let rows = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let calls = words.get(3)?.parse().ok()?;
        let name = *words.last()?;
        (name != "total" && words.len() >= 5).then(|| (name.to_owned(), calls))
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_strace_is_understood() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n \
                    60,00    0.000060           3        20           sendto\n \
                    40.00    0.000040           1        40         7 recvfrom\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.000100           1        60         7 total\n";
        let calls = table(text);
        assert_eq!((calls["sendto"], calls["recvfrom"]), (20, 40));
        assert_eq!(calls.len(), 2);
    }
}
