//! The shapes in which istiod describes HBONE to sidecars: internal addresses, internal
//! listeners, and the transport that leads to them.
//!
//! Envoy makes a tunnel of an internal listener with `tunneling_config` and a cluster behind it,
//! and ends one by a listener that hands CONNECT requests to another internal listener. What both
//! do is fixed here, so these resources are checked to say nothing else.

use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::cluster::OriginalDstLbConfig;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::envoy_internal_address::AddressNameSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType as HttpConfigType;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use envoy_types::pb::google::protobuf::{Any, value::Kind};

use crate::config::model::hbone::{
    DESTINATION_NAMESPACE, MAIN_INTERNAL, ORIGINATE, TERMINATE, any_endpoint, asked_for,
    upstream_of,
};
use crate::config::model::tls::{
    CertificateSource, DownstreamTransport, MetadataValue, TransportMatch, TrustSource,
    UpstreamTls, UpstreamTransport,
};

use super::{Problems, decode, is_one_of, tls, type_name};

/// Filters of the listener that ends tunnels, whose work is done without them: they hand on who
/// the client is and where it wants to go.
const KNOWN_HTTP_FILTERS: &[&str] = &[
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "io.istio.http.peer_metadata.Config",
    "waypoint_downstream_peer_metadata",
];

/// `internal_upstream`: the way to an internal listener.
pub(super) fn internal_upstream(
    any: &Any,
    path: &str,
    problems: &mut Problems,
) -> Option<UpstreamTransport> {
    let message: InternalUpstreamTransport = decode(any, path, problems)?;
    let inner = format!("{path}.transport_socket");
    match tls::upstream(message.transport_socket.as_ref(), &inner, problems)? {
        UpstreamTransport::Plain => Some(UpstreamTransport::Hbone(any_endpoint())),
        UpstreamTransport::Tls(_) | UpstreamTransport::Hbone(_) => {
            problems.push(inner, "TLS inside of a tunnel is not supported");
            None
        }
    }
}

/// How a cluster's tunnels are secured: by the context that an endpoint with `tunnel: http`
/// selects, else by the names that other endpoints of the mesh must have.
///
/// Envoy asks nothing but a certificate of the mesh; istiod says who an endpoint may be in the
/// context for Istio's mutual TLS, and the same workloads are at the ends of tunnels.
pub(super) fn context(
    default: Option<&UpstreamTransport>,
    matches: Option<&Vec<TransportMatch>>,
) -> Arc<UpstreamTls> {
    let matches = matches.map_or(&[][..], Vec::as_slice);
    let tunnel = [("tunnel".into(), MetadataValue::Text("http".into()))].into();
    let plain = UpstreamTransport::Plain;
    match UpstreamTransport::select(matches, default.unwrap_or(&plain), &tunnel) {
        UpstreamTransport::Tls(context) => return upstream_of(&context),
        UpstreamTransport::Plain | UpstreamTransport::Hbone(_) => {}
    }
    matches
        .iter()
        .find_map(|candidate| match &candidate.transport {
            UpstreamTransport::Tls(context) if is_of_the_mesh(context) => {
                Some(upstream_of(context))
            }
            _ => None,
        })
        .unwrap_or_else(any_endpoint)
}

fn is_of_the_mesh(context: &UpstreamTls) -> bool {
    let common = &context.common;
    let trust = common.validation.as_ref();
    common.certificate == CertificateSource::Workload
        && trust.is_some_and(|trust| trust.trust == TrustSource::Mesh && !trust.names.is_empty())
}

/// An endpoint behind an internal listener.
#[derive(Debug)]
pub(super) enum Internal {
    /// It is reached through a tunnel.
    Tunnelled {
        /// The endpoint.
        destination: SocketAddr,
        /// Where the tunnel ends, if not there.
        waypoint: Option<SocketAddr>,
    },
    /// Of Istio's cluster for what came through tunnels, which nothing is sent to here.
    Inbound,
}

/// An endpoint with an internal address; `None`: it has another one.
///
/// # Errors
/// It is not understood, and the problem was told.
pub(super) fn internal(
    message: &endpoint::LbEndpoint,
    address: Option<&core::Address>,
    path: &str,
    problems: &mut Problems,
) -> Result<Option<Internal>, ()> {
    let Some(AddressKind::EnvoyInternalAddress(internal)) =
        address.and_then(|address| address.address.as_ref())
    else {
        return Ok(None);
    };
    let name = match &internal.address_name_specifier {
        Some(AddressNameSpecifier::ServerListenerName(name)) => name.as_str(),
        None => "",
    };
    if name == MAIN_INTERNAL {
        return Ok(Some(Internal::Inbound));
    }
    if name != ORIGINATE {
        problems.hint(
            path,
            format!("internal listener {name} is not supported"),
            format!("{ORIGINATE} begins a tunnel"),
        );
        return Err(());
    }
    let metadata = message.metadata.as_ref();
    if !asked_for(&tls::match_metadata(metadata)) {
        problems.push(
            path,
            "an endpoint behind connect_originate has envoy.transport_socket_match with tunnel: http",
        );
        return Err(());
    }
    let namespace = metadata.and_then(|all| all.filter_metadata.get(DESTINATION_NAMESPACE));
    let mut field = |name: &str| {
        let value = namespace.and_then(|namespace| namespace.fields.get(name))?;
        let Some(Kind::StringValue(text)) = &value.kind else {
            return None;
        };
        let parsed = text.parse().ok();
        if parsed.is_none() {
            problems.push(
                format!("{path}.metadata.filter_metadata[{DESTINATION_NAMESPACE}].{name}"),
                format!("{text:?} is not an address with a port"),
            );
        }
        parsed
    };
    let waypoint = field("waypoint");
    let Some(destination) = field("local") else {
        problems.push(
            path,
            format!("where the tunnel leads is missing: {DESTINATION_NAMESPACE} with local"),
        );
        return Err(());
    };
    Ok(Some(Internal::Tunnelled {
        destination,
        waypoint,
    }))
}

/// The cluster behind `connect_originate` secures tunnels by the pod's certificate and the mesh's
/// roots, as tunnels are secured here, and says whose they may be; anything else that it says
/// would be lost.
pub(super) fn check_cluster(
    name: &str,
    transport: Option<&UpstreamTransport>,
    problems: &mut Problems,
) {
    if name != ORIGINATE {
        return;
    }
    let known = match transport {
        Some(UpstreamTransport::Tls(context)) => {
            let common = &context.common;
            common.certificate == CertificateSource::Workload
                && common
                    .validation
                    .as_ref()
                    .is_some_and(|trust| trust.trust == TrustSource::Mesh && trust.crl.is_none())
        }
        _ => false,
    };
    if !known {
        problems.hint(
            "transport_socket",
            "tunnels use the secrets default and ROOTCA",
            "name an endpoint's identities in the cluster it belongs to",
        );
    }
}

/// `connect_originate` begins tunnels; what it says beyond that would be lost.
pub(super) fn check_originate(message: &listener::Listener, problems: &mut Problems) {
    let mut tunnels = false;
    let filters = message
        .filter_chains
        .iter()
        .flat_map(|chain| &chain.filters);
    for filter in filters {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            continue;
        };
        if type_name(any) == "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" {
            let Some(proxy) = decode::<TcpProxy>(any, "filter_chains", problems) else {
                return;
            };
            tunnels = proxy.tunneling_config.is_some_and(|tunneling| {
                tunneling.hostname == "%DOWNSTREAM_LOCAL_ADDRESS%" && !tunneling.use_post
            });
        }
    }
    if !tunnels {
        problems.push(
            "filter_chains",
            format!(
                "{ORIGINATE} has a tcp_proxy with tunneling_config for %DOWNSTREAM_LOCAL_ADDRESS%"
            ),
        );
    }
}

/// How tunnels are ended, from Istio's listener for them.
pub(super) fn terminate(
    message: &listener::Listener,
    problems: &mut Problems,
) -> Option<DownstreamTransport> {
    let [chain] = &message.filter_chains[..] else {
        problems.push("filter_chains", format!("{TERMINATE} has exactly one"));
        return None;
    };
    let transport = tls::downstream(
        chain.transport_socket.as_ref(),
        None,
        "filter_chains[0].transport_socket",
        problems,
    )?;
    if transport.is_plain() {
        problems.push(
            "filter_chains[0].transport_socket",
            "tunnels end with TLS only",
        );
    }
    for (i, filter) in chain.filters.iter().enumerate() {
        let path = format!("filter_chains[0].filters[{i}].typed_config");
        let manager = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => {
                decode::<HttpConnectionManager>(any, &path, problems)
            }
            _ => None,
        };
        for filter in manager.iter().flat_map(|manager| &manager.http_filters) {
            let kind = match &filter.config_type {
                Some(HttpConfigType::TypedConfig(any)) => type_name(any),
                _ => "",
            };
            if !is_one_of(KNOWN_HTTP_FILTERS, &filter.name, kind) {
                problems.hint(
                    format!("{path}.http_filters"),
                    format!(
                        "filter {} ({kind}) is not supported before tunnels",
                        filter.name
                    ),
                    "a filter that decides about connections is never left out silently",
                );
            }
        }
    }
    Some(transport)
}

/// Where the cluster of tunnels finds a waypoint.
pub(super) fn check_metadata_key(
    config: &OriginalDstLbConfig,
    path: &str,
    problems: &mut Problems,
) {
    let Some(key) = &config.metadata_key else {
        return;
    };
    let waypoint = key
        .path
        .iter()
        .all(|part| matches!(&part.segment, Some(Segment::Key(name)) if name == "waypoint"));
    if key.key != DESTINATION_NAMESPACE || !waypoint {
        problems.push(
            format!("{path}.metadata_key"),
            format!("only {DESTINATION_NAMESPACE} with waypoint is supported"),
        );
    }
}
