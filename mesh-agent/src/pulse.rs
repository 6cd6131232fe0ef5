//! A thread that tells the kernel four times a second that the agent lives, whatever the control
//! loop is busy with, and looks after threads that give way.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::datapath::Heart;
use crate::sched;

/// How often it beats. The kernel takes an agent for dead after five seconds.
const INTERVAL: Duration = Duration::from_millis(250);

/// Beats until it is dropped.
#[derive(Debug)]
pub struct Pulse {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Starts it.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(heart: Heart) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("pulse".into())
            .spawn(move || beat(heart, &stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn beat(mut heart: Heart, stopped: &Receiver<()>) {
    while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if let Err(error) = heart.beat() {
            tracing::error!(%error, "the kernel takes the agent for dead");
        }
        sched::watch(INTERVAL);
    }
}
