//! Socket addresses.

use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use ipnet::IpNet;

use crate::config::model::Address;

use super::Problems;

/// An address: literal, or a name where `names` allows one.
pub(super) fn address(
    message: Option<&core::Address>,
    names: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<Address> {
    let socket = match message.and_then(|message| message.address.as_ref()) {
        Some(Kind::SocketAddress(socket)) => socket,
        Some(Kind::Pipe(_)) => {
            problems.push(path, "Unix socket addresses are not supported");
            return None;
        }
        Some(Kind::EnvoyInternalAddress(_)) => {
            problems.push(path, "internal addresses are not supported");
            return None;
        }
        None => {
            problems.hint(path, "an address is missing", "add socket_address");
            return None;
        }
    };
    if socket.protocol != Protocol::Tcp as i32 {
        problems.push(
            format!("{path}.socket_address.protocol"),
            "only TCP is supported",
        );
    }
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => match u16::try_from(*port) {
            Ok(port) => port,
            Err(_) => {
                let path = format!("{path}.socket_address.port_value");
                problems.push(path, format!("{port} is not a port: the largest is 65535"));
                return None;
            }
        },
        Some(PortSpecifier::NamedPort(_)) => {
            problems.push(
                format!("{path}.socket_address"),
                "named_port is not supported",
            );
            return None;
        }
        None => {
            problems.push(
                format!("{path}.socket_address.port_value"),
                "a port is missing",
            );
            return None;
        }
    };
    match socket.address.parse::<IpAddr>() {
        Ok(ip) => Some(Address::Socket(SocketAddr::new(ip, port))),
        Err(_) if names && !socket.address.is_empty() => Some(Address::Hostname {
            host: socket.address.as_str().into(),
            port,
        }),
        Err(_) => {
            problems.hint(
                format!("{path}.socket_address.address"),
                format!("{:?} is not an IP address", socket.address),
                if names {
                    "write an address or a name"
                } else {
                    "names need a DNS cluster"
                },
            );
            None
        }
    }
}

/// A Unix socket.
pub(super) fn pipe(message: Option<&core::Address>) -> Option<Address> {
    match message?.address.as_ref()? {
        Kind::Pipe(pipe) if !pipe.path.is_empty() => Some(Address::Pipe(pipe.path.as_str().into())),
        _ => None,
    }
}

/// A literal address.
pub(super) fn literal(
    message: Option<&core::Address>,
    path: &str,
    problems: &mut Problems,
) -> Option<SocketAddr> {
    address(message, false, path, problems).and_then(|address| address.socket())
}

/// An address range.
pub(super) fn range(
    message: &core::CidrRange,
    path: &str,
    problems: &mut Problems,
) -> Option<IpNet> {
    let length = message.prefix_len.as_ref().map_or(0, |value| value.value);
    let ip = message.address_prefix.parse::<IpAddr>().ok();
    let net = ip
        .zip(u8::try_from(length).ok())
        .and_then(|(ip, len)| IpNet::new(ip, len).ok());
    if net.is_none() {
        problems.push(
            path,
            format!(
                "{}/{length} is not an address range",
                message.address_prefix
            ),
        );
    }
    net.map(|net| net.trunc())
}
