//! HBONE: connections as streams of HTTP/2 tunnels with mutual TLS (Istio's ambient mode).

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use super::matcher::StringMatcher;
use super::tls::{
    CertificateSource, CommonTls, DownstreamTls, Metadata, MetadataValue, NameKind, NameMatcher,
    TlsVersion, TrustSource, UpstreamTls, Validation,
};

/// Istio's internal listener and cluster that begin tunnels.
pub const ORIGINATE: &str = "connect_originate";
/// Istio's listener that ends them.
pub const TERMINATE: &str = "connect_terminate";
/// Istio's internal listener whose filter chains take what came through tunnels.
pub const MAIN_INTERNAL: &str = "main_internal";
/// Filter state with the name in a tunnel's client certificate, which Istio's access rules behind
/// tunnels ask for.
pub const PEER_PRINCIPAL: &str = "io.istio.peer_principal";

/// The namespace of endpoint metadata with a tunnel's destination.
pub const DESTINATION_NAMESPACE: &str = "envoy.filters.listener.original_dst";

/// The port tunnels end at.
pub const PORT: u16 = mesh_common::HBONE_PORT;

/// The protocol of tunnels.
pub const ALPN: &str = "h2";

/// Whether an endpoint's metadata asks for a tunnel: `envoy.transport_socket_match` with
/// `tunnel: http`, as istiod says it of ambient workloads.
pub fn asked_for(endpoint: &Metadata) -> bool {
    matches!(endpoint.get("tunnel"), Some(MetadataValue::Text(kind)) if **kind == *"http")
}

/// Where a tunnel to an endpoint ends: at the waypoint, or at the endpoint itself.
pub fn gateway(endpoint: SocketAddr, waypoint: Option<SocketAddr>) -> SocketAddr {
    SocketAddr::new(waypoint.unwrap_or(endpoint).ip(), PORT)
}

/// How tunnels are secured towards endpoints of which nothing else is known: by the pod's
/// certificate and the mesh's roots.
pub fn any_endpoint() -> Arc<UpstreamTls> {
    static ANY: LazyLock<Arc<UpstreamTls>> = LazyLock::new(|| {
        let trust = Validation {
            trust: TrustSource::Mesh,
            ..Validation::default()
        };
        Arc::new(upstream(CertificateSource::Workload, trust))
    });
    ANY.clone()
}

/// As [`any_endpoint`], with what a context says of certificates, trust and names.
pub fn upstream_of(context: &UpstreamTls) -> Arc<UpstreamTls> {
    let common = &context.common;
    let trust = common.validation.clone().unwrap_or(Validation {
        trust: TrustSource::Mesh,
        ..Validation::default()
    });
    Arc::new(upstream(common.certificate.clone(), trust))
}

fn upstream(certificate: CertificateSource, trust: Validation) -> UpstreamTls {
    UpstreamTls {
        common: common(certificate, trust),
        sni: None,
    }
}

/// How tunnels that end at a pod are secured: clients show a certificate of the trust domain.
pub fn downstream(trust_domain: &str) -> DownstreamTls {
    let prefix = format!("spiffe://{trust_domain}/");
    let trust = Validation {
        trust: TrustSource::Mesh,
        names: vec![NameMatcher {
            kind: Some(NameKind::Uri),
            matcher: StringMatcher::Prefix {
                value: prefix.into(),
                ignore_case: false,
            },
        }],
        ..Validation::default()
    };
    DownstreamTls {
        common: common(CertificateSource::Workload, trust),
        require_client_certificate: true,
        handshake_timeout: None,
    }
}

/// As [`downstream`], with what Istio's own context says of certificates, trust and names.
pub fn downstream_of(context: &DownstreamTls) -> DownstreamTls {
    DownstreamTls {
        common: CommonTls {
            validation: context.common.validation.clone(),
            ..common_without_trust(context.common.certificate.clone())
        },
        require_client_certificate: true,
        handshake_timeout: None,
    }
}

fn common(certificate: CertificateSource, trust: Validation) -> CommonTls {
    CommonTls {
        validation: Some(trust),
        ..common_without_trust(certificate)
    }
}

fn common_without_trust(certificate: CertificateSource) -> CommonTls {
    CommonTls {
        min_version: TlsVersion::V13,
        max_version: TlsVersion::V13,
        cipher_suites: Vec::new(),
        alpn: vec![ALPN.into()],
        certificate,
        validation: None,
    }
}
