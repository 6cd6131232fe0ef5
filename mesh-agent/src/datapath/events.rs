//! Reads what the kernel tells of single connections.

use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_common::Event;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Datapath;

/// The ring buffer of connections; it has one reader.
#[allow(missing_debug_implementations)]
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    /// Waits until a good part of the buffer is full, or that long.
    pub fn wait(&self, limit: Duration) {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)];
        // An interrupted or failed wait is a short one.
        let _ = poll(&mut fds, timeout);
    }

    /// Hands over all there are.
    pub fn read(&mut self, mut each: impl FnMut(&Event)) {
        while let Some(record) = self.ring.next() {
            match bytemuck::try_pod_read_unaligned(&record) {
                Ok(event) => each(&event),
                Err(error) => {
                    tracing::error!(length = record.len(), %error, "a record of another layout");
                }
            }
        }
    }
}

impl Datapath {
    /// The records of connections; `None`: somebody has them already.
    pub fn events(&mut self) -> Option<Events> {
        let ring = self.node.events.take()?;
        Some(Events { ring })
    }
}
