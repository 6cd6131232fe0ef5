//! Requests without a pause, none of which may fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use mesh_testbed::{Pod, Talk};

/// A client that asks one request after the other.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<(usize, Vec<String>)>>,
}

impl Traffic {
    pub(crate) fn start(client: &Pod, to: SocketAddr) -> Result<Self> {
        Self::of_host(client, to, "web")
    }

    /// Requests to this host.
    pub(crate) fn of_host(client: &Pod, to: SocketAddr, host: &str) -> Result<Self> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut talk = Talk::start(client)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut right, mut wrong) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let answers = talk.ask(to, request.as_bytes())?;
                match answers.responses.first() {
                    Some(response) if response.status == 200 && response.whole => right += 1,
                    _ => wrong.push(format!("{answers:?}")),
                }
            }
            Ok((right, wrong))
        });
        Ok(Self { stop, thread })
    }

    /// How many requests there were; none may have failed.
    pub(crate) fn end(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let (right, wrong) = self
            .thread
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(
            wrong.is_empty() && right > 0,
            "{} of {} requests failed: {}",
            wrong.len(),
            right + wrong.len(),
            wrong.first().cloned().unwrap_or_default()
        );
        Ok(right)
    }
}
