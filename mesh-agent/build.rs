//! Embeds the kernel programs that `cargo xtask build-ebpf` built.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = env::var_os("MESH_EBPF_OBJECT")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            // OUT_DIR is TARGET/PROFILE/build/CRATE/out.
            let target = out.ancestors().nth(4).unwrap_or(Path::new("target"));
            target.join("bpf/mesh-ebpf.o")
        });
    println!("cargo::rerun-if-changed={}", object.display());
    let destination = out.join("mesh-ebpf.o");
    if let Err(error) = fs::copy(&object, &destination) {
        println!(
            "cargo::error=cannot read the kernel programs at {}: {error}. Build them first: \
             cargo xtask build-ebpf",
            object.display()
        );
    }
}
