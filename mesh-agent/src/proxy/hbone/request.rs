//! CONNECT requests of tunnels: where a stream leads, and what it tells of its client.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, Method, StatusCode, Uri, request};
use mesh_common::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};

use crate::config::model::canonical;

/// Longest `baggage` that is looked at.
const LONGEST_BAGGAGE: usize = 8 << 10;

/// A request that may be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connect {
    /// Where the stream leads: an address of the pod.
    pub(super) destination: SocketAddr,
}

/// A request that is not granted, whoever sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Another method, or CONNECT for another protocol (RFC 8441).
    #[error("it is no CONNECT request")]
    Method,
    /// No address with a port.
    #[error("its authority is no address with a port")]
    Authority,
    /// Names are those of services, which only their gateways know.
    #[error("its authority is a name; this pod is known by its addresses only")]
    Name,
    /// Another pod's address.
    #[error("its authority is no address of this pod")]
    Elsewhere,
    /// One of the agent's own ports.
    #[error("its authority is a port of the mesh itself")]
    OwnPort,
}

impl Refusal {
    /// As ztunnel answers (`inbound.rs`: `build_inbound_request`).
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Method | Self::Authority | Self::Elsewhere => StatusCode::BAD_REQUEST,
            Self::Name | Self::OwnPort => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Reads a request to a pod of these addresses.
///
/// # Errors
/// It is not granted.
pub(super) fn parse(request: &request::Parts, own: &[IpAddr]) -> Result<Connect, Refusal> {
    if request.method != Method::CONNECT || request.extensions.get::<h2::ext::Protocol>().is_some()
    {
        return Err(Refusal::Method);
    }
    let destination = destination(&request.uri)?;
    if !own.contains(&destination.ip()) {
        return Err(Refusal::Elsewhere);
    }
    if [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].contains(&destination.port()) {
        return Err(Refusal::OwnPort);
    }
    Ok(Connect { destination })
}

fn destination(uri: &Uri) -> Result<SocketAddr, Refusal> {
    let authority = uri.authority().ok_or(Refusal::Authority)?;
    if uri
        .path_and_query()
        .is_some_and(|path| path.as_str() != "/")
        || authority.as_str().contains('@')
    {
        return Err(Refusal::Authority);
    }
    let port = authority.port_u16().filter(|port| *port != 0);
    let port = port.ok_or(Refusal::Authority)?;
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let ip = match bare {
        Some(v6) => v6.parse().map(IpAddr::V6).map_err(|_| Refusal::Authority)?,
        None => match host.parse() {
            Ok(v4) => IpAddr::V4(v4),
            Err(_) => return Err(Refusal::Name),
        },
    };
    Ok(SocketAddr::new(canonical(ip), port))
}

/// What a request's headers tell of its client; nobody vouches for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told<'a> {
    /// `baggage`: `k8s.namespace.name`.
    pub(super) namespace: Option<&'a str>,
    /// `baggage`: the workload, whatever kind it is of.
    pub(super) workload: Option<&'a str>,
    /// `forwarded`: the service that was dialled.
    pub(super) host: Option<&'a str>,
    /// `traceparent`, if it is well-formed.
    pub(super) trace: Option<&'a str>,
}

impl<'a> Told<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let mut told = Self {
            host: text("forwarded").and_then(forwarded_host),
            trace: text("traceparent").filter(|value| is_trace_parent(value)),
            ..Self::default()
        };
        let baggage = text("baggage").filter(|text| text.len() <= LONGEST_BAGGAGE);
        for pair in baggage.into_iter().flat_map(|text| text.split(',')) {
            let Some((key, value)) = pair.split_once('=') else {
                continue;
            };
            let value = Some(value.trim());
            match key.trim() {
                "k8s.namespace.name" => told.namespace = value,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                    told.workload = value;
                }
                _ => {}
            }
        }
        told
    }
}

/// RFC 7239, of the last proxy.
fn forwarded_host(text: &str) -> Option<&str> {
    let pairs = text.rsplit(',').next()?.split(';');
    let mut hosts = pairs.filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("host")
            .then(|| value.trim_matches('"'))
    });
    hosts.next()
}

/// W3C Trace Context: `version-trace-parent-flags`, in lower-case hexadecimal.
fn is_trace_parent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length| {
        part.len() == length
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    match parts[..] {
        [version, trace, parent, flags] => {
            hex(version, 2)
                && version != "ff"
                && hex(trace, 32)
                && !zero(trace)
                && hex(parent, 16)
                && !zero(parent)
                && hex(flags, 2)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POD: [IpAddr; 2] = [
        IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9)),
        IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9)),
    ];

    fn connect(authority: &str) -> Result<SocketAddr, Refusal> {
        let Ok(uri) = Uri::builder().authority(authority).build() else {
            return Err(Refusal::Authority);
        };
        let (parts, ()) = http::Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .body(())
            .expect("a request")
            .into_parts();
        parse(&parts, &POD).map(|connect| connect.destination)
    }

    #[test]
    fn only_addresses_of_the_pod_are_granted() {
        let at = |text: &str| Ok(text.parse().expect("an address"));
        assert_eq!(connect("10.0.0.9:80"), at("10.0.0.9:80"));
        assert_eq!(connect("[fd00::9]:80"), at("[fd00::9]:80"));
        assert_eq!(connect("[::ffff:10.0.0.9]:80"), at("10.0.0.9:80"));
        assert_eq!(connect("10.0.0.8:80"), Err(Refusal::Elsewhere));
        assert_eq!(connect("127.0.0.1:80"), Err(Refusal::Elsewhere));
        assert_eq!(connect("[::1]:80"), Err(Refusal::Elsewhere));
        assert_eq!(connect("10.0.0.9:15008"), Err(Refusal::OwnPort));
        assert_eq!(connect("10.0.0.9:15001"), Err(Refusal::OwnPort));
        assert_eq!(connect("web.shop.svc.cluster.local:80"), Err(Refusal::Name));
        for wrong in [
            "10.0.0.9",
            "10.0.0.9:0",
            "10.0.0.9:65536",
            "a@10.0.0.9:80",
            "[fd00::z]:1",
        ] {
            assert_eq!(connect(wrong), Err(Refusal::Authority), "{wrong}");
        }
        assert_eq!(Refusal::Elsewhere.status(), 400);
        assert_eq!(Refusal::OwnPort.status(), 503);
    }

    #[test]
    fn what_is_no_connect_request_is_refused() {
        let (mut parts, ()) = http::Request::get("http://10.0.0.9:80/")
            .body(())
            .expect("a request")
            .into_parts();
        assert_eq!(parse(&parts, &POD), Err(Refusal::Method));
        parts.method = Method::CONNECT;
        assert!(parse(&parts, &POD).is_ok());
        parts
            .extensions
            .insert(h2::ext::Protocol::from_static("websocket"));
        assert_eq!(parse(&parts, &POD), Err(Refusal::Method));
    }

    #[test]
    fn headers_tell_of_the_client() {
        let mut headers = HeaderMap::new();
        let mut set = |name: &'static str, value: &str| {
            headers.insert(name, value.parse().expect("a value"));
        };
        set(
            "baggage",
            "k8s.cluster.name=c,k8s.namespace.name=shop, k8s.deployment.name=web",
        );
        set("forwarded", "for=10.0.0.1;host=\"web.shop.svc\"");
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        set("traceparent", trace);
        assert_eq!(
            Told::of(&headers),
            Told {
                namespace: Some("shop"),
                workload: Some("web"),
                host: Some("web.shop.svc"),
                trace: Some(trace),
            }
        );
        for wrong in [
            "",
            "00-0-0-0",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(!is_trace_parent(wrong), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_authority_leads_elsewhere(text in "\\PC{0,40}") {
            if let Ok(destination) = connect(&text) {
                prop_assert!(POD.contains(&destination.ip()));
            }
        }

        #[test]
        fn no_header_is_too_strange(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                for name in ["baggage", "forwarded", "traceparent"] {
                    headers.insert(name, value.clone());
                }
            }
            let _ = Told::of(&headers);
        }
    }
}
