//! The descriptors that JSON and YAML need, from the definitions that ship with the messages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use protox::prost::Message as _;

use crate::sh::cargo;
use crate::workspace::root;

/// Folders below the crate's `proto/`, each an include path.
const INCLUDES: [&str; 7] = [
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "client_model",
    "opentelemetry-proto",
    "cel-spec",
];

/// Files whose messages may be written in a configuration file; what they import comes along.
const FILES: &[&str] = &[
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/clusters/dns/v3/dns_cluster.proto",
    "envoy/extensions/compression/brotli/compressor/v3/brotli.proto",
    "envoy/extensions/compression/gzip/compressor/v3/gzip.proto",
    "envoy/extensions/compression/zstd/compressor/v3/zstd.proto",
    "envoy/extensions/filters/http/buffer/v3/buffer.proto",
    "envoy/extensions/filters/http/compressor/v3/compressor.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/stateful_session/v3/stateful_session.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/http/stateful_session/cookie/v3/cookie.proto",
    "envoy/extensions/http/stateful_session/header/v3/header.proto",
    "envoy/extensions/internal_redirect/allow_listed_routes/v3/allow_listed_routes_config.proto",
    "envoy/extensions/internal_redirect/previous_routes/v3/previous_routes_config.proto",
    "envoy/extensions/internal_redirect/safe_cross_scheme/v3/safe_cross_scheme_config.proto",
    "envoy/extensions/load_balancing_policies/client_side_weighted_round_robin/v3/client_side_weighted_round_robin.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
];

/// Files that are compiled by themselves: they name `common.ratelimit` relatively, which the
/// compiler looks for in `envoy.extensions.filters.common` once another file has made that.
const APART: &[&str] = &["envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto"];

/// Where the result is kept.
fn destination() -> PathBuf {
    root().join("proto/descriptors.bin")
}

/// Writes the descriptors anew.
///
/// # Errors
/// The definitions are not where cargo keeps its sources, or do not compile.
pub(crate) fn run() -> anyhow::Result<()> {
    let bytes = generate()?;
    fs::write(destination(), &bytes)?;
    println!("{}: {} bytes", destination().display(), bytes.len());
    Ok(())
}

fn generate() -> anyhow::Result<Vec<u8>> {
    let proto = definitions()?;
    let includes: Vec<PathBuf> = INCLUDES
        .iter()
        .map(|folder| proto.join(folder))
        .filter(|path| path.is_dir())
        .collect();
    let compiled = |files: &[&str]| -> anyhow::Result<_> {
        Ok(protox::Compiler::new(&includes)?
            .include_imports(true)
            .include_source_info(false)
            .open_files(files.iter().map(Path::new))?
            .file_descriptor_set())
    };
    let mut set = compiled(FILES)?;
    for file in compiled(APART)?.file {
        if set.file.iter().all(|known| known.name != file.name) {
            set.file.push(file);
        }
    }
    Ok(set.encode_to_vec())
}

/// The `proto` folder of the envoy-types sources.
fn definitions() -> anyhow::Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--format-version=1", "--locked"])
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        output.status
    );
    let metadata = String::from_utf8_lossy(&output.stdout);
    // A package's manifest path is the only thing wanted of a document of megabytes.
    let start = metadata
        .match_indices("\"manifest_path\":\"")
        .map(|(at, key)| &metadata[at + key.len()..])
        .find(|rest| {
            rest.split('"')
                .next()
                .is_some_and(|path| path.contains("/envoy-types-"))
        })
        .context("cargo metadata does not list envoy-types")?;
    let manifest = Path::new(start.split('"').next().unwrap_or_default());
    Ok(manifest
        .parent()
        .context("a manifest lies in a folder")?
        .join("proto"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn committed_descriptors_are_current() {
        let current = super::generate().expect("the definitions compile");
        let committed = std::fs::read(super::destination()).expect("proto/descriptors.bin");
        assert!(
            current == committed,
            "stale: run `cargo xtask gen-descriptors` and commit"
        );
    }
}
