//! Waiting for what happens elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Waits until something holds; polls, so that nothing sleeps longer than it must.
///
/// # Errors
/// It does not hold in time; says what was waited for.
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() > deadline {
            bail!("not within {patience:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
