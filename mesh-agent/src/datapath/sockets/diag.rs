//! `sock_diag`: lists a namespace's TCP sockets with what the kernel programs know of them, and
//! closes them. The same the `ss` program uses, so nothing is paid while nobody asks.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use mesh_common::{SkState, sk_flags};

use crate::workload::Netns;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
/// The upper bits of an attribute's type are flags.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct inet_diag_msg`
const MESSAGE: usize = 72;
/// `struct inet_diag_sockid` in it, and its length.
const SOCKET_ID: (usize, usize) = (4, 48);
/// Every state but LISTEN, TIME_WAIT and CLOSE.
const STATES: u32 = 0xfff & !(1 << LISTEN) & !(1 << TIME_WAIT) & !(1 << CLOSE) & !1;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// A socket as the kernel names it.
#[derive(Debug, Clone)]
pub(super) struct SocketId {
    family: u8,
    /// `struct inet_diag_sockid`
    id: [u8; SOCKET_ID.1],
    ends: (SocketAddr, SocketAddr),
}

impl SocketId {
    /// Its own and the other end; v4-mapped addresses come out as IPv4.
    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        self.ends
    }
}

/// A connection that the connect hook classified.
#[derive(Debug, Clone)]
pub(super) struct Live {
    /// Its name.
    pub(super) socket: SocketId,
    /// The socket's cookie.
    pub(super) cookie: u64,
    /// What the hook knows of it.
    pub(super) state: SkState,
    /// Bytes of the application that the peer acknowledged.
    pub(super) sent_bytes: u64,
    /// Bytes the peer sent.
    pub(super) received_bytes: u64,
    /// Smoothed round-trip time.
    pub(super) srtt_us: u32,
    /// Segments sent again.
    pub(super) retransmits: u32,
}

/// A namespace's sockets.
#[derive(Debug)]
pub(super) struct SocketDiag {
    netlink: OwnedFd,
    /// The map `SK`.
    storage: RawFd,
}

impl SocketDiag {
    /// `storage` is the map whose values are wanted; it must stay open.
    pub(super) fn open(netns: &Netns, storage: RawFd) -> io::Result<Self> {
        let fd = netns.enter(|| {
            // SAFETY: plain numbers.
            let fd = unsafe {
                libc::socket(
                    libc::AF_NETLINK,
                    libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                    libc::NETLINK_SOCK_DIAG,
                )
            };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(fd)
        })??;
        Ok(Self {
            // SAFETY: the kernel has just made it for us.
            netlink: unsafe { OwnedFd::from_raw_fd(fd) },
            storage,
        })
    }

    /// Connections of both families that have an entry in the map.
    pub(super) fn connections(&self) -> io::Result<Vec<Live>> {
        let mut all = Vec::new();
        self.dump(STATES, true, |body| all.extend(live(body)))?;
        Ok(all)
    }

    /// Connections, whoever made them.
    pub(super) fn all(&self) -> io::Result<Vec<SocketId>> {
        let mut all = Vec::new();
        self.dump(STATES, false, |body| all.extend(socket(body)))?;
        Ok(all)
    }

    /// Ports that somebody listens on.
    pub(super) fn listening(&self) -> io::Result<HashSet<u16>> {
        let mut ports = HashSet::new();
        self.dump(1 << LISTEN, false, |body| {
            ports.extend(socket(body).map(|socket| socket.ends.0.port()));
        })?;
        Ok(ports)
    }

    /// Resets a connection.
    pub(super) fn destroy(&self, socket: &SocketId) -> io::Result<()> {
        let mut request = Request::new(SOCK_DESTROY, libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        request.socket(socket.family, 0, STATES, &socket.id);
        self.send(&request.finish())?;
        let mut result = Ok(());
        self.receive(|kind, body| {
            if kind == libc::NLMSG_ERROR as u16 {
                let code = i32::from_ne_bytes(array(body, 0).unwrap_or_default());
                if code != 0 {
                    result = Err(io::Error::from_raw_os_error(-code));
                }
            }
            true
        })?;
        result
    }

    /// Sockets of both families in these states, with what the programs know if that is wanted.
    fn dump(&self, states: u32, known: bool, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.dump_family(family as u8, states, known, &mut each)?;
        }
        Ok(())
    }

    fn dump_family(
        &self,
        family: u8,
        states: u32,
        known: bool,
        each: &mut impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        let mut request = Request::new(SOCK_DIAG_BY_FAMILY, flags);
        let information = u8::from(known) << (INET_DIAG_INFO - 1);
        request.socket(family, information, states, &[0; SOCKET_ID.1]);
        if known {
            let map = (self.storage as u32).to_ne_bytes();
            let nested = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map);
            let kind = INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED;
            request.bytes.extend(attribute(kind, &nested));
        }
        self.send(&request.finish())?;
        let mut failed = Ok(());
        self.receive(|kind, body| {
            if kind == libc::NLMSG_DONE as u16 {
                return true;
            }
            if kind == libc::NLMSG_ERROR as u16 {
                let code = i32::from_ne_bytes(array(body, 0).unwrap_or_default());
                failed = Err(io::Error::from_raw_os_error(-code));
                return true;
            }
            each(body);
            false
        })?;
        failed
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the bytes live through the call.
        let sent = unsafe {
            libc::send(
                self.netlink.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Hands over messages until one is said to be the last.
    fn receive(&self, mut each: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            // SAFETY: the kernel writes at most the buffer's length.
            let length = unsafe {
                libc::recv(
                    self.netlink.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            let length = match usize::try_from(length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    return Err(error);
                }
            };
            let mut rest = &buffer[..length];
            while let (Some(size), Some(kind)) = (array(rest, 0), array(rest, 4)) {
                let size = u32::from_ne_bytes(size) as usize;
                let Some(body) = rest.get(HEADER..size) else {
                    break;
                };
                if each(u16::from_ne_bytes(kind), body) {
                    return Ok(());
                }
                rest = rest.get(align(size)..).unwrap_or_default();
            }
        }
    }
}

/// A netlink message on its way out.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16).to_ne_bytes());
        Self { bytes }
    }

    /// `struct inet_diag_req_v2`
    fn socket(&mut self, family: u8, information: u8, states: u32, id: &[u8]) {
        let protocol = libc::IPPROTO_TCP as u8;
        self.bytes.extend([family, protocol, information, 0]);
        self.bytes.extend(states.to_ne_bytes());
        self.bytes.extend(id);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// `struct nlattr` and its value.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(align(length));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(align(length), 0);
    bytes
}

/// The values of attributes, by type.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(array(rest, 0)?));
        let kind = u16::from_ne_bytes(array(rest, 2)?) & ATTRIBUTE_TYPE;
        let value = rest.get(4..length)?;
        rest = rest.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// A connection of the answer, if the programs know it.
fn live(body: &[u8]) -> Option<Live> {
    let (socket, tcp_state) = (socket(body)?, *body.get(1)?);
    let (mut state, mut information): (Option<SkState>, _) = (None, None);
    for (kind, value) in attributes(body.get(MESSAGE..)?) {
        match kind {
            INET_DIAG_INFO => information = Some(value),
            INET_DIAG_SK_BPF_STORAGES => {
                state = attributes(value)
                    .filter(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE)
                    .flat_map(|(_, storage)| attributes(storage))
                    .find(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE_MAP_VALUE)
                    .and_then(|(_, value)| {
                        bytemuck::try_pod_read_unaligned(value.get(..size_of::<SkState>())?).ok()
                    });
            }
            _ => {}
        }
    }
    let information = information?;
    // Offsets in `struct tcp_info`.
    let number = |at| Some(u32::from_ne_bytes(array(information, at)?));
    let long = |at| Some(u64::from_ne_bytes(array(information, at)?));
    // SYN and FIN are counted as bytes.
    let fin_acked = u64::from(matches!(tcp_state, FIN_WAIT2 | CLOSING));
    let fin_received = u64::from(matches!(tcp_state, CLOSE_WAIT | LAST_ACK | CLOSING));
    let state = state?;
    let syn = u64::from(state.flags & sk_flags::INBOUND == 0);
    Some(Live {
        cookie: u64::from(u32::from_ne_bytes(array(&socket.id, 40)?))
            | u64::from(u32::from_ne_bytes(array(&socket.id, 44)?)) << 32,
        socket,
        state,
        sent_bytes: long(120)?.saturating_sub(syn + fin_acked),
        received_bytes: long(128)?.saturating_sub(fin_received),
        srtt_us: number(68)?,
        retransmits: number(100)?,
    })
}

/// The socket that an answer speaks of.
fn socket(body: &[u8]) -> Option<SocketId> {
    let family = *body.first()?;
    let id: [u8; SOCKET_ID.1] = array(body, SOCKET_ID.0)?;
    // Ports come first, then the two addresses, 16 bytes each whatever the family.
    let end = |port: usize, at: usize| {
        let ip = if i32::from(family) == libc::AF_INET {
            IpAddr::from(array::<4>(&id, at)?)
        } else {
            IpAddr::from(array::<16>(&id, at)?).to_canonical()
        };
        let port = u16::from_be_bytes(array(&id, port)?);
        Some(SocketAddr::new(ip, port))
    };
    let ends = (end(0, 4)?, end(2, 20)?);
    Some(SocketId { family, id, ends })
}
