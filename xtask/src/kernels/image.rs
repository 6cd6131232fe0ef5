//! What a virtual machine has: its initramfs.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::sh::{ask, which};
use crate::workspace;

use super::Test;
use super::cpio::Archive;
use super::debian::Kernel;

/// How many tests run at once: each has a node and an agent of its own.
const THREADS: usize = 2;

/// Programs of this system that the tests call.
const PROGRAMS: [&str; 2] = ["ip", "curl"];

/// Packs it and returns the file.
pub(super) fn pack(kernel: &Kernel, tests: &[Test]) -> Result<PathBuf> {
    let path = super::dir().join(format!("{}.cpio", kernel.release));
    let out = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut archive = Archive::new(BufWriter::new(out));
    let built = |name: &str| workspace::target_dir().join("debug").join(name);
    let (testbed, agent) = (built("mesh-testbed"), built("mesh-agent"));
    // The kernel opens its console before there is a devtmpfs.
    archive.device(Path::new("/dev/console"), (5, 1))?;
    for directory in ["/proc", "/sys", "/tmp", "/run", "/root"] {
        archive.directory(Path::new(directory))?;
    }
    archive.link(Path::new("/var/run"), "/run")?;
    archive.file(Path::new("/etc/resolv.conf"), b"nameserver 127.0.0.1\n")?;
    archive.file(Path::new("/etc/hosts"), b"127.0.0.1 localhost\n")?;
    archive.file(Path::new("/etc/passwd"), b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.link(Path::new("/init"), "/vm/init")?;
    archive.file(Path::new("/vm/init"), &read(&testbed)?)?;
    let mut programs = vec![testbed.clone(), agent.clone()];
    programs.extend(tests.iter().map(|test| test.program.clone()));
    for name in PROGRAMS {
        programs.push(which(name).with_context(|| format!("{name} is not installed"))?);
    }
    for program in &programs {
        add(&mut archive, program)?;
        for library in libraries(program)? {
            add(&mut archive, &library)?;
        }
    }
    add(&mut archive, &workspace::ebpf_object())?;
    let mut modules = String::new();
    for module in &kernel.modules {
        let name = module.file_name().context("a module has a name")?;
        let place = Path::new("/vm/module").join(name);
        archive.file(&place, &read(module)?)?;
        modules += &format!("{}\n", place.display());
    }
    archive.file(Path::new("/vm/modules"), modules.as_bytes())?;
    let environment = format!(
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\nRUST_BACKTRACE=1\n\
         MESH_TESTBED_BIN={}\nMESH_AGENT_BIN={}\n",
        testbed.display(),
        agent.display()
    );
    archive.file(Path::new("/vm/environment"), environment.as_bytes())?;
    archive.file(
        Path::new("/vm/commands"),
        commands(&agent, tests).as_bytes(),
    )?;
    archive.finish()?;
    Ok(path)
}

fn commands(agent: &Path, tests: &[Test]) -> String {
    // In a cgroup of its own it would be right; here it only is asked about the kernel.
    let mut commands = format!("{} doctor --cgroup /sys/fs/cgroup/pods\n", agent.display());
    for test in tests {
        let Test { program, args } = test;
        let command = format!("{} --test-threads={THREADS} {args}", program.display());
        commands += &format!("{}\n", command.trim_end());
    }
    commands
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Under the path it has here.
fn add(archive: &mut Archive<BufWriter<File>>, path: &Path) -> Result<()> {
    Ok(archive.file(path, &read(path)?)?)
}

/// The shared libraries a program is loaded with, and their loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let Some(listed) = ask("ldd", &[&program.to_string_lossy()]) else {
        bail!("ldd does not know what {} needs", program.display());
    };
    Ok(parse_ldd(&listed))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` and `/lib64/ld-linux... (0x...)`
fn parse_ldd(listed: &str) -> Vec<PathBuf> {
    listed
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            let path = path.split(' ').next()?;
            path.starts_with('/').then(|| path.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_their_loader_are_found() {
        let listed = "\tlinux-vdso.so.1 (0x00007fff)\n\
             \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            parse_ldd(listed),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
