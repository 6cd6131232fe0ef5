//! Whether files changed, without reading them.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file as a `stat` sees it: changes with every write, rename or swap of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileIdentity {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

/// What a file, or a folder and its entries, were at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity(Vec<FileIdentity>);

impl Identity {
    /// Looks at a file or folder, and at further files it refers to. Taken before reading, a later look tells of every change the
    /// reading may have missed.
    pub(super) fn of(path: &Path, more: &[PathBuf]) -> Self {
        let mut paths = vec![path.to_owned()];
        paths.extend_from_slice(more);
        if let Ok(entries) = std::fs::read_dir(path) {
            paths.extend(entries.flatten().map(|entry| entry.path()));
        }
        paths.sort();
        paths.dedup();
        let files = paths.into_iter().filter_map(|path| {
            let metadata = std::fs::metadata(&path).ok()?;
            Some(FileIdentity {
                inode: metadata.ino(),
                size: metadata.len(),
                modified: metadata.modified().ok(),
                path,
            })
        });
        Self(files.collect())
    }
}
