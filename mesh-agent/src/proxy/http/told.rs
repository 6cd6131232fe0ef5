//! The end of a request's record: with the last byte of its response, or when the client leaves.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::body::{BodyError, ProxyBody};
use super::record::Record;

/// Holds a record until the request is over; a client that leaves drops it early.
#[derive(Debug)]
pub(super) struct Ending {
    record: Rc<Record>,
    whole: bool,
}

impl Ending {
    pub(super) fn new(record: Rc<Record>) -> Self {
        Self {
            record,
            whole: false,
        }
    }

    pub(super) fn record(&self) -> &Rc<Record> {
        &self.record
    }

    /// The response goes nowhere: the request is served anew.
    pub(super) fn followed(&mut self) {
        self.whole = true;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.record.end(self.whole);
    }
}

/// A response's body whose way to the client is written down.
#[derive(Debug)]
pub(super) struct Told {
    body: ProxyBody,
    ending: Ending,
}

impl Told {
    pub(super) fn new(body: ProxyBody, ending: Ending) -> Self {
        let mut told = Self { body, ending };
        told.look();
        told
    }

    /// Nothing of the body is sent: the request's method or the status leaves no room for one.
    pub(super) fn silence(&mut self) {
        self.body = ProxyBody::Own(None);
        self.look();
    }

    /// Bytes that are not the body's: what an upgraded connection carried.
    pub(super) fn carried(&self, sent: u64, received: u64) {
        self.ending.record.carried(sent, received);
    }

    /// Ready when the stream's limits are reached while the client does not read.
    pub(super) fn poll_limits(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.body.poll_limits(cx).map(|()| {
            let record = &self.ending.record;
            record.cut_off(&BodyError::Idle, &self.body);
        })
    }

    fn look(&mut self) {
        self.ending.whole = self.body.is_end_stream();
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let told = &mut *self;
        let frame = Pin::new(&mut told.body).poll_frame(cx);
        let record = &told.ending.record;
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    record.took(data);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    record.trailers(trailers);
                }
                told.look();
            }
            Poll::Ready(Some(Err(error))) => record.cut_off(error, &told.body),
            Poll::Ready(None) => told.ending.whole = true,
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
