//! Debian packages: what is missing is installed when we may, and named when we may not.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh::{ask, is_root, run, say, which};

/// Makes sure that these packages are installed. Nothing installed is upgraded or removed.
///
/// # Errors
/// We may not install (not root, no apt), apt knows no such package, or it would have to
/// upgrade or remove another one. The error says what to type.
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let typed = format!("apt-get install {}", missing.join(" "));
    if which("apt-get").is_none() {
        bail!(
            "{purpose} needs what Debian calls {}: install it with this system's package manager",
            missing.join(", ")
        );
    }
    if !is_root() {
        bail!("{purpose} needs more packages; type: sudo {typed}");
    }
    let plan = match plan(&missing) {
        Some(plan) => plan,
        None => {
            say("apt-get update (the package lists are absent or old)");
            run(apt_get().args(["-qq", "update"]))?;
            plan(&missing).with_context(|| {
                format!("{purpose} needs packages this system's sources lack: {typed}")
            })?
        }
    };
    if let Some(line) = plan.lines().find(|line| changes_what_is_there(line)) {
        bail!("{purpose}: `{typed}` would change what is installed ({line}); run it yourself");
    }
    say(&format!("{typed}   ({purpose})"));
    run(apt_get()
        .args(["-y", "-qq", "--no-install-recommends", "install"])
        .args(&missing))
}

/// Whether a package is installed.
pub(crate) fn has(package: &str) -> bool {
    ask("dpkg-query", &["-W", "-f=${db:Status-Status}", package]).as_deref() == Some("installed")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// What apt would do; `None` if it cannot.
fn plan(packages: &[&str]) -> Option<String> {
    let mut args = vec!["-s", "--no-install-recommends", "install"];
    args.extend(packages);
    ask("apt-get", &args)
}

/// `Inst NAME [OLD] (NEW ...)` is an upgrade, `Inst NAME (NEW ...)` is not.
fn changes_what_is_there(line: &str) -> bool {
    let mut words = line.split(' ');
    match words.next() {
        Some("Remv") => true,
        Some("Inst") => words.nth(1).is_some_and(|word| word.starts_with('[')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::changes_what_is_there;

    #[test]
    fn a_new_package_changes_nothing_that_is_there() {
        assert!(!changes_what_is_there(
            "Inst wrk (4.1.0-3+b2 Debian:12.11/oldstable [amd64])"
        ));
        assert!(!changes_what_is_there(
            "Conf wrk (4.1.0-3+b2 Debian:12.11/oldstable [amd64])"
        ));
    }

    #[test]
    fn an_upgrade_and_a_removal_do() {
        assert!(changes_what_is_there(
            "Inst libc6 [2.36-9] (2.36-10 Debian:12 [amd64])"
        ));
        assert!(changes_what_is_there("Remv nginx [1.22.1-9]"));
    }
}
