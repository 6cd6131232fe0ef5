//! Envoy's `dynamic_resources` and `node`: a management server named in the file instead of by
//! flags.

use std::path::PathBuf;

use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::DynamicResources;
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::{ApiConfigSource, ConfigSource, Node};

use crate::config::Problem;
use crate::config::model::cluster::{Cluster, Discovery};
use crate::config::model::tls::{CertificateSource, Data, TrustSource, UpstreamTransport};
use crate::source::xds::Server;
use crate::store::ResourceSet;

/// A management server, as a file names it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bootstrap {
    /// Where it is.
    pub address: String,
    /// Changes only, rather than everything with each response.
    pub delta: bool,
    /// The roots that its certificate must descend from.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in its certificate.
    pub server_name: Option<String>,
    /// Who we say we are.
    pub node: Option<Node>,
}

/// What a file says of a management server; `None`: nothing.
pub(super) fn convert(
    message: &DynamicResources,
    node: Option<Node>,
    resources: &ResourceSet,
    problems: &mut Vec<Problem>,
) -> Option<Bootstrap> {
    let mut ads = false;
    for (field, source) in [
        ("lds_config", &message.lds_config),
        ("cds_config", &message.cds_config),
    ] {
        match source.as_ref().and_then(|source| specifier(source)) {
            None | Some(ConfigSourceSpecifier::PathConfigSource(_)) => {}
            Some(ConfigSourceSpecifier::Ads(_)) => ads = true,
            Some(_) => problems.push(
                Problem::new(field, "only ads and path_config_source are supported")
                    .remedy("one aggregated stream keeps the order in which changes are safe"),
            ),
        }
    }
    let Some(config) = &message.ads_config else {
        if ads {
            problems.push(Problem::new(
                "ads_config",
                "is missing: it says where ads is",
            ));
        }
        return None;
    };
    let mut bootstrap = Bootstrap {
        delta: delta(config, problems)?,
        node,
        ..Bootstrap::default()
    };
    let [service] = &config.grpc_services[..] else {
        problems.push(Problem::new(
            "ads_config.grpc_services",
            format!("exactly one is needed, not {}", config.grpc_services.len()),
        ));
        return None;
    };
    let path = "ads_config.grpc_services[0]";
    match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => {
            let path = format!("{path}.envoy_grpc.cluster_name");
            match resources.clusters.get(envoy.cluster_name.as_str()) {
                Some(cluster) => server(&cluster.value, &path, &mut bootstrap, problems),
                None => problems.push(
                    Problem::new(path, format!("cluster {:?} is missing", envoy.cluster_name))
                        .remedy("define it under static_resources.clusters"),
                ),
            }
        }
        Some(TargetSpecifier::GoogleGrpc(google))
            if google.channel_credentials.is_none() && google.call_credentials.is_empty() =>
        {
            bootstrap.address.clone_from(&google.target_uri);
        }
        _ => problems.push(
            Problem::new(
                path,
                "only envoy_grpc, and google_grpc without credentials, are supported",
            )
            .remedy("name a cluster: its transport_socket says how to speak to the server"),
        ),
    }
    Some(bootstrap)
}

fn specifier(source: &ConfigSource) -> Option<&ConfigSourceSpecifier> {
    source.config_source_specifier.as_ref()
}

fn delta(config: &ApiConfigSource, problems: &mut Vec<Problem>) -> Option<bool> {
    match ApiType::try_from(config.api_type) {
        Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => Some(false),
        Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => Some(true),
        _ => {
            problems.push(Problem::new(
                "ads_config.api_type",
                "must be GRPC or DELTA_GRPC",
            ));
            None
        }
    }
}

/// How the server behind a cluster is spoken to; `None`: the cluster does not say it all.
pub fn server_of(cluster: &Cluster) -> Option<Server> {
    let (mut bootstrap, mut problems) = (Bootstrap::default(), Vec::new());
    server(cluster, "", &mut bootstrap, &mut problems);
    for problem in &problems {
        tracing::error!(cluster = %cluster.name, %problem, "the cluster of a server cannot be used");
    }
    problems.is_empty().then(|| Server {
        address: bootstrap.address,
        ca: bootstrap.ca,
        identity: bootstrap.identity,
        server_name: bootstrap.server_name,
        ..Server::default()
    })
}

/// The server behind a cluster: its only endpoint, and how it is spoken to.
fn server(cluster: &Cluster, path: &str, bootstrap: &mut Bootstrap, problems: &mut Vec<Problem>) {
    let assignment = match &cluster.discovery {
        Discovery::Static(assignment)
        | Discovery::StrictDns { assignment, .. }
        | Discovery::LogicalDns { assignment, .. } => Some(assignment),
        Discovery::Eds { .. } | Discovery::OriginalDst(_) => None,
    };
    let endpoints = assignment.into_iter().flat_map(|all| &all.localities);
    let mut endpoints = endpoints.flat_map(|locality| &locality.endpoints);
    match endpoints.next() {
        Some(endpoint) => bootstrap.address = endpoint.address.to_string(),
        None => problems.push(Problem::new(
            path,
            format!("cluster {} has no endpoint of its own", cluster.name),
        )),
    }
    let UpstreamTransport::Tls(tls) = &cluster.transport else {
        return;
    };
    let mut file = |data: &Data| match data {
        Data::File(file) => Some(file.clone()),
        Data::Inline(_) => {
            problems.push(Problem::new(
                path,
                format!(
                    "the transport_socket of cluster {} must name files",
                    cluster.name
                ),
            ));
            None
        }
    };
    if let Some(TrustSource::Data(roots)) = tls.common.validation.as_ref().map(|v| &v.trust) {
        bootstrap.ca = file(roots);
    }
    if let CertificateSource::Data { chain, key } = &tls.common.certificate {
        bootstrap.identity = file(chain).zip(file(key));
    }
    bootstrap.server_name = tls.sni.as_ref().map(ToString::to_string);
    if bootstrap.ca.is_none() {
        problems.push(
            Problem::new(path, format!("cluster {} trusts nobody", cluster.name))
                .remedy("give its transport_socket a validation_context.trusted_ca.filename"),
        );
    }
}
