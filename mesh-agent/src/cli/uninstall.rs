//! `mesh-agent uninstall`: removes what agents that are gone have left.

use anyhow::Result;

use super::args::UninstallArgs;
use crate::datapath::uninstall;

/// Removes it, and says what it was.
///
/// # Errors
/// An agent is running, or a pin cannot be removed.
pub fn run(args: &UninstallArgs) -> Result<()> {
    let removed = uninstall(&args.bpffs)?;
    for path in &removed {
        println!("removed {}", path.display());
    }
    if removed.is_empty() {
        println!("nothing of an agent is in {}", args.bpffs.display());
    }
    Ok(())
}
