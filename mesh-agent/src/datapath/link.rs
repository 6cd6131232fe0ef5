//! bpf(2) commands for programs that outlive the agent, which aya does not offer.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_LINK_UPDATE: libc::c_long = 29;

/// Opens what is pinned at a path (`BPF_OBJ_GET`).
///
/// # Errors
/// Nothing is, or it may not be opened.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` this command reads.
    #[repr(C)]
    struct Attr {
        path: u64,
        fd: u32,
        flags: u32,
    }

    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = Attr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the attributes and the path they point to live during the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &attr) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an attached link run another program, with no moment without one (`BPF_LINK_UPDATE`).
///
/// # Errors
/// What the link was attached to is gone, or the program is of another kind.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// The part of `union bpf_attr` this command reads.
    #[repr(C)]
    struct Attr {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }

    let attr = Attr {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attributes live during the call and point to nothing.
    unsafe { bpf(BPF_LINK_UPDATE, &attr) }?;
    Ok(())
}

/// The part of `union bpf_attr` that attaching needs.
#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Attaches a program to a map, in place of the one that is attached (`BPF_PROG_ATTACH`). It stays
/// there as long as somebody holds or pins the map.
///
/// # Errors
/// The map takes no such program.
pub(super) fn prog_attach(map: BorrowedFd<'_>, program: RawFd, kind: u32) -> io::Result<()> {
    let attr = AttachAttr {
        target: map.as_raw_fd() as u32,
        program: program as u32,
        kind,
        flags: 0,
    };
    // SAFETY: the attributes live during the call and point to nothing.
    unsafe { bpf(BPF_PROG_ATTACH, &attr) }?;
    Ok(())
}

/// # Safety
/// What `attr` points to must be what the command expects.
unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the size is that of the value.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
