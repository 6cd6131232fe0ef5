//! Pods that speak HBONE, and certificates of the agent's own authority for strangers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use mesh_testbed::{Pod, Testbed};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// The folder of an authority, and what it signs.
pub(crate) struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            dir: tempfile::tempdir()?,
        })
    }

    /// `--ca`
    pub(crate) fn flag(&self) -> String {
        format!("dev:{}", self.folder().display())
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    /// What a program in Python needs to be one of these, signed by the agent's authority.
    pub(crate) fn of(&self, names: &[&str]) -> Result<Value> {
        self.signed(&self.folder(), names)
    }

    /// The same, signed by the authority in another folder.
    pub(crate) fn signed(&self, by: &Path, names: &[&str]) -> Result<Value> {
        let read = |name: &str| {
            std::fs::read_to_string(by.join(name)).with_context(|| format!("no {name} yet"))
        };
        let key = KeyPair::from_pem(&read("ca.key")?)?;
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        for name in names {
            let uri = (*name).try_into()?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, &issuer)?;
        let file = |kind: &str, text: String| -> Result<PathBuf> {
            let path = self
                .dir
                .path()
                .join(format!("{}.{kind}", fastrand::u64(..)));
            std::fs::write(&path, text)?;
            Ok(path)
        };
        Ok(json!({
            "cert": file("crt", certificate.pem())?,
            "key": file("key", pair.serialize_pem())?,
            "ca": self.folder().join("ca.crt"),
        }))
    }
}

/// Merges fields into an object.
pub(crate) fn with(mut object: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().into_iter().flatten() {
        object[name] = value.clone();
    }
    object
}

pub(crate) fn socket(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip(), "port_value": at.port() } })
}

pub(crate) fn vip(testbed: &Testbed, port: u16) -> SocketAddr {
    SocketAddr::new(testbed.vip4(1).into(), port)
}

pub(crate) fn workload(pod: &Pod, account: &str) -> Value {
    json!({ "name": pod.name(), "namespace": "shop", "service_account": account,
        "netns": pod.netns_path() })
}

pub(crate) fn hcm(cluster: &str) -> Value {
    json!({ "name": "http", "typed_config": {
        "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "h",
        "forward_client_cert_details": if cluster == "inbound" { "SANITIZE_SET" } else { "SANITIZE" },
        "set_current_client_cert_details": { "uri": true },
        "route_config": { "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }] }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{FILTERS}.http.router.v3.Router") } }],
    } })
}

pub(crate) fn tcp(cluster: &str) -> Value {
    json!({ "name": "tcp", "typed_config": {
        "@type": format!("{FILTERS}.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "t", "cluster": cluster } })
}

/// Lets in whose certificate has one of these names.
pub(crate) fn allow(names: &[&str]) -> Value {
    let principals: Vec<Value> = names
        .iter()
        .map(|name| json!({ "authenticated": { "principal_name": { "exact": name } } }))
        .collect();
    json!({ "name": "rbac", "typed_config": {
        "@type": format!("{FILTERS}.network.rbac.v3.RBAC"), "stat_prefix": "r",
        "rules": { "action": "ALLOW", "policies": { "p": {
            "permissions": [{ "any": true }], "principals": principals } } } } })
}

/// A service at an address whose endpoints ask for HBONE; `name` is who they must be.
pub(crate) fn outbound(
    name: &str,
    at: SocketAddr,
    filter: &Value,
    endpoint: SocketAddr,
    identity: Option<&str>,
) -> (Value, Value) {
    let mut cluster = json!({ "name": name, "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{
            "endpoint": { "address": socket(endpoint) },
            "metadata": { "filter_metadata": {
                "envoy.transport_socket_match": { "tunnel": "http" } } },
        }] }] } });
    if let Some(identity) = identity {
        cluster["transport_socket"] = json!({ "name": "tls", "typed_config": {
            "@type": format!("{TLS}.UpstreamTlsContext"),
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{ "name": "default" }],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_subject_alt_names": [{ "exact": identity }] },
                    "validation_context_sds_secret_config": { "name": "ROOTCA" },
                },
            },
        } });
    }
    let listener = json!({ "name": name, "traffic_direction": "OUTBOUND", "address": socket(at),
        "filter_chains": [{ "filters": [filter] }] });
    (listener, cluster)
}

/// What istiod sends for a STRICT workload: `web` of HTTP, everything else TCP behind `rules`.
pub(crate) fn inbound(web: u16, rules: &[Value]) -> (Value, Value) {
    let context = json!({ "name": "tls", "typed_config": {
        "@type": format!("{TLS}.DownstreamTlsContext"),
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "default" }],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_subject_alt_names": [{ "prefix": "spiffe://cluster.local/" }] },
                "validation_context_sds_secret_config": { "name": "ROOTCA" },
            },
            "alpn_protocols": ["h2", "http/1.1"],
        },
    } });
    let mut filters = rules.to_vec();
    filters.push(tcp("inbound"));
    let listener = json!({ "name": "virtualInbound", "traffic_direction": "INBOUND",
        "address": socket(([0, 0, 0, 0], 15006).into()),
        "listener_filters": [{ "name": "tls", "typed_config": {
            "@type": format!("{FILTERS}.listener.tls_inspector.v3.TlsInspector") } }],
        "filter_chains": [
            { "name": "web", "filters": [hcm("inbound")], "transport_socket": context,
                "filter_chain_match": { "transport_protocol": "tls", "destination_port": web } },
            { "name": "rest", "filters": filters, "transport_socket": context,
                "filter_chain_match": { "transport_protocol": "tls" } },
        ] });
    let cluster = json!({ "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "2s",
        "upstream_bind_config": { "source_address": { "address": "127.0.0.6", "port_value": 0 } } });
    (listener, cluster)
}
