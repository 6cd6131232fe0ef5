//! A request's body kept so that it can be sent again.
//!
//! The first attempt streams the body as it comes; what it takes is copied to the tape. A later
//! attempt reads the tape first and goes on with the client's stream where that ends. A body that
//! outgrows the limit is no longer kept, and its request can no longer be asked again (Envoy:
//! `retry_or_shadow_abandoned`).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Frame, SizeHint};

use super::body::{Progress, RequestBody};

/// A body and what was read of it.
#[derive(Debug)]
pub(super) struct Tape {
    source: RefCell<RequestBody>,
    progress: Progress,
    kept: RefCell<BytesMut>,
    limit: usize,
    /// Whether everything read is kept.
    whole: Cell<bool>,
    /// The attempt that may read; an earlier one may still be held by a connection that ends.
    reader: Cell<u32>,
}

impl Tape {
    /// Keeps at most `limit` bytes of a body.
    pub(super) fn new(body: RequestBody, limit: usize) -> Rc<Self> {
        Rc::new(Self {
            progress: body.progress(),
            source: RefCell::new(body),
            kept: RefCell::default(),
            limit,
            whole: Cell::new(true),
            reader: Cell::new(0),
        })
    }

    /// The body from its beginning, for the next attempt.
    pub(super) fn body(self: &Rc<Self>) -> RequestBody {
        self.reader.set(self.reader.get() + 1);
        let replay = Replay {
            tape: self.clone(),
            reader: self.reader.get(),
            read: 0,
        };
        RequestBody::replay(replay, self.progress.clone())
    }

    /// Whether another attempt would get the whole body.
    pub(super) fn can_replay(&self) -> bool {
        self.whole.get()
    }

    /// There will be no other attempt.
    pub(super) fn forget(&self) {
        self.whole.set(false);
        self.kept.replace(BytesMut::new());
    }
}

/// One attempt's reading.
#[derive(Debug)]
pub(super) struct Replay {
    tape: Rc<Tape>,
    reader: u32,
    read: usize,
}

impl Replay {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let tape = &self.tape;
        if tape.reader.get() != self.reader {
            let error = io::Error::other("another attempt has taken over the request");
            return Poll::Ready(Some(Err(error)));
        }
        {
            let kept = tape.kept.borrow();
            if let Some(rest) = kept.get(self.read..).filter(|rest| !rest.is_empty()) {
                let data = Bytes::copy_from_slice(rest);
                drop(kept);
                self.read += data.len();
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        let frame = ready!(Pin::new(&mut *tape.source.borrow_mut()).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let mut kept = tape.kept.borrow_mut();
            if tape.whole.get() && kept.len() + data.len() <= tape.limit {
                kept.extend_from_slice(data);
                self.read += data.len();
            } else {
                tape.whole.set(false);
                *kept = BytesMut::new();
            }
        }
        Poll::Ready(frame)
    }

    fn unread(&self) -> usize {
        self.tape.kept.borrow().len().saturating_sub(self.read)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.unread() == 0 && self.tape.source.borrow().is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let rest = self.tape.source.borrow().size_hint();
        match rest.exact() {
            Some(rest) => SizeHint::with_exact(rest + self.unread() as u64),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pieces: &[&'static str]) -> RequestBody {
        RequestBody::of_pieces(
            pieces
                .iter()
                .map(|piece| Bytes::from_static(piece.as_bytes())),
        )
    }

    async fn piece(body: &mut RequestBody) -> Option<io::Result<Bytes>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.map(|frame| frame.map(|frame| frame.into_data().expect("no trailers here")))
    }

    #[tokio::test]
    async fn a_later_attempt_reads_what_the_first_one_took_and_goes_on() {
        let tape = Tape::new(body(&["ab", "cd", "ef"]), 100);
        let mut first = tape.body();
        assert_eq!(piece(&mut first).await.unwrap().unwrap(), "ab");
        assert_eq!(piece(&mut first).await.unwrap().unwrap(), "cd");
        assert!(tape.can_replay());
        let mut second = tape.body();
        assert_eq!(piece(&mut second).await.unwrap().unwrap(), "abcd");
        assert!(!second.is_end_stream());
        assert_eq!(piece(&mut second).await.unwrap().unwrap(), "ef");
        assert!(second.is_end_stream());
        assert!(piece(&mut second).await.is_none());
        // The first one is late: it must not take what the second needs.
        assert!(piece(&mut first).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_outgrows_the_limit_is_passed_on_and_not_kept() {
        let tape = Tape::new(body(&["ab", "cde", "f"]), 4);
        let mut first = tape.body();
        assert_eq!(piece(&mut first).await.unwrap().unwrap(), "ab");
        assert_eq!(piece(&mut first).await.unwrap().unwrap(), "cde");
        assert!(!tape.can_replay());
        assert_eq!(piece(&mut first).await.unwrap().unwrap(), "f");
        assert!(tape.kept.borrow().is_empty());
    }
}
