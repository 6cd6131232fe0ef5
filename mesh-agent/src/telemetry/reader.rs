//! The thread that reads the kernel's records.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::datapath::Events;

use super::{Shared, State};

/// How old a record may become, unless many come at once.
const PERIOD: Duration = Duration::from_millis(100);

pub(super) fn run(shared: &Shared, mut events: Events) {
    while !shared.stop.load(Ordering::Relaxed) {
        events.wait(PERIOD);
        let snapshot = shared.snapshots.load();
        let mut state = shared.state.lock();
        let State { pods, tcp, .. } = &mut *state;
        events.read(|event| tcp.count(event, pods, &snapshot));
    }
}
