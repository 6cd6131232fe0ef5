//! The paths with mutual TLS between two nodes: an agent on each, beside an Envoy in each pod as
//! Istio puts it there.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context as _, Result};
use mesh_testbed::{Envoy, EnvoyOptions, MeshAgent, Nginx, Pod, Testbed};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use serde_json::{Value, json};

use super::config::{Handling, Service, socket_address, tcp_proxy};
use super::envoy;
use super::path::{Ground, Path};
use super::servers::{self, BODY};
use super::stage::{Port, service_address};

/// The web server that TCP paths lead to; requests to it are no business of a proxy.
pub(super) const RAW: u16 = 8090;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const INSPECTORS: &str = "type.googleapis.com/envoy.extensions.filters.listener";
const INBOUND: &str = "inbound";

/// What Istio's client side offers before TCP and before HTTP.
const TCP_ALPN: &[&str] = &["istio"];
const HTTP_ALPN: &[&str] = &["istio-http/1.1"];

/// Where certificates and roots are.
enum Secrets<'a> {
    /// The agent has them, under istiod's names.
    Agent,
    /// In the files of a folder.
    Files(&'a std::path::Path),
}

/// The server of a path's requests inside the pod.
pub(super) fn server_port(path: Path, port: Port) -> u16 {
    match (port, path) {
        (Port::Iperf, _) => servers::IPERF,
        (Port::Sockperf, _) => servers::SOCKPERF,
        (Port::Web, Path::MtlsL7 | Path::SameNodeL7) => servers::HTTP1,
        (Port::Web, _) => RAW,
    }
}

fn services(testbed: &Testbed, server: &Pod, ground: Ground) -> Vec<(Path, Service)> {
    let paths = Path::all().iter().copied();
    let ports = [Port::Web, Port::Iperf, Port::Sockperf];
    let all = paths
        .filter(|path| path.ground() == ground)
        .flat_map(|path| ports.map(|port| (path, port)));
    let is_http = |path: Path| matches!(path, Path::MtlsL7 | Path::SameNodeL7);
    all.filter(|(path, port)| !is_http(*path) || *port == Port::Web)
        .map(|(path, port)| {
            let address = service_address(testbed, path, port);
            let service = Service {
                name: format!("{}_{}", path.name(), address.port()),
                address,
                handling: match path {
                    Path::MtlsL7 | Path::SameNodeL7 => Handling::Http1,
                    _ => Handling::TcpIdle,
                },
                server: SocketAddr::new(server.ip4().into(), server_port(path, port)),
            };
            (path, service)
        })
        .collect()
}

/// What is started for the server of TCP paths.
pub(super) fn raw_server(pod: &Pod) -> Result<Nginx> {
    Nginx::start(pod, BODY, RAW)
}

/// An agent for each of the two pods: two nodes, as far as they know. On one node, one for both.
pub(super) fn agents(
    testbed: &Testbed,
    client: &Pod,
    server: &Pod,
    ground: Ground,
    verbose: bool,
) -> Result<(Vec<MeshAgent>, tempfile::TempDir)> {
    let authority = tempfile::tempdir()?;
    let flag = format!("dev:{}", authority.path().join("ca").display());
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for (path, service) in services(testbed, server, ground) {
        listeners.push(service.listener());
        let mut cluster = service.cluster();
        if path == Path::MtlsL4Hbone {
            cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["metadata"] = json!({ "filter_metadata": { "envoy.transport_socket_match": { "tunnel": "http" } } });
        } else {
            cluster["transport_socket"] = upstream(path, &Secrets::Agent);
        }
        clusters.push(cluster);
    }
    let workload = |pod: &Pod| {
        json!({ "name": pod.name(), "namespace": "bench", "service_account": pod.name(),
            "netns": pod.netns_path() })
    };
    let inbound = inbound(&Secrets::Agent, ground);
    if ground == Ground::OneNode {
        listeners.push(inbound);
        clusters.push(application());
        let config = json!({ "workloads": [workload(client), workload(server)],
            "static_resources": { "listeners": listeners, "clusters": clusters } });
        if verbose {
            println!("mesh-agent:\n{}", serde_json::to_string_pretty(&config)?);
        }
        let agent = MeshAgent::builder(testbed)?
            .arg("--ca")
            .arg(&flag)
            .start(&config.to_string())
            .context("the agent cannot be measured")?;
        return Ok((vec![agent], authority));
    }
    let outbound = json!({ "workloads": [workload(client)],
        "static_resources": { "listeners": listeners, "clusters": clusters } });
    let inbound = json!({ "workloads": [workload(server)],
        "static_resources": { "listeners": [inbound], "clusters": [application()] } });
    if verbose {
        println!(
            "mesh-agent of the client:\n{}",
            serde_json::to_string_pretty(&outbound)?
        );
        println!(
            "mesh-agent of the server:\n{}",
            serde_json::to_string_pretty(&inbound)?
        );
    }
    let of_server = MeshAgent::builder(testbed)?
        .arg("--ca")
        .arg(&flag)
        .start(&inbound.to_string())
        .context("the server's agent cannot be measured")?;
    let pins = testbed.bpffs().join("client");
    std::fs::create_dir(&pins).context("no place for the pins of a second agent")?;
    let of_client = MeshAgent::builder(testbed)?
        .bpffs(&pins)
        .arg("--ca")
        .arg(&flag)
        .start(&outbound.to_string())
        .context("the client's agent cannot be measured")?;
    Ok((vec![of_client, of_server], authority))
}

/// An Envoy in each of the two pods.
pub(super) fn sidecars(
    testbed: &Testbed,
    client: &Pod,
    server: &Pod,
    ground: Ground,
    verbose: bool,
) -> Result<(Vec<Envoy>, tempfile::TempDir)> {
    let files = tempfile::tempdir()?;
    std::fs::set_permissions(files.path(), PermissionsExt::from_mode(0o755))?;
    certify(files.path(), &[client.name(), server.name()])?;
    let of = |pod: &Pod| files.path().join(pod.name());
    let secrets = of(client);
    let services = services(testbed, server, ground);
    let clusters = services.iter().map(|(path, service)| {
        let mut cluster = service.cluster();
        cluster["transport_socket"] = upstream(*path, &Secrets::Files(&secrets));
        cluster
    });
    let clusters: Vec<Value> = clusters.collect();
    let services: Vec<Service> = services.into_iter().map(|(_, service)| service).collect();
    let of_client = envoy::sidecar_with(client, &services, &clusters, verbose)?;
    for rule in [
        "-N ISTIO_INBOUND",
        "-A ISTIO_INBOUND -p tcp -j REDIRECT --to-ports 15006",
        "-A PREROUTING -p tcp -j ISTIO_INBOUND",
    ] {
        envoy::rule(server, rule)?;
    }
    let secrets = of(server);
    let mut listener = inbound(&Secrets::Files(&secrets), ground);
    let original = json!({ "name": "original_dst", "typed_config": {
        "@type": format!("{INSPECTORS}.original_dst.v3.OriginalDst") } });
    if let Some(filters) = listener["listener_filters"].as_array_mut() {
        filters.insert(0, original);
    }
    let resources = json!({ "listeners": [listener], "clusters": [application()] });
    if verbose {
        println!(
            "Envoy of the server:\n{}",
            serde_json::to_string_pretty(&resources)?
        );
    }
    let options = EnvoyOptions {
        concurrency: envoy::concurrency()?,
        user: Some(envoy::USER),
    };
    let resources = format!("static_resources: {resources}");
    let of_server = Envoy::start_with(server, &resources, envoy::ADMIN, options)?;
    Ok((vec![of_client, of_server], files))
}

fn context(side: &str, alpn: &[&str], secrets: &Secrets<'_>) -> Value {
    let mut common = json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": alpn,
    });
    let names = json!([{ "prefix": "spiffe://cluster.local/" }]);
    match secrets {
        Secrets::Agent => {
            common["tls_certificate_sds_secret_configs"] = json!([{ "name": "default" }]);
            common["combined_validation_context"] = json!({
                "default_validation_context": { "match_subject_alt_names": names },
                "validation_context_sds_secret_config": { "name": "ROOTCA" } });
        }
        Secrets::Files(folder) => {
            let file = |name: &str| json!({ "filename": folder.with_extension(name) });
            common["tls_certificates"] =
                json!([{ "certificate_chain": file("crt"), "private_key": file("key") }]);
            common["validation_context"] = json!({
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": names[0] }],
                "trusted_ca": { "filename": folder.with_file_name("ca.crt") } });
        }
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": format!("{TLS}.{side}TlsContext"), "common_tls_context": common } })
}

fn upstream(path: Path, secrets: &Secrets<'_>) -> Value {
    let alpn = if matches!(path, Path::MtlsL7 | Path::SameNodeL7) {
        HTTP_ALPN
    } else {
        TCP_ALPN
    };
    let mut socket = context("Upstream", alpn, secrets);
    socket["typed_config"]["sni"] = json!("outbound_.80_._.server.bench.svc.cluster.local");
    socket
}

/// Only the client may ask, and only for some paths.
fn policy() -> Value {
    json!({ "name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": { "action": "ALLOW", "policies": { "client": {
            "permissions": [{ "and_rules": { "rules": [
                { "header": { "name": ":method", "string_match": { "exact": "GET" } } },
                { "url_path": { "path": { "prefix": "/" } } },
            ] } }],
            "principals": [{ "authenticated": { "principal_name": {
                "prefix": "spiffe://cluster.local/ns/bench/" } } }],
        } } } } })
}

/// `virtualInbound` of a STRICT workload: HTTP at one port, TCP at the others. On one node HTTP has
/// a policy.
fn inbound(secrets: &Secrets<'_>, ground: Ground) -> Value {
    let chain = |name: &str, port: Option<u16>, filter: Value, alpn: &[&str]| {
        let mut socket = context("Downstream", alpn, secrets);
        socket["typed_config"]["require_client_certificate"] = json!(true);
        let mut matcher = json!({ "transport_protocol": "tls" });
        if let Some(port) = port {
            matcher["destination_port"] = json!(port);
        }
        json!({ "name": name, "filter_chain_match": matcher, "filters": [filter],
            "transport_socket": socket })
    };
    let http = Service {
        name: INBOUND.into(),
        address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        handling: Handling::Http1,
        server: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
    };
    let mut http = http.filter();
    if ground == Ground::OneNode
        && let Some(filters) = http["typed_config"]["http_filters"].as_array_mut()
    {
        filters.insert(0, policy());
    }
    json!({ "name": "virtualInbound", "traffic_direction": "INBOUND",
        "address": socket_address(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 15006)),
        "listener_filters": [{ "name": "tls_inspector", "typed_config": {
            "@type": format!("{INSPECTORS}.tls_inspector.v3.TlsInspector") } }],
        "filter_chains": [
            chain("http", Some(servers::HTTP1), http, HTTP_ALPN),
            chain("tcp", None, tcp_proxy(INBOUND), TCP_ALPN),
        ] })
}

/// The application of the pod, by the address that was dialled.
fn application() -> Value {
    json!({ "name": INBOUND, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "upstream_bind_config": { "source_address": { "address": "127.0.0.6", "port_value": 0 } } })
}

/// Certificates in a folder, as the agent's own authority makes them.
fn certify(folder: &std::path::Path, pods: &[&str]) -> Result<()> {
    let write = |name: String, text: String| -> Result<()> {
        let path = folder.join(&name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {name}"))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
        Ok(())
    };
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "bench");
    let root = params.self_signed(&key)?;
    write("ca.crt".into(), root.pem())?;
    let issuer = Issuer::new(params, key);
    for pod in pods {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // Another one than its issuer's, or it counts as signed by itself.
        params.distinguished_name = DistinguishedName::new();
        let name = format!("spiffe://cluster.local/ns/bench/sa/{pod}");
        params.subject_alt_names = vec![SanType::URI(name.as_str().try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        write(format!("{pod}.crt"), params.signed_by(&key, &issuer)?.pem())?;
        write(format!("{pod}.key"), key.serialize_pem())?;
    }
    Ok(())
}
