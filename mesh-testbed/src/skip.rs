//! Tests that cannot run here say so loudly and are counted.

use std::io::Write as _;

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says that the calling test was skipped and why. The test harness hides what a passing test
/// prints, so this goes to the terminal itself, and to the file `MESH_SKIP_LOG` names, in which
/// `cargo xtask test` counts.
pub fn skipped(why: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {why}\n", thread.name().unwrap_or("(a test)"));
    // Not `eprint!`, which is captured. Nothing is left to tell if the terminal is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(log) = std::env::var_os("MESH_SKIP_LOG") {
        let written = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(
            written.is_ok(),
            "cannot write {}: {written:?}",
            log.display()
        );
    }
}

/// Leaves a test that needs root, if we are not; the value to return may be given.
#[macro_export]
macro_rules! needs_root {
    () => {
        $crate::needs_root!(())
    };
    ($result:expr) => {
        if !$crate::is_root() {
            $crate::skipped("needs root");
            return $result;
        }
    };
}
