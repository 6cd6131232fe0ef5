//! `talk`: sends bytes as they are told and says what came back, one connection a line.

use std::io::{BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_testbed::http1::responses;
use mesh_testbed::wire::{End, Heard, Say, bytes_of, latin1};

pub(crate) fn run() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let say: Say = serde_json::from_str(&line?)?;
        println!("{}", serde_json::to_string(&talk(&say))?);
    }
    Ok(())
}

fn talk(say: &Say) -> Heard {
    let mut received = Vec::new();
    let end = exchange(say, &mut received).unwrap_or(End::Reset);
    Heard {
        received: latin1(&received),
        end,
    }
}

/// An error is a reset, or a refusal.
fn exchange(say: &Say, received: &mut Vec<u8>) -> std::io::Result<End> {
    let patience = Duration::from_millis(say.patience_ms);
    let mut stream = TcpStream::connect_timeout(&say.to, patience)?;
    stream.set_nodelay(true)?;
    for (i, part) in say.parts.iter().enumerate() {
        if i > 0 {
            acknowledged(&stream)?;
        }
        // The peer may have seen enough and closed; what it said is still to be read.
        if stream.write_all(&bytes_of(part)).is_err() {
            break;
        }
    }
    let deadline = Instant::now() + patience;
    let mut buffer = [0; 65536];
    loop {
        if responses(received, &say.methods, false).1 {
            return Ok(End::Answered);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(End::Silent);
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(End::Closed),
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(End::Silent);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until everything written arrived at the peer, so that the next write is a segment of
/// its own.
fn acknowledged(stream: &TcpStream) -> std::io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut queued) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        if queued == 0 || Instant::now() > deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}
