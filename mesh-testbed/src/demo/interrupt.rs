//! Ctrl-C: whatever the demo is doing ends, and it cleans up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C was pressed.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Runs `work` to its end, or until SIGINT or SIGTERM. Then its processes are killed, so that
/// whatever it waits for ends; it unwinds by itself, and what is left is removed.
pub(super) fn guarded(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (done, finished) = oneshot::channel();
    // Before the first pod is made, or a signal in between would end us.
    let (mut int, mut term) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    let worker = std::thread::spawn(move || {
        let result = work();
        // The receiver is gone only after a signal, when the result no longer matters.
        let _ = done.send(());
        result
    });
    let signalled = runtime.block_on(async {
        tokio::select! {
            _ = finished => false,
            _ = int.recv() => true,
            _ = term.recv() => true,
        }
    });
    if signalled {
        INTERRUPTED.store(true, Ordering::Relaxed);
        eprintln!("\ndemo: cleaning up");
        worker.thread().unpark();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !worker.is_finished() && Instant::now() < deadline {
            mesh_testbed::remove_own();
            std::thread::sleep(Duration::from_millis(20));
        }
        mesh_testbed::remove_own();
        std::process::exit(130);
    }
    match worker.join() {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("the demo panicked")).context("see above"),
    }
}
