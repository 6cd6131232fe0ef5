//! A number of our own among all testbeds of the machine, from which addresses follow.

use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Holds the locks; on tmpfs, so a reboot clears it.
const LOCKS: &str = "/run/mesh-testbed";
const TESTBEDS: u16 = 1024;

/// Addresses of one testbed. The number is held by a file lock, which the kernel gives back
/// when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lease {
    number: u16,
    _lock: Flock<File>,
}

impl Lease {
    pub(crate) fn take() -> Result<Self> {
        for number in 0..TESTBEDS {
            if let Ok(lock) =
                Flock::lock(open(&number.to_string())?, FlockArg::LockExclusiveNonblock)
            {
                let lease = Self {
                    number,
                    _lock: lock,
                };
                if !routed_already(lease.pod4(0))? {
                    return Ok(lease);
                }
            }
        }
        bail!("all {TESTBEDS} testbed numbers in {LOCKS} are taken")
    }

    /// Pods have 10.128.0.0/12, a /22 a testbed. Number 0 is the subnet itself, 1 the bridge.
    pub(crate) fn pod4(&self, host: u16) -> Ipv4Addr {
        debug_assert!(host < 1024, "a testbed has a /22");
        Ipv4Addr::from_bits(0x0a80_0000 | u32::from(self.number) << 10 | u32::from(host))
    }

    /// Pods have fd6d:6573:68:N::/64.
    pub(crate) fn pod6(&self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd6d, 0x6573, 0x68, self.number, 0, 0, 0, host)
    }

    /// Services have 10.96.0.0/14, a /24 a testbed. No pod has a route to them.
    pub(crate) fn service4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a60_0000 | u32::from(self.number) << 8 | u32::from(host))
    }

    /// Services have fd6d:6573:69:N::/64. No pod has a route to them.
    pub(crate) fn service6(&self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd6d, 0x6573, 0x69, self.number, 0, 0, 0, host)
    }
}

/// One at a time among all processes: sweeping and mounting.
pub(crate) fn alone() -> Result<Flock<File>> {
    Flock::lock(open("sweep")?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {LOCKS}/sweep"))
}

fn open(name: &str) -> Result<File> {
    std::fs::create_dir_all(LOCKS).with_context(|| format!("cannot create {LOCKS}"))?;
    let path = Path::new(LOCKS).join(name);
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Whether something else on this machine uses the addresses (the default route aside).
fn routed_already(subnet: Ipv4Addr) -> Result<bool> {
    let table =
        std::fs::read_to_string("/proc/net/route").context("cannot read /proc/net/route")?;
    Ok(table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |index: usize| {
            fields
                .get(index)
                .and_then(|field| u32::from_str_radix(field, 16).ok())
                .map(u32::swap_bytes)
        };
        match (hex(1), hex(7)) {
            (Some(destination), Some(mask)) if mask != 0 => {
                let common = mask & 0xffff_fc00;
                destination & common == subnet.to_bits() & common
            }
            _ => false,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn testbeds_at_the_same_time_have_different_addresses() {
        if !crate::is_root() {
            return crate::skipped("needs root");
        }
        let (a, b) = (Lease::take().unwrap(), Lease::take().unwrap());
        assert_ne!(a.pod4(2), b.pod4(2));
        assert_ne!(a.pod6(2), b.pod6(2));
        assert_ne!(a.service4(1), b.service4(1));
    }
}
