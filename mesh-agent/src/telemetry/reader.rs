//! The thread that reads the kernel's records.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::datapath::Events;

use super::{Shared, State};

/// How old a record may become, unless many come at once.
const PERIOD: Duration = Duration::from_millis(100);

/// How long records of an agent before this one wait until the pods they speak of are known.
const INTRODUCTION: Duration = Duration::from_secs(10);

pub(super) fn run(shared: &Shared, mut events: Events) {
    let start = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.state.lock().pods.are_known() || start.elapsed() > INTRODUCTION {
            events.wait(PERIOD);
        } else {
            std::thread::sleep(PERIOD);
            continue;
        }
        let snapshot = shared.snapshots.load();
        let mut state = shared.state.lock();
        let State { pods, tcp, .. } = &mut *state;
        events.read(|event| tcp.count(event, pods, &snapshot));
    }
}
