//! The thread that writes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::model::access_log::{AccessLogs, Sink};

use super::entry::Entry;

/// How many lines may wait.
const QUEUE_LINES: usize = 16 << 10;
/// How many bytes of lines may wait.
const QUEUE_BYTES: u64 = 32 << 20;
/// For how long lines are gathered before they are written: nobody is woken for each of them.
const GATHER: Duration = Duration::from_millis(20);
/// How often the thread looks whether it is asked for something while nothing comes.
const LOOK: Duration = Duration::from_millis(250);
/// How often it looks whether a file was moved away, and tries again to open one.
const ROTATION: Duration = Duration::from_secs(1);

/// What became of lines.
#[derive(Debug, Default)]
pub struct AccessLogStats {
    /// Lines written (Envoy: `filesystem.write_completed` counts writes).
    pub written: AtomicU64,
    /// Lines dropped because too many waited.
    pub dropped: AtomicU64,
    /// Lines lost because their file could not be written.
    pub failed: AtomicU64,
    /// Files that could not be opened.
    pub reopen_failed: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    stats: AccessLogStats,
    waiting_bytes: AtomicU64,
    reopen: AtomicBool,
}

#[derive(Debug)]
struct Line {
    sink: Sink,
    text: Vec<u8>,
}

/// Where workers hand their entries in.
#[derive(Debug, Clone)]
pub struct AccessLogger {
    shared: Arc<Shared>,
    queue: SyncSender<Line>,
}

impl AccessLogger {
    /// Writes an entry to every log that wants it.
    pub(crate) fn log(&self, logs: &AccessLogs, entry: &Entry<'_>) {
        for log in &logs.logs {
            if log.filter.as_ref().is_none_or(|filter| filter.holds(entry)) {
                let mut text = Vec::with_capacity(512);
                log.format.write(entry, &mut text);
                self.hand_in(Line {
                    sink: log.sink.clone(),
                    text,
                });
            }
        }
    }

    fn hand_in(&self, line: Line) {
        let length = line.text.len() as u64;
        let waiting = self
            .shared
            .waiting_bytes
            .fetch_add(length, Ordering::Relaxed);
        if waiting > QUEUE_BYTES || self.queue.try_send(line).is_err() {
            self.shared
                .waiting_bytes
                .fetch_sub(length, Ordering::Relaxed);
            self.shared.stats.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread; it ends, with everything written, when all loggers are gone.
#[derive(Debug)]
pub struct AccessLogWriter {
    shared: Arc<Shared>,
    /// `None` once it is to end.
    logger: Option<AccessLogger>,
    thread: Option<JoinHandle<()>>,
}

impl AccessLogWriter {
    /// Starts it.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn({
                let shared = shared.clone();
                move || run(&shared, &lines)
            })?;
        let logger = AccessLogger {
            shared: shared.clone(),
            queue,
        };
        Ok(Self {
            shared,
            logger: Some(logger),
            thread: Some(thread),
        })
    }

    /// Where entries are handed in.
    ///
    /// # Panics
    /// Never: it is only taken when the writer is dropped.
    pub fn logger(&self) -> AccessLogger {
        self.logger.clone().expect("it is taken by drop alone")
    }

    /// What became of lines.
    pub fn stats(&self) -> &AccessLogStats {
        &self.shared.stats
    }

    /// Files are opened anew before the next line (SIGUSR1).
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
    }
}

impl Drop for AccessLogWriter {
    fn drop(&mut self) {
        self.logger = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer of access logs had panicked");
        }
    }
}

/// Lines gathered for one sink.
#[derive(Debug, Default)]
struct Batch {
    lines: u64,
    bytes: Vec<u8>,
}

fn run(shared: &Shared, lines: &Receiver<Line>) {
    let mut files = Files::default();
    let mut batches: HashMap<Sink, Batch> = HashMap::new();
    let gather = |line: Line, batches: &mut HashMap<Sink, Batch>| {
        let length = line.text.len() as u64;
        shared.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
        let batch = batches.entry(line.sink).or_default();
        batch.lines += 1;
        batch.bytes.extend_from_slice(&line.text);
    };
    loop {
        let ended = match lines.recv_timeout(LOOK) {
            Ok(line) => {
                gather(line, &mut batches);
                std::thread::sleep(GATHER);
                for line in lines.try_iter() {
                    gather(line, &mut batches);
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        if shared.reopen.swap(false, Ordering::Relaxed) {
            files.0.clear();
        }
        for (sink, batch) in batches.drain() {
            write(&sink, &batch, &mut files, &shared.stats);
        }
        if ended {
            return;
        }
    }
}

fn write(sink: &Sink, batch: &Batch, files: &mut Files, stats: &AccessLogStats) {
    let result = match sink {
        Sink::Stdout => io::stdout().lock().write_all(&batch.bytes),
        Sink::Stderr => io::stderr().lock().write_all(&batch.bytes),
        Sink::File(path) => files.append(path, &batch.bytes, stats),
    };
    let counter = match result {
        Ok(()) => &stats.written,
        Err(_) => &stats.failed,
    };
    counter.fetch_add(batch.lines, Ordering::Relaxed);
}

/// Files that are open, or could not be opened.
#[derive(Debug, Default)]
struct Files(HashMap<Arc<Path>, Open>);

#[derive(Debug)]
struct Open {
    /// `None`: it could not be opened.
    file: Option<File>,
    looked: Instant,
}

impl Files {
    fn append(&mut self, path: &Arc<Path>, bytes: &[u8], stats: &AccessLogStats) -> io::Result<()> {
        if let Some(open) = self.0.get_mut(path)
            && open.looked.elapsed() >= ROTATION
        {
            open.looked = Instant::now();
            if !open.file.as_ref().is_some_and(|file| is_at(file, path)) {
                self.0.remove(path);
            }
        }
        let open = self.0.entry(path.clone()).or_insert_with(|| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            if let Err(error) = &file {
                stats.reopen_failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(path = %path.display(), %error, "cannot open the access log; its lines are lost, and counted, until it can be opened");
            }
            Open {
                file: file.ok(),
                looked: Instant::now(),
            }
        });
        match &mut open.file {
            Some(file) => file.write_all(bytes),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Whether the path still leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}
