//! Reads the configuration again whenever it changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::{RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::identity::Identity;
use super::load::{Loaded, load};

/// Changes come in bursts (an editor writes, renames, sets times); one reload serves a burst.
const SETTLE: Duration = Duration::from_millis(50);

/// Missed notifications (network file systems) are made up for by looking this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How the last reloads went.
#[derive(Debug, Default)]
pub struct ReloadStatus {
    state: Mutex<Reloads>,
}

/// Counters of reloads.
#[derive(Debug, Clone, Default)]
pub struct Reloads {
    /// Reloads tried, the first load included.
    pub attempts: u64,
    /// Reloads refused.
    pub failures: u64,
    /// When a configuration was last accepted.
    pub last_success: Option<SystemTime>,
    /// When one was last refused.
    pub last_failure: Option<SystemTime>,
    /// Why, until one is accepted again.
    pub last_error: Option<String>,
}

impl ReloadStatus {
    /// The counters now.
    pub fn get(&self) -> Reloads {
        self.state.lock().clone()
    }

    fn succeeded(&self) {
        let mut state = self.state.lock();
        state.attempts += 1;
        state.last_success = Some(SystemTime::now());
        state.last_error = None;
    }

    fn failed(&self, error: String) {
        let mut state = self.state.lock();
        state.attempts += 1;
        state.failures += 1;
        state.last_failure = Some(SystemTime::now());
        state.last_error = Some(error);
    }
}

/// Watches a file or folder, starting from what was loaded. A configuration that is wrong is
/// logged and counted, and changes nothing.
///
/// # Errors
/// The system has no file notification to give.
pub fn watch(
    path: PathBuf,
    initial: Arc<Loaded>,
) -> notify::Result<(watch::Receiver<Arc<Loaded>>, Arc<ReloadStatus>)> {
    let (changed, changes) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let reading = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !reading {
            // A full channel already holds a change that was not looked at.
            let _ = changed.try_send(());
        }
    })?;
    // The folder, not the file: a rename over the file, or a swap of the link that Kubernetes
    // points to the current version, leaves a watch on the old file behind.
    let folder = if path.is_dir() {
        path.clone()
    } else {
        path.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .into()
    };
    watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    let mut watched = BTreeSet::from([folder]);
    watch_folders(&mut watcher, &initial.files, &mut watched);
    let (publish, receiver) = watch::channel(initial.clone());
    let status = Arc::new(ReloadStatus::default());
    status.succeeded();
    let reloader = Reloader {
        path,
        publish,
        status: status.clone(),
        identity: initial.identity.clone(),
        last: initial,
        watched,
    };
    tokio::spawn(reloader.run(changes, watcher));
    Ok((receiver, status))
}

struct Reloader {
    path: PathBuf,
    publish: watch::Sender<Arc<Loaded>>,
    status: Arc<ReloadStatus>,
    /// What the files were when last read, well or not.
    identity: Identity,
    last: Arc<Loaded>,
    watched: BTreeSet<PathBuf>,
}

/// Watches the folders of files that a configuration refers to. One that cannot be watched is
/// looked at now and then.
fn watch_folders(
    watcher: &mut notify::RecommendedWatcher,
    files: &[PathBuf],
    watched: &mut BTreeSet<PathBuf>,
) {
    for folder in files.iter().filter_map(|file| file.parent()) {
        if !watched.contains(folder) && watcher.watch(folder, RecursiveMode::NonRecursive).is_ok() {
            watched.insert(folder.to_owned());
        }
    }
}

impl Reloader {
    async fn run(
        mut self,
        mut changes: mpsc::Receiver<()>,
        mut watcher: notify::RecommendedWatcher,
    ) {
        // What changed between the first reading and the start of the watch sent no notification.
        self.look().await;
        loop {
            tokio::select! {
                change = changes.recv() => {
                    if change.is_none() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    while changes.try_recv().is_ok() {}
                }
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = self.publish.closed() => {
                    drop(watcher);
                    return;
                }
            }
            self.look().await;
            watch_folders(&mut watcher, &self.last.files, &mut self.watched);
        }
    }

    /// Reads again if anything changed since the last reading.
    async fn look(&mut self) {
        let now = Identity::of(&self.path, &self.last.files);
        if now != self.identity {
            self.identity = now;
            self.reload().await;
        }
    }

    async fn reload(&mut self) {
        let (path, last) = (self.path.clone(), self.last.clone());
        let loaded = tokio::task::spawn_blocking(move || load(&path, Some(&last))).await;
        match loaded {
            Ok(Ok(loaded)) => {
                let loaded = Arc::new(loaded);
                if loaded.bootstrap != self.last.bootstrap {
                    tracing::warn!(
                        "dynamic_resources or node changed: the management server is changed by a restart only"
                    );
                }
                self.last = loaded.clone();
                self.identity = loaded.identity.clone();
                self.status.succeeded();
                self.publish.send_replace(loaded);
            }
            Ok(Err(errors)) => {
                let error = errors.to_string();
                tracing::error!(%error, "configuration refused; the last good one keeps serving");
                self.status.failed(error);
            }
            Err(panic) => {
                tracing::error!(%panic, "reading the configuration failed; the last good one keeps serving");
                self.status.failed(panic.to_string());
            }
        }
    }
}
