//! The thread that serves the streams: it gives way to traffic.

use std::cell::Cell;
use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::sched::{GivesWay, give_way};

thread_local! {
    /// For as long as the thread lives.
    static WAY: Cell<Option<GivesWay>> = const { Cell::new(None) };
}

/// Ends when dropped, without waiting.
#[derive(Debug)]
pub(super) struct Background(pub(super) Handle, Option<Runtime>);

impl Background {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("xds")
            .on_thread_start(|| WAY.set(Some(give_way())))
            .enable_all()
            .build()?;
        Ok(Self(runtime.handle().clone(), Some(runtime)))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.1.take() {
            runtime.shutdown_background();
        }
    }
}
