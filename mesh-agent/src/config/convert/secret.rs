//! Secrets, references to them, and the bytes they are made of. What is given inline is parsed
//! here, so that a bad one is refused and the last good one stays.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;

use crate::config::model::secret::{Secret, SecretRef, SecretServer, SecretSource, SecretValue};
use crate::config::model::tls::{Data, TrustSource};
use crate::identity::{certificates, certified_key, revocations as parse_revocations, root_store};

use super::{Converted, Problems, decode, tls, type_name};

const SPIFFE_VALIDATOR: &str =
    "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// The cluster by which istiod means the proxy's own agent.
const OWN_AGENT: &str = "sds-grpc";

/// Converts a secret.
///
/// # Errors
/// Everything that is wrong with it.
pub fn secret(message: &pb::Secret) -> Converted<Secret> {
    let mut problems = Problems::of("envoy.extensions.transport_sockets.tls.v3.Secret", message);
    if message.name.is_empty() {
        problems.push("name", "is missing");
    }
    let value = match &message.r#type {
        Some(Type::TlsCertificate(pair)) => certificate(pair, "tls_certificate", &mut problems)
            .map(|(chain, key)| SecretValue::Certificate { chain, key }),
        Some(Type::ValidationContext(context)) => {
            tls::checks(context, "validation_context", &mut problems).map(SecretValue::Validation)
        }
        Some(_) => {
            problems.push(
                "",
                "only tls_certificate and validation_context are supported",
            );
            None
        }
        None => {
            problems.push("", "is empty: tls_certificate or validation_context");
            None
        }
    };
    match value {
        Some(value) => problems.finish(|| Secret {
            name: message.name.as_str().into(),
            value,
        }),
        None => Err(problems.0),
    }
}

/// A secret as a context names it.
pub(super) struct Named {
    pub(super) name: Arc<str>,
    /// `None`: whoever has it.
    source: Option<SecretSource>,
}

impl Named {
    /// Whether somebody is named who delivers it.
    pub(super) fn is_delivered(&self) -> bool {
        self.source.is_some()
    }

    pub(super) fn reference(self) -> SecretRef {
        SecretRef {
            name: self.name,
            source: self.source.unwrap_or(SecretSource::Configuration),
        }
    }
}

/// What a context says of a secret.
pub(super) fn reference(
    message: &pb::SdsSecretConfig,
    path: &str,
    problems: &mut Problems,
) -> Option<Named> {
    if message.name.is_empty() {
        problems.push(format!("{path}.name"), "is missing");
        return None;
    }
    let source = message.sds_config.as_ref();
    let source = match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None => None,
        Some(
            ConfigSourceSpecifier::Ads(_)
            | ConfigSourceSpecifier::PathConfigSource(_)
            | ConfigSourceSpecifier::Self_(_),
        ) => Some(SecretSource::Configuration),
        Some(ConfigSourceSpecifier::ApiConfigSource(api)) => server(
            api,
            &format!("{path}.sds_config.api_config_source"),
            problems,
        )?
        .map(SecretSource::Server),
        Some(_) => {
            problems.push(
                format!("{path}.sds_config"),
                "only ads, path_config_source and api_config_source are supported",
            );
            return None;
        }
    };
    Some(Named {
        name: message.name.as_str().into(),
        source,
    })
}

/// `Some(None)`: the agent itself.
fn server(
    api: &core::ApiConfigSource,
    path: &str,
    problems: &mut Problems,
) -> Option<Option<SecretServer>> {
    if !matches!(
        ApiType::try_from(api.api_type),
        Ok(ApiType::Grpc | ApiType::DeltaGrpc)
    ) {
        problems.push(format!("{path}.api_type"), "must be GRPC or DELTA_GRPC");
    }
    let [service] = &api.grpc_services[..] else {
        problems.push(
            format!("{path}.grpc_services"),
            format!("exactly one is needed, not {}", api.grpc_services.len()),
        );
        return None;
    };
    match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(envoy)) if envoy.cluster_name == OWN_AGENT => Some(None),
        Some(TargetSpecifier::EnvoyGrpc(envoy)) => Some(Some(SecretServer::Cluster(
            envoy.cluster_name.as_str().into(),
        ))),
        Some(TargetSpecifier::GoogleGrpc(google))
            if google.channel_credentials.is_none() && google.call_credentials.is_empty() =>
        {
            Some(Some(SecretServer::Target(
                google.target_uri.as_str().into(),
            )))
        }
        _ => {
            problems.hint(
                format!("{path}.grpc_services[0]"),
                "only envoy_grpc, and google_grpc without credentials, are supported",
                "name a cluster: its transport_socket says how to speak to the server",
            );
            None
        }
    }
}

/// A chain and its key, which must fit if both are here.
pub(super) fn certificate(
    message: &pb::TlsCertificate,
    path: &str,
    problems: &mut Problems,
) -> Option<(Data, Data)> {
    let at = format!("{path}.certificate_chain");
    let chain = data(message.certificate_chain.as_ref(), &at, problems)?;
    let key = data(
        message.private_key.as_ref(),
        &format!("{path}.private_key"),
        problems,
    )?;
    if let (Data::Inline(chain), Data::Inline(key)) = (&chain, &key)
        && let Err(error) = certified_key(chain, key)
    {
        problems.push(path, error.to_string());
        return None;
    }
    Some((chain, key))
}

pub(super) fn roots(
    source: &core::DataSource,
    path: &str,
    problems: &mut Problems,
) -> Option<Data> {
    let data = data(Some(source), path, problems)?;
    if let Data::Inline(pem) = &data
        && let Err(error) = certificates(pem).and_then(root_store)
    {
        problems.push(path, error.to_string());
        return None;
    }
    Some(data)
}

pub(super) fn revocations(
    source: &core::DataSource,
    path: &str,
    problems: &mut Problems,
) -> Option<Data> {
    let data = data(Some(source), path, problems)?;
    if let Data::Inline(pem) = &data
        && let Err(error) = parse_revocations(pem)
    {
        problems.push(path, error.to_string());
        return None;
    }
    Some(data)
}

/// The one custom validator there is: trust by the peer's trust domain.
pub(super) fn domains(
    custom: &core::TypedExtensionConfig,
    path: &str,
    problems: &mut Problems,
) -> Option<TrustSource> {
    let path = format!("{path}.custom_validator_config.typed_config");
    let any = custom.typed_config.as_ref();
    let Some(any) = any.filter(|any| type_name(any) == SPIFFE_VALIDATOR) else {
        let kind = any.map_or("nothing", |any| type_name(any));
        problems.hint(
            &path,
            format!("{kind} is not supported here"),
            format!("the only custom validator is {SPIFFE_VALIDATOR}"),
        );
        return None;
    };
    let message: pb::SpiffeCertValidatorConfig = decode(any, &path, problems)?;
    if message.trust_domains.is_empty() {
        problems.push(format!("{path}.trust_domains"), "at least one is needed");
    }
    let mut domains: Vec<(Arc<str>, Data)> = Vec::new();
    for (i, domain) in message.trust_domains.iter().enumerate() {
        let path = format!("{path}.trust_domains[{i}]");
        if domain.name.is_empty() || domains.iter().any(|(known, _)| **known == *domain.name) {
            problems.push(
                format!("{path}.name"),
                "must not be empty, nor stand there twice",
            );
        }
        let default = core::DataSource::default();
        let bundle = domain.trust_bundle.as_ref().unwrap_or(&default);
        let bundle = roots(bundle, &format!("{path}.trust_bundle"), problems)?;
        domains.push((domain.name.as_str().into(), bundle));
    }
    Some(TrustSource::Domains(domains.into()))
}

fn data(source: Option<&core::DataSource>, path: &str, problems: &mut Problems) -> Option<Data> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::Filename(file)) if !file.is_empty() => Some(Data::File(file.into())),
        Some(Specifier::InlineBytes(bytes)) => Some(Data::Inline(bytes.as_slice().into())),
        Some(Specifier::InlineString(text)) => Some(Data::Inline(text.as_bytes().into())),
        Some(Specifier::EnvironmentVariable(_)) => {
            problems.push(path, "environment_variable is not supported: use filename");
            None
        }
        _ => {
            problems.push(path, "is missing: filename, inline_bytes or inline_string");
            None
        }
    }
}

#[cfg(test)]
mod tests;
