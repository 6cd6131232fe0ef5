//! A timer that is cheap to put off.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep};

/// Goes off at a deadline that may be moved as often as one likes: moving it later does not
/// touch the runtime's timers.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

/// Most timers that a worker keeps for later.
const KEPT: usize = 1024;

thread_local! {
    /// Timers of alarms that did not go off: most requests end long before their timeouts, and a
    /// timer that the runtime knows already is put off for nothing. `None`: this thread is no
    /// worker.
    static TIMERS: RefCell<Option<Vec<Pin<Box<Sleep>>>>> = const { RefCell::new(None) };
}

/// From now on this thread, which has one runtime for good, keeps timers.
pub(in crate::proxy) fn keep_timers() {
    TIMERS.set(Some(Vec::new()));
}

fn kept_timer() -> Option<Pin<Box<Sleep>>> {
    TIMERS.with_borrow_mut(|timers| timers.as_mut()?.pop())
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take() {
            // The thread may be at its end.
            let _ = TIMERS.try_with(|timers| {
                if let Some(timers) = &mut *timers.borrow_mut()
                    && timers.len() < KEPT
                {
                    timers.push(sleep);
                }
            });
        }
    }
}

impl Alarm {
    /// Goes off after `limit`.
    pub(super) fn after(limit: std::time::Duration) -> Self {
        Self {
            sleep: None,
            deadline: Some(Instant::now() + limit),
        }
    }

    /// Moves the deadline; `None`: never.
    pub(super) fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Ready at the deadline.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| {
            kept_timer().unwrap_or_else(|| Box::pin(tokio::time::sleep_until(deadline)))
        });
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_is_used_again() {
        keep_timers();
        let start = Instant::now();
        let polled = |alarm: &mut Alarm| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            alarm.poll(&mut cx)
        };
        let seconds = Duration::from_secs;
        let mut first = Alarm::after(seconds(10));
        assert!(polled(&mut first).is_pending());
        drop(first);
        let mut sooner = Alarm::after(seconds(5));
        std::future::poll_fn(|cx| sooner.poll(cx)).await;
        assert_eq!(start.elapsed(), seconds(5));
        drop(sooner);
        let mut later = Alarm::after(seconds(20));
        assert!(polled(&mut later).is_pending());
        std::future::poll_fn(|cx| later.poll(cx)).await;
        assert_eq!(start.elapsed(), seconds(25));
        TIMERS.set(None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_can_be_put_off_and_brought_forward() {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        alarm.set(after(10));
        let polled = std::future::poll_fn(|cx| Poll::Ready(alarm.poll(cx))).await;
        assert!(polled.is_pending());
        alarm.set(after(30));
        std::future::poll_fn(|cx| alarm.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 30);
        alarm.set(after(100));
        let polled = std::future::poll_fn(|cx| Poll::Ready(alarm.poll(cx))).await;
        assert!(polled.is_pending());
        alarm.set(after(40));
        std::future::poll_fn(|cx| alarm.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 40);
    }
}
