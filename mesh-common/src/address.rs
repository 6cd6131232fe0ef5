//! Addresses as the maps hold them.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`; four words in network byte order, as the
/// kernel's context structures hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

/// The third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// `::`
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// `::ffff:0.0.0.0`
    pub const UNSPECIFIED_V4: Self = Self::from_v4_be(0);

    /// From an IPv4 address in network byte order, as `user_ip4` holds it.
    #[inline(always)]
    pub const fn from_v4_be(address: u32) -> Self {
        Self([0, 0, MAPPED, address])
    }

    /// The IPv4 address in network byte order, if this is one.
    #[inline(always)]
    pub const fn v4_be(&self) -> Option<u32> {
        if self.is_v4() { Some(self.0[3]) } else { None }
    }

    /// Whether this is `::ffff:a.b.c.d`.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// 127.0.0.0/8, `::1`, or the unspecified address of either family, which connect(2) takes
    /// for loopback.
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        if self.is_v4() {
            let first = u32::from_be(self.0[3]) >> 24;
            return first == 127 || self.0[3] == 0;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && u32::from_be(self.0[3]) <= 1
    }

    /// The unspecified address of the same family.
    #[inline(always)]
    pub const fn wildcard(&self) -> Self {
        if self.is_v4() {
            Self::UNSPECIFIED_V4
        } else {
            Self::UNSPECIFIED
        }
    }

    /// From the 16 bytes of an IPv6 (or v4-mapped) address.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let o = octets;
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The 16 bytes of the IPv6 (or v4-mapped) address.
    pub fn octets(&self) -> [u8; 16] {
        bytemuck::cast(self.0)
    }
}
