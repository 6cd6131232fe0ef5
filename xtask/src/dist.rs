//! `cargo xtask dist`: the release tarball.

use std::env::consts::ARCH;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh::{ask, cargo, run as run_command, say};
use crate::{ebpf, workspace};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds the tarball, and checks that what is in it runs from anywhere.
pub(crate) fn run() -> Result<()> {
    ebpf::build()?;
    say("mesh-agent, release (minutes)");
    run_command(cargo().args(["build", "--release", "--locked", "--package", "mesh-agent"]))?;

    let dist = workspace::target_dir().join("dist");
    let name = format!("mesh-agent-{VERSION}-{ARCH}-linux");
    let stage = dist.join(&name);
    if stage.exists() {
        std::fs::remove_dir_all(&stage).context("cannot remove the last tarball's files")?;
    }
    std::fs::create_dir_all(&stage).context("cannot make the folder of the tarball")?;
    let binary = workspace::target_dir().join("release/mesh-agent");
    // Symbols stay for backtraces; line tables would double the size.
    run_command(
        Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(stage.join("mesh-agent"))
            .arg(&binary),
    )?;
    for file in ["README.md", "LICENSE"] {
        copy(&workspace::root().join(file), &stage.join(file))?;
    }
    let examples = workspace::root().join("examples");
    std::fs::create_dir(stage.join("examples")).context("cannot make the folder of examples")?;
    if examples.is_dir() {
        for file in std::fs::read_dir(&examples)? {
            let file = file?;
            if file.file_type()?.is_file() {
                copy(&file.path(), &stage.join("examples").join(file.file_name()))?;
            }
        }
    }

    let tarball = dist.join(format!("{name}.tar.gz"));
    pack(&dist, &name, &tarball)?;
    if let Err(error) = check(&dist, &name, &tarball) {
        // Nobody shall take it for a release.
        std::fs::remove_file(&tarball).context("cannot remove the bad tarball")?;
        return Err(error);
    }
    let sum = ask("sha256sum", &[&tarball.to_string_lossy()])
        .and_then(|line| line.split(' ').next().map(str::to_owned))
        .context("cannot run sha256sum")?;
    let bytes = std::fs::metadata(&tarball)?.len();
    println!("{}", tarball.display());
    println!("{:.1} MB ({bytes} bytes)", bytes as f64 / 1e6);
    println!("sha256 {sum}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// The same files make the same bytes, whoever packs them and when.
fn pack(dist: &Path, name: &str, tarball: &Path) -> Result<()> {
    let root = workspace::root().to_string_lossy().into_owned();
    let time = ask("git", &["-C", &root, "log", "-1", "--format=@%ct"])
        .filter(|time| time.len() > 1)
        .unwrap_or_else(|| "@0".to_owned());
    run_command(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .args([
                "--use-compress-program",
                "gzip -n9",
                &format!("--mtime={time}"),
            ])
            .arg("-C")
            .arg(dist)
            .arg("-cf")
            .arg(tarball)
            .arg(name),
    )
}

/// Unpacks it elsewhere and runs it with nothing around it.
fn check(dist: &Path, name: &str, tarball: &Path) -> Result<()> {
    let place = dist.join(format!("check-{}", std::process::id()));
    let empty = place.join("empty");
    std::fs::create_dir_all(&empty).context("cannot make a folder to unpack into")?;
    let result = (|| {
        run_command(
            Command::new("tar")
                .arg("-C")
                .arg(&place)
                .arg("-xf")
                .arg(tarball),
        )?;
        let output = Command::new(place.join(name).join("mesh-agent"))
            .arg("version")
            .current_dir(&empty)
            .env_clear()
            .output()
            .context("cannot start the packed mesh-agent")?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || !said.contains(VERSION) {
            bail!(
                "the packed `mesh-agent version` said {said:?}: {}",
                output.status
            );
        }
        say(&format!("unpacked elsewhere it says: {said}"));
        Ok(())
    })();
    std::fs::remove_dir_all(&place).context("cannot remove what was unpacked")?;
    result
}
