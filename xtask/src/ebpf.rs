//! `cargo xtask build-ebpf`: the kernel programs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::sh::{run, say};
use crate::toolchain::{Toolchain, ensure_linker};
use crate::workspace;

/// The linker is told to emit BTF, which it derives from debug information; v3 has the 32-bit
/// and atomic instructions of kernel 5.12 and later.
const RUSTFLAGS: &str = "-Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf";

/// Builds the kernel programs, installing what that needs, and returns the object file.
pub(crate) fn build() -> Result<PathBuf> {
    let toolchain = Toolchain::ensure()?;
    ensure_linker(toolchain.llvm())?;
    say(&format!("kernel programs with {toolchain}"));
    let build_dir = workspace::target_dir().join("bpf/build");
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--locked", "--release", "-Zbuild-std=core"])
        .args(["--target", "bpfel-unknown-none"])
        .current_dir(workspace::root().join("mesh-ebpf"))
        .env("RUSTFLAGS", RUSTFLAGS)
        .env("CARGO_TARGET_DIR", &build_dir);
    run(&mut cargo).with_context(|| {
        format!(
            "cannot build the kernel programs; if the linker complains of the bitcode, bpf-linker \
             was built for an LLVM older than {llvm}, then type: LLVM_PREFIX=/usr/lib/llvm-{llvm} \
             cargo install bpf-linker --force --locked --no-default-features --features llvm-{llvm}",
            llvm = toolchain.llvm()
        )
    })?;
    let object = workspace::ebpf_object();
    install(
        &build_dir.join("bpfel-unknown-none/release/mesh-ebpf"),
        &object,
    )?;
    Ok(object)
}

/// rustc puts its panics into this section. They never return, so the verifier rejects the
/// program that calls one, on every kernel; better said now than when the agent starts.
const PANICS: &[u8] = b".text.unlikely.";

/// Copies the object only when it changed: the agent embeds it and would be built anew.
fn install(from: &Path, to: &Path) -> Result<()> {
    let new = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if new.windows(PANICS.len()).any(|window| window == PANICS) {
        bail!(
            "a kernel program can panic, which the verifier rejects: look for an index, a \
             division or a remainder that rustc cannot prove right, and use get() or checked_*()"
        );
    }
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    std::fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
