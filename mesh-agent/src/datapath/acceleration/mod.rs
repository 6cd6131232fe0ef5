//! Same-node acceleration: what two pods of this node say to each other in small messages goes from
//! socket to socket, past TCP.
//!
//! What the kernel does with such sockets differs by version, so an agent tries it on sockets of
//! its own before it turns it on: [`trials`], and [`Decision`] is what came of them.

mod btf;
mod trial;

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::SkMsg;
use aya::{Ebpf, EbpfLoader};
use mesh_common::{Acceleration as Settings, AccelerationFlags};

use super::DatapathError;
use super::link::prog_attach;

use btf::Btf;
pub use trial::{Finding, Weight};

const SK_MSG: &str = "mesh_sk_msg";
/// Of `enum bpf_attach_type`.
const BPF_SK_MSG_VERDICT: u32 = 7;

/// A larger message goes by TCP, and so does all that follows: TCP is faster with those.
const MAX_MESSAGE: u32 = 16 << 10;
/// So do more bytes that the receiver did not answer. It bounds what waits in the kernel for one
/// that does not read.
const MAX_UNANSWERED: u32 = 256 << 10;
/// Bytes each way that a trial checks before an agent starts.
const SHORT_TRIAL: u64 = 4 << 20;

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Acceleration {
    /// `direct` where the kernel passes every trial, otherwise off.
    #[default]
    Auto,
    /// Nothing.
    Off,
    /// Connections between pods of this node that the kernel balances, if the kernel passes all
    /// trials but those of applications that splice(2), send urgent bytes or wait for all.
    Direct,
    /// Those, whatever the trials would find: to measure it, or for a node whose applications are
    /// all known to send small messages only.
    Unchecked,
}

/// Tries everything with so many bytes each way. A failure that weighs as much as `last` is the last
/// trial.
///
/// # Errors
/// Nothing can be tried: the kernel refuses the program, or loopback does not work.
pub fn trials(bytes: u64, last: Option<Weight>) -> anyhow::Result<Vec<Finding>> {
    trial::run(bytes, last)
}

/// Whether it may be on: nobody would notice, or, if the operator insists, only those who use what
/// few do.
pub fn is_fit(findings: &[Finding], insists: bool) -> bool {
    let least = least(insists);
    let fails = |finding: &Finding| finding.weight >= least && finding.failure.is_some();
    !findings.iter().any(fails)
}

fn least(insists: bool) -> Weight {
    if insists {
        Weight::Everybody
    } else {
        Weight::Some
    }
}

/// What is done on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing.
    Off,
    /// Connections between pods.
    Direct,
}

impl Decision {
    /// Tries what the kernel does, if that matters, and says in the log what came of it.
    pub(super) fn make(wanted: Acceleration) -> Self {
        let insists = match wanted {
            Acceleration::Off => return Self::Off,
            Acceleration::Unchecked => {
                tracing::warn!(
                    "same-node acceleration is on without trials; applications may wait for bytes \
                     that are there"
                );
                return Self::Direct;
            }
            Acceleration::Auto => false,
            Acceleration::Direct => true,
        };
        let findings = match trials(SHORT_TRIAL, Some(least(insists))) {
            Ok(findings) => findings,
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "same-node acceleration is off: it cannot be tried");
                return Self::Off;
            }
        };
        let failed = findings.iter().filter(|finding| finding.failure.is_some());
        let failures: Vec<&str> = failed.map(|finding| finding.name).collect();
        let failures = failures.join(", ");
        if !is_fit(&findings, insists) {
            if insists {
                tracing::error!(%failures, "same-node acceleration is off: applications would break on this kernel; `mesh-agent doctor` says how");
            } else {
                tracing::info!(%failures, "same-node acceleration is off: applications would notice it on this kernel; `mesh-agent doctor` says how");
            }
            return Self::Off;
        }
        if failures.is_empty() {
            tracing::info!("same-node acceleration is on");
        } else {
            tracing::warn!(%failures, "same-node acceleration is on as asked for, although some applications would notice; `mesh-agent doctor` says which");
        }
        Self::Direct
    }

    pub(super) fn settings(self) -> Settings {
        Settings {
            flags: match self {
                Self::Off => 0,
                Self::Direct => AccelerationFlags::DIRECT,
            },
            max_message: MAX_MESSAGE,
            max_unanswered: MAX_UNANSWERED,
            pad: 0,
        }
    }
}

/// Loads and attaches the program, if anything is to be accelerated. A kernel that refuses it goes
/// without.
pub(super) fn prepare(ebpf: &mut Ebpf, decision: Decision) -> Decision {
    if decision == Decision::Off {
        return decision;
    }
    match load(ebpf).and_then(|()| attach(ebpf)) {
        Ok(()) => decision,
        Err(error) => {
            tracing::error!(%error, "same-node acceleration is off");
            Decision::Off
        }
    }
}

/// Sets what the programs must know of this kernel before the verifier sees them.
pub(super) fn describe_kernel<'a>(loader: &mut EbpfLoader<'a>, offsets: &'a (u32, u32)) {
    loader
        .override_global("SK_USER_DATA", &offsets.0, true)
        .override_global("PSOCK_INGRESS", &offsets.1, true);
}

/// Where the programs find a socket's queue of redirected messages; zeroes if nobody knows. Then
/// every answer counts as one of a peer that has read everything.
pub(super) fn offsets() -> (u32, u32) {
    let found = Btf::of_kernel().ok().and_then(|btf| {
        Some((
            btf.offset("sock", "sk_user_data")?,
            btf.offset("sk_psock", "ingress_msg")?,
        ))
    });
    found.unwrap_or_default()
}

/// Loads the program.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let failed = |reason| DatapathError::Program {
        program: SK_MSG,
        reason,
    };
    super::load::program::<SkMsg>(ebpf, SK_MSG)?
        .load()
        .map_err(failed)
}

/// Attaches the program to `FAST`, in place of whatever is attached. It stays as long as the map
/// and the sockets in it: a socket keeps the program that it came in with, and that keeps the map,
/// so connections survive an agent that is killed, replaced or stopped.
pub(super) fn attach(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let Some(aya::maps::Map::SockHash(fast)) = ebpf.map("FAST") else {
        return Err(DatapathError::Missing("map FAST"));
    };
    let failed = |reason: std::io::Error| DatapathError::Attach {
        program: SK_MSG,
        target: "map FAST".into(),
        reason: reason.into(),
    };
    let fast = fast.fd().as_fd().try_clone_to_owned().map_err(failed)?;
    let program = super::load::program::<SkMsg>(ebpf, SK_MSG)?;
    let program = program.fd().map_err(|reason| DatapathError::Program {
        program: SK_MSG,
        reason,
    })?;
    let program = program.as_fd().as_raw_fd();
    prog_attach(fast.as_fd(), program, BPF_SK_MSG_VERDICT).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(failing: &[Weight]) -> Vec<Finding> {
        let finding = |weight: &Weight| Finding {
            name: "one",
            weight: *weight,
            failure: Some("no".into()),
        };
        failing.iter().map(finding).collect()
    }

    #[test]
    fn what_some_would_notice_is_for_those_who_insist_and_what_breaks_all_for_nobody() {
        let (nothing, some) = (findings(&[]), findings(&[Weight::Some]));
        let all = findings(&[Weight::Some, Weight::Everybody]);
        for (findings, by_itself, insisted) in [
            (nothing, true, true),
            (some, false, true),
            (all, false, false),
        ] {
            assert_eq!(is_fit(&findings, false), by_itself);
            assert_eq!(is_fit(&findings, true), insisted);
        }
    }
}
