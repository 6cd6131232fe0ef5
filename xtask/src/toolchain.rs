//! The compiler and the linker of the kernel programs.
//!
//! Stable rustc cannot build `core` for a BPF target. A rustup nightly with rust-src can; so can
//! Debian's own rustc with its source package, told to accept unstable flags.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::sh::{ask, run, say, which};
use crate::{apt, sh};

/// The oldest compiler that understands our edition and dependencies.
const OLDEST: (u32, u32) = (1, 95);
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "rust-web-llvm"];

/// A compiler that can build for BPF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// A rustup toolchain, by name.
    Nightly { name: String, llvm: u32 },
    /// A compiler that needs `RUSTC_BOOTSTRAP`.
    System { rustc: PathBuf, llvm: u32 },
}

impl Toolchain {
    /// The one on this machine, a nightly first.
    pub(crate) fn find() -> Option<Self> {
        Self::nightly().or_else(|| Self::system(Path::new(DEBIAN_RUSTC)))
    }

    fn nightly() -> Option<Self> {
        let list = ask("rustup", &["toolchain", "list"])?;
        let name = list
            .lines()
            .filter_map(|line| line.split(' ').next())
            .find(|name| name.starts_with("nightly"))?
            .to_owned();
        let version = ask("rustup", &["run", &name, "rustc", "-vV"])?;
        let sysroot = ask("rustup", &["run", &name, "rustc", "--print", "sysroot"])?;
        let llvm = usable(&version, Path::new(&sysroot))?;
        Some(Self::Nightly { name, llvm })
    }

    fn system(rustc: &Path) -> Option<Self> {
        let version = ask(rustc, &["-vV"])?;
        let sysroot = ask(rustc, &["--print", "sysroot"])?;
        let llvm = usable(&version, Path::new(&sysroot))?;
        Some(Self::System {
            rustc: rustc.to_owned(),
            llvm,
        })
    }

    /// The one on this machine, installed first if there is none.
    ///
    /// # Errors
    /// There is none and it cannot be installed; says what to type.
    pub(crate) fn ensure() -> Result<Self> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        apt::ensure(&DEBIAN_PACKAGES, "building the kernel programs").context(
            "no compiler for BPF; with rustup, type: \
             rustup toolchain install nightly --profile minimal --component rust-src",
        )?;
        Self::find().context(
            "the installed rustc-web is older than 1.95; type: \
             rustup toolchain install nightly --profile minimal --component rust-src",
        )
    }

    /// The major version of its LLVM, which the linker must not be older than.
    pub(crate) fn llvm(&self) -> u32 {
        match self {
            Self::Nightly { llvm, .. } | Self::System { llvm, .. } => *llvm,
        }
    }

    /// A cargo that compiles with it.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Nightly { name, .. } => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]).env_remove("RUSTC");
                command
            }
            Self::System { rustc, .. } => {
                let mut command = sh::cargo();
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        // What `cargo run` sets for us is meant for the stable compiler.
        for name in [
            "LD_LIBRARY_PATH",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(name);
        }
        command
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nightly { name, llvm } => write!(f, "rustup {name}, LLVM {llvm}"),
            Self::System { rustc, llvm } => write!(f, "{}, LLVM {llvm}", rustc.display()),
        }
    }
}

/// The LLVM of a compiler that is new enough and has the source of `core`.
fn usable(version: &str, sysroot: &Path) -> Option<u32> {
    if !sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
    {
        return None;
    }
    let field = |name| version.lines().find_map(|line| line.strip_prefix(name));
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split(['.', '-']).map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    let release = numbers(field("release: ")?)?;
    let (llvm, _) = numbers(field("LLVM version: ")?)?;
    (release >= OLDEST).then_some(llvm)
}

/// Makes sure that there is a bpf-linker.
///
/// # Errors
/// There is none and it cannot be built; says what to type.
pub(crate) fn ensure_linker(llvm: u32) -> Result<()> {
    if which("bpf-linker").is_some() {
        return Ok(());
    }
    let dev = format!("llvm-{llvm}-dev");
    let polly = format!("libpolly-{llvm}-dev");
    apt::ensure(
        &[&dev, &polly, "libzstd-dev", "zlib1g-dev", "g++"],
        "building bpf-linker",
    )?;
    say("cargo install bpf-linker (about a minute; the linker of the kernel programs)");
    let mut command = sh::cargo();
    command
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{llvm}"))
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        .env_remove("CARGO_TARGET_DIR");
    run(&mut command).with_context(|| {
        format!(
            "type: LLVM_PREFIX=/usr/lib/llvm-{llvm} {}",
            sh::show(&command)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_without_the_source_of_core_is_not_usable() {
        let version = "release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(usable(version, Path::new("/nonexistent")), None);
    }

    #[test]
    fn an_old_compiler_is_not_usable() {
        let dir =
            crate::workspace::target_dir().join(format!("xtask-sysroot-{}", std::process::id()));
        let core = dir.join("lib/rustlib/src/rust/library/core");
        std::fs::create_dir_all(&core).unwrap();
        std::fs::write(core.join("Cargo.toml"), "").unwrap();
        let at = |release: &str| {
            usable(
                &format!("rustc\nrelease: {release}\nLLVM version: 22.1.4\n"),
                &dir,
            )
        };
        assert_eq!(at("1.94.1"), None);
        assert_eq!(at("1.95.0"), Some(22));
        assert_eq!(at("1.97.0-nightly"), Some(22));
        assert_eq!(at("unknown"), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
