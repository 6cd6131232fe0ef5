//! Another tool's BPF programs and maps, beside the agent's.
//!
//! They are made with bpf(2) alone, as tools that know nothing of the agent make theirs.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_QUERY: libc::c_long = 16;

const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;
const HASH: u32 = 1;
/// Enough for every command here; what a command does not know is zero.
const ATTRIBUTES: usize = 128;

/// How a program shares its cgroup with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// With any number of programs (`BPF_F_ALLOW_MULTI`).
    Multi,
    /// With nobody.
    Alone,
}

/// A `cgroup/connect4` program that refuses one port with EPERM and lets all else pass. Detached
/// when dropped.
#[derive(Debug)]
pub struct ForeignConnect4 {
    program: OwnedFd,
    cgroup: File,
}

impl ForeignConnect4 {
    /// Loads it and attaches it to a cgroup.
    ///
    /// # Errors
    /// The kernel refuses one or the other.
    pub fn attach(cgroup: &Path, refused: u16, share: Share) -> Result<Self> {
        let program = load(refused).context("cannot load a program")?;
        let cgroup = File::open(cgroup).context("cannot open the cgroup")?;
        let flags = match share {
            Share::Multi => 2,
            Share::Alone => 0,
        };
        let mut attributes = [0; ATTRIBUTES];
        put(&mut attributes, 0, cgroup.as_raw_fd() as u32);
        put(&mut attributes, 4, program.as_raw_fd() as u32);
        put(&mut attributes, 8, CGROUP_INET4_CONNECT);
        put(&mut attributes, 12, flags);
        bpf(PROG_ATTACH, &mut attributes).context("cannot attach a program")?;
        Ok(Self { program, cgroup })
    }
}

impl Drop for ForeignConnect4 {
    fn drop(&mut self) {
        let mut attributes = [0; ATTRIBUTES];
        put(&mut attributes, 0, self.cgroup.as_raw_fd() as u32);
        put(&mut attributes, 4, self.program.as_raw_fd() as u32);
        put(&mut attributes, 8, CGROUP_INET4_CONNECT);
        // The cgroup may be gone, and the program with it.
        let _ = bpf(PROG_DETACH, &mut attributes);
    }
}

/// How many `cgroup/connect4` programs are attached to a cgroup itself.
///
/// # Errors
/// The cgroup cannot be asked.
pub fn connect4_programs(cgroup: &Path) -> Result<u32> {
    let cgroup = File::open(cgroup).context("cannot open the cgroup")?;
    let mut ids = [0_u32; 64];
    let mut attributes = [0; ATTRIBUTES];
    put(&mut attributes, 0, cgroup.as_raw_fd() as u32);
    put(&mut attributes, 4, CGROUP_INET4_CONNECT);
    put_pointer(&mut attributes, 16, ids.as_mut_ptr() as u64);
    put(&mut attributes, 24, ids.len() as u32);
    bpf(PROG_QUERY, &mut attributes).context("cannot ask for the programs of a cgroup")?;
    let count: [u8; 4] = attributes[24..28].try_into().context("four bytes")?;
    Ok(u32::from_ne_bytes(count))
}

/// Pins an empty hash map with such keys and values.
///
/// # Errors
/// The kernel refuses it, or the path is not in a bpf file system.
pub fn pin_map(path: &Path, key_bytes: u32, value_bytes: u32) -> Result<()> {
    let mut attributes = [0; ATTRIBUTES];
    put(&mut attributes, 0, HASH);
    put(&mut attributes, 4, key_bytes);
    put(&mut attributes, 8, value_bytes);
    put(&mut attributes, 12, 1);
    let map = bpf(MAP_CREATE, &mut attributes).context("cannot make a map")?;
    // SAFETY: the kernel has just made this descriptor for us.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = [0; ATTRIBUTES];
    put_pointer(&mut attributes, 0, path.as_ptr() as u64);
    put(&mut attributes, 8, map.as_raw_fd() as u32);
    bpf(OBJ_PIN, &mut attributes).context("cannot pin a map")?;
    Ok(())
}

/// `if (ctx->user_port == htons(refused)) return 0; return 1;`
fn load(refused: u16) -> io::Result<OwnedFd> {
    let instruction = |code: u8, registers: u8, offset: i16, immediate: u32| -> u64 {
        u64::from(code)
            | u64::from(registers) << 8
            | u64::from(offset as u16) << 16
            | u64::from(immediate) << 32
    };
    let program = [
        // w2 = *(u32 *)(r1 + 24)
        instruction(0x61, 0x12, 24, 0),
        // w0 = 1
        instruction(0xb4, 0x00, 0, 1),
        // if w2 != refused goto +1
        instruction(0x56, 0x02, 1, u32::from(refused.to_be())),
        // w0 = 0
        instruction(0xb4, 0x00, 0, 0),
        // exit
        instruction(0x95, 0x00, 0, 0),
    ];
    let mut attributes = [0; ATTRIBUTES];
    put(&mut attributes, 0, CGROUP_SOCK_ADDR);
    put(&mut attributes, 4, program.len() as u32);
    put_pointer(&mut attributes, 8, program.as_ptr() as u64);
    put_pointer(&mut attributes, 16, c"GPL".as_ptr() as u64);
    // expected_attach_type
    put(&mut attributes, 68, CGROUP_INET4_CONNECT);
    let fd = bpf(PROG_LOAD, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn put(attributes: &mut [u8; ATTRIBUTES], at: usize, value: u32) {
    attributes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn put_pointer(attributes: &mut [u8; ATTRIBUTES], at: usize, value: u64) {
    attributes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

fn bpf(command: libc::c_long, attributes: &mut [u8; ATTRIBUTES]) -> io::Result<i32> {
    // SAFETY: whatever the attributes point to is a local of the caller, which lives on.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), ATTRIBUTES) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
