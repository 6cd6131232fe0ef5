//! The `date` header, made once a second.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;

thread_local! {
    static LAST: RefCell<Option<(Instant, HeaderValue)>> = const { RefCell::new(None) };
}

/// The time, at most a second old.
pub(super) fn now() -> HeaderValue {
    LAST.with_borrow_mut(|last| match last {
        Some((made, value)) if made.elapsed() < Duration::from_secs(1) => value.clone(),
        _ => {
            let text = httpdate::fmt_http_date(SystemTime::now());
            let value = HeaderValue::try_from(text).expect("a date is ASCII");
            *last = Some((Instant::now(), value.clone()));
            value
        }
    })
}
