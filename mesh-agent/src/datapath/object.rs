//! The compiled kernel programs, part of the binary.

/// The ELF object, aligned as its parser wants it.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));
