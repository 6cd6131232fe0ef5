//! What tells the kernel that the agent lives.

use aya::maps::{Array, MapData};
use mesh_common::Control;

use super::DatapathError;
use super::error::map_error;

/// Writes the heartbeat; a thread of its own may own it.
#[allow(missing_debug_implementations)]
pub struct Heart {
    pub(super) control: Array<MapData, Control>,
    /// The agent's own cgroup, whose sockets are never captured.
    pub(super) agent_cgroup: u64,
}

impl Heart {
    /// Tells the kernel that the agent is alive; to be called at least every second.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn beat(&mut self) -> Result<(), DatapathError> {
        let control = Control {
            heartbeat_ns: monotonic_ns(),
            agent_cgroup: self.agent_cgroup,
        };
        self.control
            .set(0, control, 0)
            .map_err(map_error("CTRL", "write the heartbeat"))
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists on every Linux");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
