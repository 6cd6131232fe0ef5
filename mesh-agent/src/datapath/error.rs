//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

/// A failure of the kernel side, with its likely cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The kernel lacks a program type or a helper.
    #[error("kernel {found} is too old: at least 5.15 is needed; Debian 12 has 6.1")]
    Kernel {
        /// Its version.
        found: String,
    },
    /// The object or one of its maps was refused.
    #[error(
        "cannot load the kernel programs: {0}; `mesh-agent doctor` shows what this kernel lacks"
    )]
    Load(#[from] aya::EbpfError),
    /// The verifier or the kernel refused a program.
    #[error(
        "cannot load program {program}: {reason}; `mesh-agent doctor` shows what this kernel lacks"
    )]
    Program {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        reason: aya::programs::ProgramError,
    },
    /// A program could not be attached.
    #[error("cannot attach program {program} to {target}: {reason}{}", alone(.reason))]
    Attach {
        /// Its name.
        program: &'static str,
        /// The cgroup or namespace.
        target: String,
        /// The kernel's answer.
        reason: aya::programs::ProgramError,
    },
    /// The cgroup cannot be opened.
    #[error(
        "cannot open the cgroup v2 directory {path}: {reason}; --cgroup names the directory above \
         all pods, for example /sys/fs/cgroup/kubepods.slice"
    )]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The object does not have a map or program: it and this binary do not belong together.
    #[error("the kernel programs have no {0}: they were built from another version; rebuild both")]
    Missing(&'static str),
    /// A map could not be read or written.
    #[error("map {map}: cannot {operation}: {reason}{}", full(.reason, .map))]
    Map {
        /// Its name.
        map: &'static str,
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        reason: aya::maps::MapError,
    },
    /// Maps and links cannot be pinned.
    #[error(transparent)]
    Pin(#[from] super::pins::PinError),
    /// Another pod has the same address.
    #[error(
        "address {address} belongs to pod {owner} already: inbound traffic of {pod} is not \
         captured; give the pods different addresses"
    )]
    AddressTaken {
        /// The address.
        address: std::net::IpAddr,
        /// Who has it.
        owner: String,
        /// Who wanted it.
        pod: String,
    },
}

/// Explains EPERM: another program wants its cgroup for itself.
fn alone(reason: &aya::programs::ProgramError) -> &'static str {
    match reason {
        aya::programs::ProgramError::SyscallError(error)
            if error.io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            "; perhaps another tool's program is attached there without BPF_F_ALLOW_MULTI: \
             `bpftool cgroup tree` shows it; detach it, or have it attached with that flag"
        }
        _ => "",
    }
}

/// Explains E2BIG: the map has no room.
fn full(reason: &aya::maps::MapError, map: &str) -> String {
    match reason {
        aya::maps::MapError::SyscallError(error)
            if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
        {
            format!("; {map} is full: fewer services, endpoints or pods must be on this node")
        }
        _ => String::new(),
    }
}

/// Names the map and the operation of a failed map access.
pub(super) fn map_error(
    map: &'static str,
    operation: &'static str,
) -> impl FnOnce(aya::maps::MapError) -> DatapathError {
    move |reason| DatapathError::Map {
        map,
        operation,
        reason,
    }
}
