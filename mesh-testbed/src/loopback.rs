//! Addresses of loopback that no other process takes, for what has to listen on the machine
//! itself and perhaps again after a pause.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a descriptor may live in a process that was forked and has not executed anything yet.
const FORKED: Duration = Duration::from_secs(30);

/// The first port given. All are below the kernel's ephemeral ones.
const FIRST: u16 = 10_000;
/// Where the ephemeral ports of Linux start.
const EPHEMERAL: u16 = 32_768;

/// The upper half of 127.0.0.0/8, by process: pids have 22 bits.
pub fn address() -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f80_0000 | std::process::id() << 1)
}

/// A port of [`address`] that was not given before. Connections cannot take it in a pause of its
/// listener: they come from 127.0.0.1.
///
/// # Errors
/// All ports were given.
pub fn socket() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST);
    let next = |port: u16| (port < EPHEMERAL).then_some(port + 1);
    let port = NEXT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
        .ok()
        .context("this process was given all ports of its loopback address")?;
    Ok((address(), port).into())
}

/// Listens there, perhaps again: a listener that was closed lives on for a moment where another
/// thread of this process forked to start a program.
///
/// # Errors
/// Another listens there.
pub fn listen(at: SocketAddr) -> Result<TcpListener> {
    let deadline = Instant::now() + FORKED;
    loop {
        match TcpListener::bind(at) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => bail!("cannot listen on {at}: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_equal_and_each_can_be_listened_on() {
        let sockets = [socket().unwrap(), socket().unwrap()];
        assert_ne!(sockets[0], sockets[1]);
        for socket in sockets {
            assert!(socket.ip().is_loopback());
            drop(listen(socket).unwrap());
            listen(socket).unwrap();
        }
    }
}
