//! Access logs: entries are written as lines and handed to a thread that appends them to files.
//!
//! Who serves requests never waits: a line that finds no room is dropped and counted.

mod entry;
mod filter;
#[doc(hidden)]
pub mod micro;
mod render;
mod time;
mod writer;

pub(crate) use entry::{Addresses, Entry, Fields, Head, Kept, Kind, RequestHead, Spans, keep};
pub(crate) use render::text;
pub use writer::{AccessLogStats, AccessLogWriter, AccessLogger};

#[cfg(test)]
mod tests;
