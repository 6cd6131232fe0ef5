//! What is compared: a way from a client to a server, and who else offers it.

use clap::ValueEnum;
use mesh_testbed::Protocol;

use super::measure::Measure;
use super::stage::System;

/// A way from a client to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Path {
    /// TCP balanced in connect(2); no proxy.
    #[value(name = "l4-direct")]
    L4Direct,
    /// The same with same-node acceleration.
    #[value(name = "l4-direct-sockmap")]
    L4DirectSockmap,
    /// TCP through the agent, because of an idle timeout.
    #[value(name = "l4-agent")]
    L4Agent,
    /// HTTP/1.1 through the agent on the client's side.
    #[value(name = "l7-http1")]
    L7Http1,
    /// HTTP/2 as well.
    #[value(name = "l7-h2")]
    L7H2,
    /// gRPC as well.
    #[value(name = "l7-grpc")]
    L7Grpc,
    /// TCP over Istio's mutual TLS between two nodes.
    #[value(name = "mtls-l4")]
    MtlsL4,
    /// TCP over HBONE between two nodes, beside Istio's mutual TLS.
    #[value(name = "mtls-l4-hbone")]
    MtlsL4Hbone,
    /// HTTP/1.1 over Istio's mutual TLS, routed on both nodes.
    #[value(name = "mtls-l7")]
    MtlsL7,
    /// HTTP/1.1 with an access policy between two pods of one node, which may trust each other's
    /// memory; sidecars speak mutual TLS there, too.
    #[value(name = "same-node-l7")]
    SameNodeL7,
}

/// What is between the pods of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// Nothing encrypted; the server's pod is in no mesh.
    Clear,
    /// Mutual TLS between two nodes.
    TwoNodes,
    /// One node of a mesh with mutual TLS.
    OneNode,
}

impl Ground {
    pub(super) const ALL: [Self; 3] = [Self::Clear, Self::TwoNodes, Self::OneNode];
}

/// What may be asked for: a path, or `mtls` for all that begin with it.
pub(super) fn asked(text: &str) -> Result<Asked, String> {
    if text == "mtls" {
        let all = Path::all().iter().copied();
        let mtls = all.filter(|path| path.ground() == Ground::TwoNodes);
        return Ok(Asked(mtls.collect()));
    }
    Path::from_str(text, false)
        .map(|path| Asked(vec![path]))
        .map_err(|_| {
            let all = Path::all().iter().map(|path| path.name());
            format!("mtls or one of {}", all.collect::<Vec<_>>().join(", "))
        })
}

/// Paths that were asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked(pub(super) Vec<Path>);

impl Path {
    pub(super) fn all() -> &'static [Self] {
        Self::value_variants()
    }

    pub(super) fn ground(self) -> Ground {
        match self {
            Self::L4Direct
            | Self::L4DirectSockmap
            | Self::L4Agent
            | Self::L7Http1
            | Self::L7H2
            | Self::L7Grpc => Ground::Clear,
            Self::MtlsL4 | Self::MtlsL4Hbone | Self::MtlsL7 => Ground::TwoNodes,
            Self::SameNodeL7 => Ground::OneNode,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::L4Direct => "l4-direct",
            Self::L4DirectSockmap => "l4-direct-sockmap",
            Self::L4Agent => "l4-agent",
            Self::L7Http1 => "l7-http1",
            Self::L7H2 => "l7-h2",
            Self::L7Grpc => "l7-grpc",
            Self::MtlsL4 => "mtls-l4",
            Self::MtlsL4Hbone => "mtls-l4-hbone",
            Self::MtlsL7 => "mtls-l7",
            Self::SameNodeL7 => "same-node-l7",
        }
    }

    /// Which of our stages carries it.
    pub(super) fn ours(self) -> System {
        match self {
            Self::L4DirectSockmap => System::Accelerated,
            _ => System::Ours,
        }
    }

    /// Whom we are compared with. What is called a reference does the same work: no mesh for what
    /// the kernel does alone, Envoy with the same listener and cluster for the rest.
    pub(super) fn references(self) -> &'static [System] {
        match self {
            Self::L4Direct | Self::L4Agent => &[System::NoMesh, System::Envoy],
            Self::L4DirectSockmap => &[System::NoMesh],
            Self::L7Http1
            | Self::L7H2
            | Self::L7Grpc
            | Self::MtlsL4
            | Self::MtlsL4Hbone
            | Self::MtlsL7
            | Self::SameNodeL7 => &[System::Envoy],
        }
    }

    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::L4Direct
            | Self::L4DirectSockmap
            | Self::L4Agent
            | Self::L7Http1
            | Self::MtlsL4
            | Self::MtlsL4Hbone
            | Self::MtlsL7
            | Self::SameNodeL7 => Protocol::Http1,
            Self::L7H2 => Protocol::Http2,
            Self::L7Grpc => Protocol::Grpc,
        }
    }

    pub(super) fn measures(self) -> &'static [Measure] {
        match self {
            Self::L4Direct | Self::L4DirectSockmap => &[
                Measure::Load,
                Measure::Latency,
                Measure::Connects,
                Measure::RoundTrip,
                Measure::Throughput,
            ],
            Self::L4Agent => &[
                Measure::Load,
                Measure::Latency,
                Measure::Connects,
                Measure::RoundTrip,
                Measure::Throughput,
                Measure::Memory,
            ],
            Self::L7Http1 => &[
                Measure::Load,
                Measure::Latency,
                Measure::Connects,
                Measure::Memory,
            ],
            Self::L7H2 | Self::L7Grpc => &[Measure::Load, Measure::Latency],
            Self::MtlsL4 | Self::MtlsL4Hbone => &[
                Measure::Load,
                Measure::Latency,
                Measure::Connects,
                Measure::RoundTrip,
                Measure::Throughput,
            ],
            Self::MtlsL7 | Self::SameNodeL7 => {
                &[Measure::Load, Measure::Latency, Measure::Connects]
            }
        }
    }
}
