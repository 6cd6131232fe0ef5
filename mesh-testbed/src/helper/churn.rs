//! `churn`: makes connections and ends them at once, in all the ways connections end.

use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args as ClapArgs;
use mesh_testbed::wire::{Churned, Ending};
use socket2::{Domain, Protocol, Socket, Type};

use super::connect::dissolve;
use super::listen::print_line;

/// A blocking connect(2) does not wait longer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Where to.
    to: SocketAddr,
    /// How connections end.
    #[arg(long)]
    ending: Ending,
    /// How many connections.
    #[arg(long)]
    count: usize,
    /// How many threads make them.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Multipath TCP.
    #[arg(long)]
    mptcp: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let mut all = Churned::default();
    std::thread::scope(|scope| {
        let share = |thread| (args.count + thread) / args.threads;
        let threads: Vec<_> = (0..args.threads)
            .map(|thread| scope.spawn(move || churn(args, share(thread))))
            .collect();
        for thread in threads {
            let part = thread.join().expect("a thread that only counts errors");
            all.made += part.made;
            for (errno, times) in part.failed {
                *all.failed.entry(errno).or_default() += times;
            }
            all.slowest_failure_us = all.slowest_failure_us.max(part.slowest_failure_us);
        }
    });
    all.took_ms = start.elapsed().as_millis() as u64;
    print_line(&all)
}

fn churn(args: &Args, count: usize) -> Churned {
    let mut churned = Churned::default();
    for _ in 0..count {
        let start = Instant::now();
        match one(args) {
            Ok(()) => churned.made += 1,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                *churned.failed.entry(errno).or_default() += 1;
                let took = start.elapsed().as_micros() as u64;
                churned.slowest_failure_us = churned.slowest_failure_us.max(took);
            }
        }
    }
    churned
}

fn one(args: &Args) -> io::Result<()> {
    let protocol = if args.mptcp {
        Protocol::MPTCP
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(Domain::for_address(args.to), Type::STREAM, Some(protocol))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let to = args.to.into();
    match args.ending {
        Ending::Reset => {
            socket.connect(&to)?;
            reset(&socket)
        }
        Ending::Close => socket.connect(&to),
        Ending::HalfClose => {
            socket.connect(&to)?;
            socket.shutdown(Shutdown::Write)?;
            (&socket).read_to_end(&mut Vec::new()).map(|_| ())
        }
        Ending::Abandon => {
            socket.set_nonblocking(true)?;
            in_progress(socket.connect(&to))
        }
        Ending::Dissolve => {
            socket.connect(&to)?;
            dissolve(&socket)?;
            socket.connect(&to)?;
            reset(&socket)
        }
        Ending::Retry => {
            // The first fails for a service without a living endpoint, and so may the second.
            if socket.connect(&to).is_err() {
                socket.connect(&to)?;
            }
            reset(&socket)
        }
        Ending::Duplicate => {
            socket.connect(&to)?;
            let other = socket.try_clone()?;
            reset(&socket)?;
            drop(socket);
            let mut byte = [MaybeUninit::uninit()];
            other.set_nonblocking(true)?;
            match other.peek(&mut byte) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                _ => Ok(()),
            }
        }
        Ending::FastOpen => {
            socket.send_to_with_flags(b"hello", &to, libc::MSG_FASTOPEN)?;
            reset(&socket)
        }
    }
}

/// The close that follows sends RST, and leaves nothing in TIME_WAIT.
fn reset(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}

fn in_progress(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}
