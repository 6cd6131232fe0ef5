//! A name server whose records a test sets while it runs.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How soon it notices that it is dropped.
const TICK: Duration = Duration::from_millis(20);
const HEADER: usize = 12;
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// Answers on loopback, port 53, to whoever is told of it by [`Self::resolv_conf`]. Ends when
/// dropped.
#[derive(Debug)]
pub struct NameServer {
    zone: Zone,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

type Zone = Arc<Mutex<HashMap<String, Answer>>>;

#[derive(Debug, Clone)]
enum Answer {
    Addresses(Vec<IpAddr>),
    Failure,
}

impl NameServer {
    /// One that knows no name yet.
    ///
    /// # Errors
    /// No address of 127.77.0.0/16 has a free port 53.
    pub fn start() -> Result<Self> {
        let socket = (1..=u8::MAX)
            .find_map(|last| UdpSocket::bind((Ipv4Addr::new(127, 77, 0, last), 53)).ok());
        let Some(socket) = socket else {
            bail!("port 53 is taken on all of 127.77.0.0/24, or may not be bound");
        };
        socket.set_read_timeout(Some(TICK))?;
        let dir = tempfile::tempdir().context("cannot make a directory")?;
        let server = socket.local_addr()?.ip();
        // Whoever asks gives up soon, so that tests of failures are short.
        let text = format!("nameserver {server}\noptions timeout:1 attempts:1 ndots:1\n");
        std::fs::write(dir.path().join("resolv.conf"), text)?;
        let (zone, ended) = (Zone::default(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (zone, ended) = (zone.clone(), ended.clone());
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    // Timeouts, and clients that are gone.
                    let _ = answer_one(&socket, &zone);
                }
            })
        };
        Ok(Self {
            zone,
            ended,
            thread: Some(thread),
            dir,
        })
    }

    /// A `resolv.conf` that names it.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    /// From now on the name has these addresses, in this order. No address: it exists without.
    pub fn set(&self, name: &str, addresses: impl IntoIterator<Item = impl Into<IpAddr>>) {
        let addresses = addresses.into_iter().map(Into::into).collect();
        self.put(name, Answer::Addresses(addresses));
    }

    /// From now on asking for the name fails (SERVFAIL).
    pub fn fail(&self, name: &str) {
        self.put(name, Answer::Failure);
    }

    /// From now on there is no such name (NXDOMAIN).
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    fn put(&self, name: &str, answer: Answer) {
        self.lock().insert(name.to_owned(), answer);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Answer>> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_one(socket: &UdpSocket, zone: &Zone) -> io::Result<()> {
    let mut query = [0; 512];
    let (length, client): (usize, SocketAddr) = socket.recv_from(&mut query)?;
    let Some(question) = Question::parse(&query[..length]) else {
        return Ok(());
    };
    let answer = zone
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&question.name)
        .cloned();
    socket.send_to(&question.answer(&query[..length], answer), client)?;
    Ok(())
}

/// The one question of a query.
struct Question {
    name: String,
    kind: u16,
    /// Where it ends in the message.
    end: usize,
}

impl Question {
    fn parse(message: &[u8]) -> Option<Self> {
        let mut at = HEADER;
        let mut labels = Vec::new();
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = message.get(at..at + length)?;
            labels.push(String::from_utf8_lossy(label).to_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        let end = at + 4;
        (message.len() >= end).then(|| Self {
            name: labels.join("."),
            kind,
            end,
        })
    }

    fn answer(&self, query: &[u8], answer: Option<Answer>) -> Vec<u8> {
        const A: u16 = 1;
        const AAAA: u16 = 28;
        let (code, addresses) = match answer {
            Some(Answer::Addresses(addresses)) => (NO_ERROR, addresses),
            Some(Answer::Failure) => (SERVER_FAILURE, Vec::new()),
            None => (NO_SUCH_NAME, Vec::new()),
        };
        let records: Vec<Vec<u8>> = addresses
            .into_iter()
            .filter_map(|address| match (address, self.kind) {
                (IpAddr::V4(ip), A) => Some(ip.octets().to_vec()),
                (IpAddr::V6(ip), AAAA) => Some(ip.octets().to_vec()),
                _ => None,
            })
            .collect();
        let mut message = query[..2].to_vec();
        // A response, authoritative, recursion desired and available.
        message.extend([0x85, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        message.extend(&query[HEADER..self.end]);
        for record in records {
            // The name is that at offset 12; class IN; valid for a second.
            message.extend([0xc0, HEADER as u8]);
            message.extend(self.kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 1, 0, record.len() as u8]);
            message.extend(record);
        }
        message
    }
}
