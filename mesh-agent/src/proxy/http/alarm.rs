//! A timer that is cheap to put off.

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

impl Alarm {
    /// Moves the deadline; `None`: never.
    pub(super) fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Ready at the deadline.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
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
