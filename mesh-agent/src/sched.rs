//! Work that gives way to traffic.
//!
//! A large push costs a second of decoding, compiling and map writes; a request costs tens of
//! microseconds and should not notice. Such work runs as `SCHED_IDLE` (sched(7)): whoever wakes
//! takes the core from it at once, and the kernel places wake-ups on a core that runs nothing else
//! as if it were free. It holds no lock that a worker takes: snapshots are swapped, not locked.
//!
//! On a node without a free moment it would never end. A thread that has waited for a core for
//! [`PATIENCE`] since it last slept is let in as `SCHED_BATCH`, at the weight of everybody else,
//! until it has caught up; [`watch`] sees to that.

use std::marker::PhantomData;
use std::time::Duration;

use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;

/// How long work is kept waiting for traffic in all.
const PATIENCE: Duration = Duration::from_secs(1);

/// Threads that give way. Locked only by threads that do not (at that moment).
static POLITE: Mutex<Vec<Polite>> = Mutex::new(Vec::new());

/// The thread gives way until this is dropped. Not to be held across an await.
#[derive(Debug)]
#[must_use = "the thread gives way only while this lives"]
pub struct GivesWay {
    thread: Pid,
    /// Of the thread that made it.
    _not_send: PhantomData<*const ()>,
}

#[derive(Debug)]
struct Polite {
    thread: Pid,
    /// What [`Times`] said last.
    seen: Times,
    /// How long it had waited when it last slept.
    waited_before: Duration,
    raised: bool,
}

/// `/proc/PID/task/TID/schedstat`
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    ran: Duration,
    waited: Duration,
}

/// Lets the calling thread give way to all others of the node.
pub fn give_way() -> GivesWay {
    let thread = gettid();
    let seen = Times::of(thread);
    POLITE.lock().push(Polite {
        thread,
        seen,
        waited_before: seen.waited,
        raised: false,
    });
    set(thread, libc::SCHED_IDLE);
    GivesWay {
        thread,
        _not_send: PhantomData,
    }
}

impl Drop for GivesWay {
    fn drop(&mut self) {
        // Back first: the lock is not for those whom others keep from the core.
        set(self.thread, libc::SCHED_OTHER);
        let mut polite = POLITE.lock();
        polite.retain(|one| one.thread != self.thread);
        // It may have been lowered again in between.
        set(self.thread, libc::SCHED_OTHER);
    }
}

/// Lets those in who have waited for too long, and those who have caught up give way again; to be
/// called every `interval`.
pub fn watch(interval: Duration) {
    for one in POLITE.lock().iter_mut() {
        if let Some(policy) = one.judge(Times::of(one.thread), interval) {
            set(one.thread, policy);
        }
    }
}

impl Polite {
    /// How it is to be scheduled from now on, if that changes.
    fn judge(&mut self, now: Times, interval: Duration) -> Option<libc::c_int> {
        let wanted = (now.ran + now.waited).saturating_sub(self.seen.ran + self.seen.waited);
        self.seen = now;
        // It slept for half of the time: nothing is left waiting.
        let rested = wanted < interval / 2;
        if rested {
            self.waited_before = now.waited;
        }
        let starves = now.waited.saturating_sub(self.waited_before) > PATIENCE;
        if starves && !self.raised {
            self.raised = true;
            Some(libc::SCHED_BATCH)
        } else if rested && self.raised {
            self.raised = false;
            Some(libc::SCHED_IDLE)
        } else {
            None
        }
    }
}

impl Times {
    /// Nothing where the kernel keeps no such accounts (`CONFIG_SCHED_INFO`).
    fn of(thread: Pid) -> Self {
        let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat"));
        let text = text.unwrap_or_default();
        let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
        let mut next = || Duration::from_nanos(numbers.next().unwrap_or_default());
        Self {
            ran: next(),
            waited: next(),
        }
    }
}

/// Lowering oneself needs no privilege, and coming back none that the agent lacks; where it is
/// refused all the same, nothing gives way.
fn set(thread: Pid, policy: libc::c_int) {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: `param` is valid for the call, and the kernel only reads it.
    let result = unsafe { libc::sched_setscheduler(thread.as_raw(), policy, &param) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, policy, "cannot change how a thread is scheduled");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: takes a number.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn a_thread_gives_way_for_as_long_as_it_says() {
        std::thread::spawn(|| {
            let way = give_way();
            assert_eq!(policy(), libc::SCHED_IDLE);
            // Rested or not, it has not waited for a second.
            watch(Duration::from_millis(250));
            assert_eq!(policy(), libc::SCHED_IDLE);
            drop(way);
            assert_eq!(policy(), libc::SCHED_OTHER);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_starves_is_let_in_and_gives_way_again_once_it_has_caught_up() {
        const TICK: Duration = Duration::from_millis(250);
        let mut thread = Polite {
            thread: gettid(),
            seen: Times::default(),
            waited_before: Duration::ZERO,
            raised: false,
        };
        let mut now = Times::default();
        let mut after = |ran: u64, waited: u64| {
            now.ran += Duration::from_millis(ran);
            now.waited += Duration::from_millis(waited);
            thread.judge(now, TICK)
        };
        // Work without anybody in the way may go on for as long as it likes.
        assert_eq!((0..100).find_map(|_| after(250, 0)), None);
        // A wait now and then, with rest in between, is what giving way means.
        assert_eq!((0..100).find_map(|_| after(10, 100)), None);
        // A second of waiting without rest is too long.
        let ticks: Vec<_> = (0..5).map(|_| after(5, 245)).collect();
        assert_eq!(ticks, [None, None, None, None, Some(libc::SCHED_BATCH)]);
        assert_eq!(after(125, 125), None);
        assert_eq!(after(20, 20), Some(libc::SCHED_IDLE));
    }
}
