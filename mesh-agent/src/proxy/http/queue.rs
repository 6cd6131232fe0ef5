//! Who waits for an HTTP/1 connection, where a cluster may have no more of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::h1::client::Connection;

/// The waiting line of one key of a worker's pool (Envoy: `ConnPoolImplBase::pending_streams_`).
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Connections open or being made.
    open: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<Freed>>>,
}

/// What became free.
#[derive(Debug)]
pub(super) enum Freed {
    Connection(Box<Connection>),
    /// A connection is gone: another one may be made.
    Place,
}

/// A connection's place among those that are open; drop gives it back.
#[derive(Debug)]
pub(in crate::proxy) struct Place {
    queue: Rc<Queue>,
    /// There was a connection, which somebody may be waiting for.
    used: bool,
}

impl Queue {
    /// Whether no connection is open: one is made whatever the limit says, or nothing would ever
    /// move (Envoy: `tryCreateNewConnection`).
    pub(super) fn is_first(&self) -> bool {
        self.open.get() == 0
    }

    /// A place for a connection.
    pub(super) fn place(self: &Rc<Self>) -> Place {
        self.open.set(self.open.get() + 1);
        Place {
            queue: self.clone(),
            used: true,
        }
    }

    /// Waits for what becomes free, after those who waited before.
    pub(super) async fn wait(&self) -> Freed {
        let (sender, freed) = oneshot::channel();
        self.waiting.borrow_mut().push_back(sender);
        freed.await.unwrap_or(Freed::Place)
    }

    /// Gives a connection to the first who waits; back if nobody does.
    pub(super) fn hand_over(&self, connection: Connection) -> Option<Connection> {
        if self.waiting.borrow().is_empty() {
            return Some(connection);
        }
        let mut freed = Freed::Connection(Box::new(connection));
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(next) = next else {
                return match freed {
                    Freed::Connection(connection) => Some(*connection),
                    Freed::Place => None,
                };
            };
            match next.send(freed) {
                Ok(()) => return None,
                Err(back) => freed = back,
            }
        }
    }
}

impl Place {
    /// There was no connection, so nothing becomes free.
    pub(super) fn give_up(mut self) {
        self.used = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let queue = &self.queue;
        queue.open.set(queue.open.get() - 1);
        if !self.used {
            return;
        }
        loop {
            let next = queue.waiting.borrow_mut().pop_front();
            match next.map(|next| next.send(Freed::Place).is_ok()) {
                Some(false) => {}
                Some(true) | None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_first_gets_the_first_place() {
        let queue = Rc::new(Queue::default());
        assert!(queue.is_first());
        let (one, two) = (queue.place(), queue.place());
        assert!(!queue.is_first());
        let mut gave_up = Box::pin(queue.wait());
        let mut first = Box::pin(queue.wait());
        let mut second = Box::pin(queue.wait());
        for waiting in [&mut gave_up, &mut first, &mut second] {
            assert!(futures_poll(waiting).is_pending());
        }
        drop(gave_up);
        drop(one);
        assert!(matches!(first.await, Freed::Place));
        assert!(futures_poll(&mut second).is_pending());
        drop(two);
        assert!(matches!(second.await, Freed::Place));
        assert!(queue.is_first());
    }

    fn futures_poll<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> std::task::Poll<F::Output> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut cx)
    }
}
