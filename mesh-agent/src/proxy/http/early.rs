//! Responses that come before the response: 100 (Continue), 102 and 103 (Early Hints).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use http::{HeaderMap, StatusCode};

use super::headers;

/// Most of them that wait for a client that does not read.
const WAITING: usize = 16;

/// From an upstream to the client, within one task.
#[derive(Debug, Default)]
pub(super) struct Early {
    waiting: RefCell<VecDeque<(StatusCode, HeaderMap)>>,
    begun: Cell<bool>,
}

impl Early {
    /// Passes one on, if it is of a kind that is passed on
    /// (Envoy: `HeaderUtility::isSpecial1xx`).
    pub(super) fn put(&self, status: StatusCode, mut headers: HeaderMap) {
        if !matches!(status.as_u16(), 100 | 102 | 103) {
            return;
        }
        self.begun.set(true);
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() < WAITING {
            headers::strip_hop_by_hop(&mut headers);
            waiting.push_back((status, headers));
        }
    }

    /// The next one.
    pub(super) fn take(&self) -> Option<(StatusCode, HeaderMap)> {
        self.waiting.borrow_mut().pop_front()
    }

    /// Whether the client was told something of an attempt: there is no other then.
    pub(super) fn begun(&self) -> bool {
        self.begun.get()
    }
}
