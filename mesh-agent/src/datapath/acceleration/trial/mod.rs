//! Tries on sockets of our own what the kernel does with accelerated ones: a trial for each thing
//! that an application may count on.

mod calls;
mod stage;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::MsgFlags;

use calls::{Epoll, readable_bytes, receive, send, splice_to_pipe};
use stage::{LARGE, SMALL, Stage, Twins};

/// Nothing on loopback takes longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what should be there at once, or should never be.
const MOMENT: Duration = Duration::from_millis(100);

/// More than buffers take.
const FULL: u64 = 32 << 20;

/// Who would notice a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Applications that use what few do.
    Some,
    /// Any application.
    Everybody,
}

/// What one trial found.
#[derive(Debug)]
pub struct Finding {
    /// What was tried.
    pub name: &'static str,
    /// Who would notice.
    pub weight: Weight,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
}

type Try = fn(&mut Stage, u64) -> Result<()>;

/// Short ones first.
const TRIALS: [(&str, Weight, Try); 11] = [
    ("FIONREAD", Weight::Everybody, fionread),
    ("epoll edges", Weight::Everybody, epoll_edges),
    ("short reads", Weight::Everybody, short_reads),
    ("blocking reads", Weight::Everybody, blocking_reads),
    ("MSG_PEEK", Weight::Everybody, peek),
    ("half-close", Weight::Everybody, half_close),
    ("close", Weight::Everybody, close),
    ("splice(2)", Weight::Some, splice),
    ("urgent bytes", Weight::Some, urgent),
    ("MSG_WAITALL", Weight::Some, wait_all),
    ("order and content, both ways", Weight::Everybody, streams),
];

/// Everything, with so many bytes each way. A failure that weighs as much as `last` is the last
/// trial.
pub(super) fn run(bytes: u64, last: Option<Weight>) -> Result<Vec<Finding>> {
    let mut stage = Stage::set()?;
    let mut findings = Vec::new();
    let all = TRIALS.into_iter().map(|(name, weight, try_out)| {
        let failure = try_out(&mut stage, bytes).err();
        Finding {
            name,
            weight,
            failure: failure.map(|error| format!("{error:#}")),
        }
    });
    for finding in all {
        let fails = last.is_some_and(|last| finding.failure.is_some() && finding.weight >= last);
        findings.push(finding);
        if fails {
            break;
        }
    }
    Ok(findings)
}

/// Waits a moment until the condition holds.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + MOMENT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
    Ok(())
}

fn fionread(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    let Twins { client, server, .. } = &mut twins;
    client.write_all(&[1; SMALL])?;
    until("redirected bytes are not counted", || {
        Ok(readable_bytes(server)? == SMALL)
    })?;
    client.write_all(&[2; LARGE])?;
    until("bytes that came by TCP are not counted", || {
        Ok(readable_bytes(server)? == SMALL + LARGE)
    })?;
    let mut all = vec![0; SMALL + LARGE];
    server.read_exact(&mut all)?;
    ensure!(readable_bytes(server)? == 0, "bytes are counted twice");
    twins.ensure_redirected(stage)
}

/// As nginx reads: until an error says that there is no more, and then not before the next edge.
fn epoll_edges(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    let epoll = Epoll::edges(&twins.server)?;
    for size in [SMALL, SMALL, SMALL, LARGE, SMALL, LARGE] {
        twins.client.write_all(&vec![7; size])?;
        let mut read = 0;
        while read < size {
            ensure!(epoll.wait(PATIENCE)?, "no edge for {size} bytes");
            let mut buffer = [0; LARGE];
            while let Some(more) = receive(&twins.server, &mut buffer, MsgFlags::MSG_DONTWAIT)? {
                ensure!(more > 0, "the stream ended");
                read += more;
            }
        }
        ensure!(!epoll.wait(MOMENT)?, "an edge without bytes");
    }
    twins.ensure_redirected(stage)
}

/// Event loops such as nginx's and tokio's take a read that leaves room in the buffer for the last
/// one before the next edge.
fn short_reads(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    let epoll = Epoll::edges(&twins.server)?;
    twins.client.write_all(&[12; SMALL])?;
    twins.client.write_all(&[13; LARGE])?;
    let mut read = 0;
    while read < SMALL + LARGE {
        ensure!(
            epoll.wait(MOMENT)?,
            "no edge after a short read, although {} bytes are left; nginx and programs with \
             tokio would wait for ever where a stream turns to bulk",
            SMALL + LARGE - read
        );
        let mut buffer = [0; 2 * LARGE];
        read += receive(&twins.server, &mut buffer, MsgFlags::MSG_DONTWAIT)?.unwrap_or_default();
    }
    twins.ensure_redirected(stage)
}

/// A blocking read waits for bytes, although the socket wakes for other reasons, too: here because
/// another thread's writes find room.
fn blocking_reads(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    let Twins { client, server, .. } = &mut twins;
    let server = &*server;
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buffer = [0; SMALL];
            receive(server, &mut buffer, MsgFlags::empty())
        });
        let writer = scope.spawn(|| write_numbered(server, FULL));
        let drained = read_numbered(client, FULL);
        let sent = client.write_all(&[14; SMALL]);
        let (read, written) = (reader.join(), writer.join());
        drained?;
        sent?;
        written.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        read.map_err(|_| anyhow::anyhow!("the reader panicked"))?
            .map_err(anyhow::Error::from)
    })?;
    ensure!(
        read == Some(SMALL),
        "a read returns EAGAIN before there are bytes; programs that read in one thread and write \
         in another would take that for an error"
    );
    twins.ensure_redirected(stage)
}

fn peek(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    twins.client.write_all(&[3; SMALL])?;
    let mut buffer = [0; LARGE];
    for flags in [MsgFlags::MSG_PEEK, MsgFlags::MSG_PEEK, MsgFlags::empty()] {
        let read = receive(&twins.server, &mut buffer, flags)?;
        ensure!(read == Some(SMALL), "{read:?} bytes");
    }
    twins.ensure_redirected(stage)
}

fn half_close(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    let Twins { client, server, .. } = &mut twins;
    client.write_all(&[4; SMALL])?;
    client.shutdown(Shutdown::Write)?;
    let mut all = Vec::new();
    server.read_to_end(&mut all)?;
    ensure!(all.len() == SMALL, "{} bytes before the end", all.len());
    let late = send(client, &[5; SMALL], MsgFlags::MSG_NOSIGNAL);
    ensure!(late.is_err(), "a write after shutdown(2) succeeds");
    server.write_all(&[6; SMALL])?;
    let mut answer = [0; SMALL];
    client.read_exact(&mut answer)?;
    twins.ensure_redirected(stage)
}

/// What was sent before close(2) is read after it, in both ways of sending.
fn close(stage: &mut Stage, _bytes: u64) -> Result<()> {
    for sizes in [&[SMALL][..], &[SMALL, LARGE], &[LARGE]] {
        let twins = stage.twins()?;
        let Twins {
            mut client,
            mut server,
            ..
        } = twins;
        for &size in sizes {
            client.write_all(&vec![8; size])?;
        }
        drop(client);
        let mut all = Vec::new();
        server.read_to_end(&mut all)?;
        ensure!(
            all.len() == sizes.iter().sum::<usize>(),
            "{} bytes of {sizes:?}",
            all.len()
        );
    }
    Ok(())
}

fn urgent(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let mut twins = stage.twins()?;
    twins.client.write_all(&[9; SMALL])?;
    send(&twins.client, b"!", MsgFlags::MSG_OOB)?;
    twins.client.write_all(&[9; SMALL])?;
    ensure!(
        calls::has_urgent(&twins.server, MOMENT)?,
        "nothing urgent arrived"
    );
    let mut byte = [0];
    let read = receive(&twins.server, &mut byte, MsgFlags::MSG_OOB)?;
    ensure!(read == Some(1) && byte == *b"!", "{byte:?} is urgent");
    let mut rest = [0; 2 * SMALL];
    twins.server.read_exact(&mut rest)?;
    ensure!(rest == [9; 2 * SMALL], "it is among the other bytes, too");
    Ok(())
}

fn splice(stage: &mut Stage, _bytes: u64) -> Result<()> {
    for size in [SMALL, LARGE] {
        let mut twins = stage.twins()?;
        twins.client.write_all(&vec![10; size])?;
        twins.server.set_nonblocking(true)?;
        let mut moved = 0;
        let deadline = Instant::now() + MOMENT;
        while moved < size {
            moved += splice_to_pipe(&twins.server, size)?;
            if Instant::now() > deadline {
                bail!(
                    "it sees {moved} of {size} bytes; programs that do so wait for ever, such as \
                     proxies written in Go, and HAProxy with splice options"
                );
            }
        }
    }
    Ok(())
}

fn wait_all(stage: &mut Stage, _bytes: u64) -> Result<()> {
    let twins = stage.twins()?;
    let (client, server) = (&twins.client, &twins.server);
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buffer = [0; 2 * SMALL];
            receive(server, &mut buffer, MsgFlags::MSG_WAITALL)
        });
        send(client, &[11; SMALL], MsgFlags::empty())?;
        std::thread::sleep(MOMENT);
        send(client, &[11; SMALL], MsgFlags::empty())?;
        Ok::<_, anyhow::Error>(reader.join())
    })?;
    let read = read.map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(
        read == Some(2 * SMALL),
        "it returns with {} of {} bytes",
        read.unwrap_or_default(),
        2 * SMALL
    );
    Ok(())
}

/// Numbered bytes both ways at once, in messages of many sizes that turn to bulk on the way.
fn streams(stage: &mut Stage, bytes: u64) -> Result<()> {
    let twins = stage.twins()?;
    let (client, server) = (&twins.client, &twins.server);
    std::thread::scope(|scope| {
        let ways = [(client, server), (server, client)].map(|(from, to)| {
            (
                scope.spawn(move || write_numbered(from, bytes)),
                scope.spawn(move || read_numbered(to, bytes)),
            )
        });
        for (writer, reader) in ways {
            for (what, thread) in [("write", writer), ("read", reader)] {
                let result = thread.join();
                result
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))?
                    .context(what)?;
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    twins.ensure_redirected(stage)
}

/// The byte at a place of the stream.
fn numbered(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn write_numbered(mut to: &std::net::TcpStream, bytes: u64) -> Result<()> {
    let mut at = 0;
    let mut buffer = Vec::with_capacity(LARGE);
    while at < bytes {
        // Small at first: from 2 bytes to `SMALL`.
        let size = if at < 16 * SMALL as u64 {
            2 + at % (SMALL as u64 - 2)
        } else {
            LARGE as u64
        };
        let end = bytes.min(at + size);
        buffer.clear();
        buffer.extend((at..end).map(numbered));
        to.write_all(&buffer)?;
        at = end;
    }
    Ok(())
}

fn read_numbered(mut from: &std::net::TcpStream, bytes: u64) -> Result<()> {
    let mut at = 0;
    let mut buffer = vec![0; LARGE];
    while at < bytes {
        let read = from.read(&mut buffer)?;
        ensure!(read > 0, "the stream ends at {at}");
        let wrong = (at..).zip(&buffer[..read]);
        if let Some((place, _)) = wrong.clone().find(|(at, byte)| numbered(*at) != **byte) {
            bail!("byte {place} is not what was sent there");
        }
        at += read as u64;
    }
    Ok(())
}
