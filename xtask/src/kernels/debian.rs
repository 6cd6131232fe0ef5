//! Debian's kernel packages, unpacked.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh::{ask, run, say};

/// Modules the tests need, each after those it needs itself.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "inet_diag", "tcp_diag"];

/// A kernel that is there.
pub(super) struct Kernel {
    /// `uname -r`
    pub(super) release: String,
    /// `vmlinuz`
    pub(super) image: PathBuf,
    /// Modules in the order in which they are loaded.
    pub(super) modules: Vec<PathBuf>,
}

/// The newest kernel of a version, for example `6.1`, that this system's package sources have;
/// one that was downloaded before, if they cannot be asked.
pub(super) fn fetch(version: &str) -> Result<Kernel> {
    let all = names(version);
    let all = if all.is_empty() {
        say("apt-get update (the package lists are absent or old)");
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        names(version)
    } else {
        all
    };
    let package = all.into_iter().max_by_key(|name| numbers(name));
    let package = package.with_context(|| {
        format!("this system's package sources have no kernel {version} for virtual machines")
    })?;
    let release = package.trim_start_matches(PREFIX).to_owned();
    let root = super::dir().join(&release);
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    if !image.exists() {
        unpack(&package, &root)?;
    }
    let lib = root.join("lib/modules").join(&release).join("kernel");
    let lib = if lib.exists() {
        lib
    } else {
        root.join("usr").join(lib.strip_prefix(&root)?)
    };
    let modules = MODULES
        .into_iter()
        .map(|name| module(&lib, name))
        .collect::<Result<_>>()?;
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

const PREFIX: &str = "linux-image-";

/// Packages of a version, built for virtual machines: small, and with everything we need.
fn names(version: &str) -> Vec<String> {
    let prefix = format!("{PREFIX}{version}.");
    let listed = ask("apt-cache", &["pkgnames", &prefix]).unwrap_or_default();
    listed
        .lines()
        .filter(|name| name.ends_with("-cloud-amd64"))
        .map(str::to_owned)
        .collect()
}

/// The numbers in a name: `6.1.0-56` comes after `6.1.0-9`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn unpack(package: &str, root: &Path) -> Result<()> {
    let downloads = super::dir();
    std::fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    say(&format!(
        "apt-get download {package}   (unpacked, not installed)"
    ));
    run(Command::new("apt-get")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
        .current_dir(&downloads))?;
    let archive = std::fs::read_dir(&downloads)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&format!("{package}_")) && name.ends_with(".deb")
        })
        .context("apt-get downloaded nothing")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(root))?;
    std::fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

/// A module as the kernel takes it: newer packages compress them.
fn module(lib: &Path, name: &str) -> Result<PathBuf> {
    let plain = format!("{name}.ko");
    let packed = format!("{name}.ko.xz");
    let Some(found) = find(lib, &[&plain, &packed]) else {
        bail!("{} has no module {name}", lib.display());
    };
    if found.extension().is_some_and(|extension| extension == "xz") {
        run(Command::new("xz").arg("-d").arg(&found))?;
        return Ok(found.with_extension(""));
    }
    Ok(found)
}

fn find(dir: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            dirs.push(path);
        } else if names.iter().any(|name| path.ends_with(name)) {
            return Some(path);
        }
    }
    dirs.iter().find_map(|dir| find(dir, names))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn later_packages_are_greater() {
        let older = numbers("linux-image-6.1.0-9-cloud-amd64");
        assert!(numbers("linux-image-6.1.0-56-cloud-amd64") > older);
        let older = numbers("linux-image-6.12.90+deb12-cloud-amd64");
        assert!(numbers("linux-image-6.12.117+deb12-cloud-amd64") > older);
    }
}
