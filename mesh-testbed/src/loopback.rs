//! Addresses of loopback that no other process takes, for what has to listen on the machine
//! itself and perhaps again after a pause.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context as _, Result};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_equal_and_each_can_be_listened_on() {
        let sockets = [socket().unwrap(), socket().unwrap()];
        assert_ne!(sockets[0], sockets[1]);
        for socket in sockets {
            assert!(socket.ip().is_loopback());
            std::net::TcpListener::bind(socket).unwrap();
        }
    }
}
