//! `mesh-agent doctor`: what this kernel can and cannot do.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use aya::util::KernelVersion;

use super::args::DoctorArgs;
use crate::cgroup;
use crate::datapath::acceleration::{is_fit, trials};

/// One thing looked at.
struct Check {
    level: Level,
    what: String,
    fix: Cow<'static, str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail,
}

/// Prints every check; returns whether the agent can run.
pub fn run(args: &DoctorArgs) -> bool {
    let mut checks = Vec::new();
    let mut check = |ok: bool, otherwise: Level, what: String, fix: Cow<'static, str>| {
        checks.push(Check {
            level: if ok { Level::Ok } else { otherwise },
            what,
            fix,
        });
    };
    check(
        nix::unistd::geteuid().is_root(),
        Level::Fail,
        "root".into(),
        "run as root: programs are loaded and namespaces entered".into(),
    );
    let kernel = KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0));
    let at_least = |major, minor| kernel >= KernelVersion::new(major, minor, 0);
    let name = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    check(
        at_least(5, 15),
        Level::Fail,
        format!("kernel {} (at least 5.15)", name.trim()),
        "boot a newer kernel; Debian 12 has 6.1".into(),
    );
    check(
        at_least(5, 17),
        Level::Warn,
        "sk_lookup sees the interface (5.17)".into(),
        "without it a pod's connections to itself are told by their addresses".into(),
    );
    check(
        at_least(5, 18),
        Level::Warn,
        "hooks choose the errno (5.18)".into(),
        "without it refused connections see EPERM instead of ECONNREFUSED".into(),
    );
    check(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        Level::Fail,
        "kernel BTF".into(),
        "a kernel with CONFIG_DEBUG_INFO_BTF=y: socket storage is described by it".into(),
    );
    match cgroup::choose(args.cgroup.as_deref()) {
        Ok((path, _)) => check(
            true,
            Level::Fail,
            format!("cgroup v2 directory {}", path.display()),
            "".into(),
        ),
        Err(error) => check(
            false,
            Level::Fail,
            "cgroup v2 directory".into(),
            error.to_string().into(),
        ),
    }
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    check(
        jit.trim() != "0",
        Level::Warn,
        "BPF programs are compiled".into(),
        "sysctl net.core.bpf_jit_enable=1; interpreted hooks cost several times as much".into(),
    );
    use aya::programs::ProgramType;
    for (kind, program) in [
        (
            ProgramType::CgroupSockAddr,
            "connect, getpeername and getsockname hooks",
        ),
        (ProgramType::CgroupSock, "sock_release hook"),
        (ProgramType::SockOps, "TCP event hook"),
        (ProgramType::SkLookup, "listener look-up hook"),
        (ProgramType::SkMsg, "message hook (same-node acceleration)"),
    ] {
        let supported = aya::sys::is_program_supported(kind).unwrap_or(false);
        let otherwise = if kind == ProgramType::SkMsg {
            Level::Warn
        } else {
            Level::Fail
        };
        check(
            supported,
            otherwise,
            program.into(),
            "a kernel with CONFIG_CGROUP_BPF=y and CONFIG_NET=y".into(),
        );
    }
    checks.extend(acceleration(args.trial_size << 20));
    for Check { level, what, fix } in &checks {
        match level {
            Level::Ok => println!("ok    {what}"),
            Level::Warn => println!("warn  {what}: no; {fix}"),
            Level::Fail => println!("fail  {what}: no; {fix}"),
        }
    }
    let failed = checks
        .iter()
        .filter(|check| check.level == Level::Fail)
        .count();
    println!(
        "{}",
        if failed == 0 {
            "mesh-agent can run here"
        } else {
            "mesh-agent cannot run here"
        }
    );
    failed == 0
}

/// What this kernel does with accelerated sockets: one line a trial, and what follows from them.
fn acceleration(bytes: u64) -> Vec<Check> {
    if !nix::unistd::geteuid().is_root() {
        return Vec::new();
    }
    let level = |ok| if ok { Level::Ok } else { Level::Warn };
    let findings = match trials(bytes, None) {
        Ok(findings) => findings,
        Err(error) => {
            return vec![Check {
                level: Level::Warn,
                what: "same-node acceleration can be tried".into(),
                fix: format!("{error:#}").into(),
            }];
        }
    };
    let mut checks: Vec<Check> = findings
        .iter()
        .map(|finding| Check {
            level: level(finding.failure.is_none()),
            what: format!("acceleration: {}", finding.name),
            fix: finding.failure.clone().unwrap_or_default().into(),
        })
        .collect();
    let (by_itself, insisted) = (is_fit(&findings, false), is_fit(&findings, true));
    checks.push(Check {
        level: level(by_itself),
        what: "same-node acceleration (--acceleration auto)".into(),
        fix: if insisted {
            "--acceleration direct turns it on, for nodes whose applications do nothing of what fails"
        } else {
            "any application may break on this kernel; it stays off"
        }
        .into(),
    });
    checks
}
