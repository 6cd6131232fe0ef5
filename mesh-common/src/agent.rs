//! The agent's side: proof to aya that keys and values are plain old data.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{
    Acceleration, Addr, AuthzKey, Backend, CidrKey, Conns, ConnsKey, Control, DeniedKey, FastKey,
    Flow, InboundPod, ListenKey, OrigKey, OriginalDst, Pair, Pod, PortKey, Service, ServiceKey,
    ServiceState, Slot, SlotKey,
};

macro_rules! plain_old_data {
    ($($name:ident),+ $(,)?) => {
        $(
            // SAFETY: bytemuck's derive checked that the type has no padding and no invalid bit
            // patterns.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

plain_old_data!(
    Acceleration,
    Addr,
    AuthzKey,
    Backend,
    CidrKey,
    Conns,
    ConnsKey,
    Control,
    DeniedKey,
    FastKey,
    Flow,
    InboundPod,
    ListenKey,
    OrigKey,
    OriginalDst,
    Pair,
    Pod,
    PortKey,
    Service,
    ServiceKey,
    ServiceState,
    Slot,
    SlotKey,
);

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let v6 = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self::from_octets(v6.octets())
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        IpAddr::V6(Ipv6Addr::from(addr.octets())).to_canonical()
    }
}

impl OriginalDst {
    /// As a socket address; v4-mapped addresses come out as IPv4.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.addr.into(), self.port)
    }
}
