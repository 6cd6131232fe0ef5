//! `mesh-agent doctor`: what this kernel can and cannot do.

use std::fs;
use std::path::Path;

use aya::util::KernelVersion;

use super::args::DoctorArgs;

/// One thing looked at.
struct Check {
    level: Level,
    what: String,
    fix: &'static str,
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
    let mut check = |ok: bool, otherwise: Level, what: String, fix: &'static str| {
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
        "run as root: programs are loaded and namespaces entered",
    );
    let kernel = KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0));
    let at_least = |major, minor| kernel >= KernelVersion::new(major, minor, 0);
    let name = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    check(
        at_least(5, 15),
        Level::Fail,
        format!("kernel {} (at least 5.15)", name.trim()),
        "boot a newer kernel; Debian 12 has 6.1",
    );
    check(
        at_least(5, 17),
        Level::Warn,
        "sk_lookup sees the interface (5.17)".into(),
        "without it a pod's connections to itself are told by their addresses",
    );
    check(
        at_least(5, 18),
        Level::Warn,
        "hooks choose the errno (5.18)".into(),
        "without it refused connections see EPERM instead of ECONNREFUSED",
    );
    check(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        Level::Fail,
        "kernel BTF".into(),
        "a kernel with CONFIG_DEBUG_INFO_BTF=y: socket storage is described by it",
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    check(
        mounts.contains(" - cgroup2 "),
        Level::Fail,
        "cgroup v2 is mounted".into(),
        "mount -t cgroup2 none /sys/fs/cgroup/unified (or boot with cgroup v2)",
    );
    check(
        nix::sys::statfs::statfs(&args.cgroup)
            .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC),
        Level::Fail,
        format!(
            "{} is a cgroup v2 directory (mounted on {})",
            args.cgroup.display(),
            mounted_on(&mounts, "cgroup2").unwrap_or("nothing")
        ),
        "--cgroup names the directory above all pods, below that mount",
    );
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    check(
        jit.trim() != "0",
        Level::Warn,
        "BPF programs are compiled".into(),
        "sysctl net.core.bpf_jit_enable=1; interpreted hooks cost several times as much",
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
        (
            ProgramType::SkMsg,
            "message hook (same-node acceleration, not used yet)",
        ),
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
            "a kernel with CONFIG_CGROUP_BPF=y and CONFIG_NET=y",
        );
    }
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

/// Where a file system of this type is mounted, by `/proc/self/mountinfo`.
fn mounted_on<'a>(mounts: &'a str, kind: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        (fs.split(' ').next()? == kind).then(|| mount.split(' ').nth(4))?
    })
}

#[cfg(test)]
mod tests {
    use super::mounted_on;

    #[test]
    fn mounts_are_found_by_type() {
        let mounts = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      30 25 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounted_on(mounts, "cgroup2"),
            Some("/sys/fs/cgroup/unified")
        );
        assert_eq!(mounted_on(mounts, "bpf"), None);
    }
}
