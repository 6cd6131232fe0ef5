//! `cargo xtask doctor`: what this machine has and lacks, each with the fix.

use std::path::Path;

use anyhow::{Result, bail};

use crate::sh::{ask, is_root, which};
use crate::toolchain::Toolchain;

/// The oldest kernel on which every feature works: a telling errno from connect(2).
const KERNEL: (u32, u32) = (5, 18);
const RUSTC: (u32, u32) = (1, 95);
/// For attaching programs, entering namespaces and loading programs, with their numbers.
const CAPABILITIES: [(u32, &str); 3] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (39, "CAP_BPF"),
];

/// One thing looked at.
struct Finding {
    name: &'static str,
    /// What is there, or the fix.
    state: Result<String, String>,
    /// Whether it can be done without.
    optional: bool,
}

fn need(name: &'static str, found: Option<String>, fix: &str) -> Finding {
    Finding {
        name,
        state: found.ok_or_else(|| fix.to_owned()),
        optional: false,
    }
}

fn may(name: &'static str, found: Option<String>, fix: &str) -> Finding {
    Finding {
        optional: true,
        ..need(name, found, fix)
    }
}

/// Prints all findings; fails if something needed is missing.
pub(crate) fn run() -> Result<()> {
    let mut missing = 0;
    for (title, findings) in [
        ("Building", building()),
        ("Running", running()),
        ("Testing and demo", testing()),
    ] {
        println!("{title}");
        for finding in findings {
            let (mark, text) = match &finding.state {
                Ok(found) => ("ok", found.clone()),
                Err(fix) if finding.optional => ("absent", fix.clone()),
                Err(fix) => {
                    missing += 1;
                    ("MISSING", fix.clone())
                }
            };
            println!("  {mark:<8} {:<22} {text}", finding.name);
        }
    }
    match missing {
        0 => Ok(()),
        1 => bail!("one thing is missing"),
        _ => bail!("{missing} things are missing"),
    }
}

fn building() -> Vec<Finding> {
    let rustc = ask("rustc", &["--version"]).filter(|line| {
        let version = line.split(' ').nth(1).and_then(version_of);
        version.is_some_and(|version| version >= RUSTC)
    });
    let component = |name| ask("cargo", &[name, "--version"]);
    let toolchain = Toolchain::find();
    let llvm = toolchain.as_ref().map_or(22, Toolchain::llvm);
    vec![
        need("rustc >= 1.95", rustc, "rustup toolchain install stable"),
        need("rustfmt", component("fmt"), "rustup component add rustfmt"),
        need("clippy", component("clippy"), "rustup component add clippy"),
        need(
            "C compiler",
            program("cc"),
            "apt-get install gcc (aws-lc, the cryptography, is C)",
        ),
        need(
            "make",
            program("make"),
            "apt-get install make (jemalloc, the agent's allocator, is built with it)",
        ),
        need(
            "rustc for BPF",
            toolchain.map(|toolchain| toolchain.to_string()),
            "apt-get install rustc-web rust-web-src rust-web-llvm, or rustup toolchain install \
             nightly --component rust-src (build-ebpf does it)",
        ),
        need(
            "bpf-linker",
            program("bpf-linker"),
            &format!(
                "apt-get install llvm-{llvm}-dev libpolly-{llvm}-dev libzstd-dev zlib1g-dev; \
                 LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker --locked \
                 --no-default-features --features llvm-{llvm} (build-ebpf does it)"
            ),
        ),
    ]
}

fn running() -> Vec<Finding> {
    let kernel = read("/proc/sys/kernel/osrelease");
    let new_enough = kernel
        .as_deref()
        .and_then(version_of)
        .is_some_and(|version| version >= KERNEL);
    let btf = Path::new("/sys/kernel/btf/vmlinux");
    let jit = read("/proc/sys/net/core/bpf_jit_enable").filter(|value| value != "0");
    vec![
        need(
            "kernel >= 5.18",
            kernel.clone().filter(|_| new_enough),
            &format!(
                "this is {}; boot a newer kernel",
                kernel.unwrap_or_default()
            ),
        ),
        need(
            "BTF",
            btf.exists().then(|| btf.display().to_string()),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
        need(
            "cgroup v2",
            mount_of("cgroup2"),
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        need(
            "bpffs",
            mount_of("bpf").or_else(|| {
                let can = is_root() && Path::new("/sys/fs/bpf").is_dir();
                can.then(|| "not mounted yet; mounted on /sys/fs/bpf when needed".to_owned())
            }),
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        may(
            "BPF JIT",
            jit.map(|value| format!("net.core.bpf_jit_enable = {value}")),
            "sysctl net.core.bpf_jit_enable=1 (programs run several times slower without)",
        ),
        need(
            "root",
            privileges(),
            "sudo (tests that need it are skipped without)",
        ),
    ]
}

fn testing() -> Vec<Finding> {
    let package = |name: &str| format!("apt-get install {name}");
    vec![
        need("ip", program("ip"), &package("iproute2")),
        need("curl", program("curl"), &package("curl")),
        may("nginx", program("nginx"), &package("nginx-light")),
        may("h2load", program("h2load"), &package("nghttp2-client")),
        may("wrk", program("wrk"), &package("wrk")),
        may("iperf3", program("iperf3"), &package("iperf3")),
        may("sockperf", program("sockperf"), &package("sockperf")),
        may("bpftool", program("bpftool"), &package("bpftool")),
        may("nft", program("nft"), &package("nftables")),
        may(
            "iptables-save",
            program("iptables-save"),
            &package("iptables"),
        ),
        may(
            "python3",
            program("python3"),
            &package("python3 python3-venv"),
        ),
        may(
            "cargo-deny",
            program("cargo-deny"),
            "cargo install cargo-deny --locked",
        ),
    ]
}

fn program(name: &str) -> Option<String> {
    which(name).map(|path| path.display().to_string())
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// Where a file system of this type is mounted.
fn mount_of(kind: &str) -> Option<String> {
    let mounts = read("/proc/self/mountinfo")?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == kind).then_some(())?;
        before.split(' ').nth(4).map(str::to_owned)
    })
}

/// The effective capabilities that programs, cgroups and namespaces need.
fn privileges() -> Option<String> {
    let status = read("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    let all = CAPABILITIES
        .iter()
        .all(|(bit, _)| effective & 1 << bit != 0);
    all.then(|| CAPABILITIES.map(|(_, name)| name).join(", "))
}

/// The first two numbers of a version.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-', '+']).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn versions_of_kernels_and_compilers() {
        assert_eq!(version_of("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version_of("5.15-rc1"), Some((5, 15)));
        assert_eq!(version_of("1.95.0"), Some((1, 95)));
        assert_eq!(version_of("unknown"), None);
    }
}
