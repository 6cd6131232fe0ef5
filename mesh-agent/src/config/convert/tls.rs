//! Transport sockets.
//!
//! A context that is not understood whole is refused: what was to be encrypted or verified is
//! never sent or taken in the clear instead.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct};

use crate::config::model::tls::{
    CertificateSource, CipherSuite, CommonTls, Data, DownstreamTls, DownstreamTransport, Metadata,
    MetadataValue, NameKind, NameMatcher, TlsVersion, TransportMatch, TrustSource, UpstreamTls,
    UpstreamTransport, Validation,
};

use super::{Problems, decode, hbone, matcher, secret, type_name};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const INTERNAL_UPSTREAM: &str =
    "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// What istiod calls a pod's own certificate.
const WORKLOAD_SECRET: &str = "default";
/// What istiod calls the mesh's roots.
const ROOT_SECRET: &str = "ROOTCA";
/// Istio's names for secrets that lie in the pod's files: `file-cert:CHAIN~KEY`.
const FILE_CERTIFICATE: &str = "file-cert:";
/// Likewise `file-root:ROOTS`.
const FILE_ROOTS: &str = "file-root:";

/// The namespace of endpoint metadata that transports are chosen by.
pub(super) const MATCH_NAMESPACE: &str = "envoy.transport_socket_match";

/// The transport of a cluster or of one of its matches; `None`: it is not understood.
pub(super) fn upstream(
    socket: Option<&core::TransportSocket>,
    path: &str,
    problems: &mut Problems,
) -> Option<UpstreamTransport> {
    let Some(any) = config(socket, path, problems)? else {
        return Some(UpstreamTransport::Plain);
    };
    if type_name(any) == INTERNAL_UPSTREAM {
        return hbone::internal_upstream(any, &format!("{path}.typed_config"), problems);
    }
    if type_name(any) != UPSTREAM {
        return refuse(any, path, problems);
    }
    let path = format!("{path}.typed_config");
    let message: pb::UpstreamTlsContext = decode(any, &path, problems)?;
    Some(UpstreamTransport::Tls(Arc::new(UpstreamTls {
        common: common(message.common_tls_context.as_ref(), &path, problems)?,
        sni: (!message.sni.is_empty()).then(|| message.sni.as_str().into()),
    })))
}

/// The transport of a filter chain.
pub(super) fn downstream(
    socket: Option<&core::TransportSocket>,
    handshake_timeout: Option<Duration>,
    path: &str,
    problems: &mut Problems,
) -> Option<DownstreamTransport> {
    let Some(any) = config(socket, path, problems)? else {
        return Some(DownstreamTransport::Plain);
    };
    if type_name(any) != DOWNSTREAM {
        return refuse(any, path, problems);
    }
    let path = format!("{path}.typed_config");
    let message: pb::DownstreamTlsContext = decode(any, &path, problems)?;
    let common = common(message.common_tls_context.as_ref(), &path, problems)?;
    if common.certificate == CertificateSource::None {
        problems.push(
            format!("{path}.common_tls_context"),
            "a server needs a certificate: tls_certificates or tls_certificate_sds_secret_configs",
        );
    }
    let require_client_certificate = message
        .require_client_certificate
        .as_ref()
        .is_some_and(|value| value.value);
    if require_client_certificate
        && common.validation.as_ref().is_none_or(|validation| {
            validation.trust == TrustSource::None && validation.secret.is_none()
        })
    {
        problems.hint(
            format!("{path}.require_client_certificate"),
            "nothing says whom to trust",
            "add validation_context.trusted_ca or a secret with it",
        );
    }
    Some(DownstreamTransport::Tls(Arc::new(DownstreamTls {
        common,
        require_client_certificate,
        handshake_timeout,
    })))
}

/// The configuration of a socket that is not plain; `None`: something is wrong.
fn config<'a>(
    socket: Option<&'a core::TransportSocket>,
    path: &str,
    problems: &mut Problems,
) -> Option<Option<&'a Any>> {
    let Some(socket) = socket else {
        return Some(None);
    };
    match &socket.config_type {
        Some(ConfigType::TypedConfig(any)) if type_name(any) == RAW_BUFFER => Some(None),
        Some(ConfigType::TypedConfig(any)) => Some(Some(any)),
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Some(None),
        None => {
            problems.push(format!("{path}.typed_config"), "is missing");
            None
        }
    }
}

fn refuse<T>(any: &Any, path: &str, problems: &mut Problems) -> Option<T> {
    problems.hint(
        format!("{path}.typed_config"),
        format!("transport socket {} is not supported here", type_name(any)),
        "what was to be secured is never sent or taken in the clear instead",
    );
    None
}

/// `transport_socket_matches`.
pub(super) fn matches(
    messages: &[TransportSocketMatch],
    problems: &mut Problems,
) -> Option<Vec<TransportMatch>> {
    messages
        .iter()
        .enumerate()
        .map(|(i, message)| {
            let path = format!("transport_socket_matches[{i}]");
            let wanted = match &message.r#match {
                Some(wanted) => metadata(wanted, &format!("{path}.match"), problems),
                None => Metadata::new(),
            };
            Some(TransportMatch {
                name: message.name.as_str().into(),
                wanted: Arc::new(wanted),
                transport: upstream(
                    message.transport_socket.as_ref(),
                    &format!("{path}.transport_socket"),
                    problems,
                )?,
            })
        })
        .collect()
}

fn metadata(message: &Struct, path: &str, problems: &mut Problems) -> Metadata {
    let mut values = Metadata::new();
    for (key, value) in &message.fields {
        match plain_value(value) {
            Some(value) => {
                values.insert(key.as_str().into(), value);
            }
            None => problems.push(
                format!("{path}.{key}"),
                "only texts, numbers and truth values are compared",
            ),
        }
    }
    values
}

fn plain_value(value: &envoy_types::pb::google::protobuf::Value) -> Option<MetadataValue> {
    Some(match value.kind.as_ref()? {
        Kind::StringValue(text) => MetadataValue::Text(text.as_str().into()),
        Kind::NumberValue(number) => MetadataValue::Number(*number),
        Kind::BoolValue(truth) => MetadataValue::Truth(*truth),
        Kind::NullValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => return None,
    })
}

/// What of an endpoint's metadata its transport is chosen by.
pub(super) fn match_metadata(metadata: Option<&core::Metadata>) -> Metadata {
    let namespace = metadata.and_then(|metadata| metadata.filter_metadata.get(MATCH_NAMESPACE));
    let fields = namespace
        .into_iter()
        .flat_map(|namespace| &namespace.fields);
    fields
        .filter_map(|(key, value)| Some((Arc::from(key.as_str()), plain_value(value)?)))
        .collect()
}

fn common(
    message: Option<&pb::CommonTlsContext>,
    path: &str,
    problems: &mut Problems,
) -> Option<CommonTls> {
    let path = format!("{path}.common_tls_context");
    let default = pb::CommonTlsContext::default();
    let message = message.unwrap_or(&default);
    let params = message.tls_params.clone().unwrap_or_default();
    let (min_version, max_version) = versions(&params, &path, problems);
    Some(CommonTls {
        min_version,
        max_version,
        cipher_suites: suites(&params.cipher_suites, &path, problems),
        alpn: message
            .alpn_protocols
            .iter()
            .enumerate()
            .map(|(i, protocol)| {
                if protocol.is_empty() || protocol.len() > 255 {
                    problems.push(
                        format!("{path}.alpn_protocols[{i}]"),
                        "a protocol has 1 to 255 bytes",
                    );
                }
                protocol.as_str().into()
            })
            .collect(),
        certificate: certificate(message, &path, problems)?,
        validation: validation(message.validation_context_type.as_ref(), &path, problems)?,
    })
}

/// Envoy: 1.2 is the lowest by default on both sides.
fn versions(
    params: &pb::TlsParameters,
    path: &str,
    problems: &mut Problems,
) -> (TlsVersion, TlsVersion) {
    let version = |value: i32, default: TlsVersion| match TlsProtocol::try_from(value) {
        Ok(TlsProtocol::TlSv13) => Some(TlsVersion::V13),
        Ok(TlsProtocol::TlSv12) => Some(TlsVersion::V12),
        Ok(TlsProtocol::TlsAuto) => Some(default),
        _ => None,
    };
    // An older lowest version only means that 1.2 is taken, too.
    let min =
        version(params.tls_minimum_protocol_version, TlsVersion::V12).unwrap_or(TlsVersion::V12);
    let max = version(params.tls_maximum_protocol_version, TlsVersion::V13);
    if max.is_none_or(|max| max < min) {
        problems.push(
            format!("{path}.tls_params"),
            "no version is left: TLS 1.2 and 1.3 are supported",
        );
    }
    (min, max.unwrap_or(TlsVersion::V13))
}

fn suites(names: &[String], path: &str, problems: &mut Problems) -> Vec<CipherSuite> {
    let mut suites = Vec::new();
    // BoringSSL's `[A|B]` gives alternatives of equal preference.
    for name in names.iter().flat_map(|name| name.split(['[', '|', ']'])) {
        match name {
            "" => {}
            "ECDHE-ECDSA-AES256-GCM-SHA384" => suites.push(CipherSuite::EcdheEcdsaAes256GcmSha384),
            "ECDHE-RSA-AES256-GCM-SHA384" => suites.push(CipherSuite::EcdheRsaAes256GcmSha384),
            "ECDHE-ECDSA-AES128-GCM-SHA256" => suites.push(CipherSuite::EcdheEcdsaAes128GcmSha256),
            "ECDHE-RSA-AES128-GCM-SHA256" => suites.push(CipherSuite::EcdheRsaAes128GcmSha256),
            "ECDHE-ECDSA-CHACHA20-POLY1305" => {
                suites.push(CipherSuite::EcdheEcdsaChacha20Poly1305);
            }
            "ECDHE-RSA-CHACHA20-POLY1305" => suites.push(CipherSuite::EcdheRsaChacha20Poly1305),
            // Without forward secrecy or authenticated encryption: left out of the offer.
            "AES128-GCM-SHA256"
            | "AES256-GCM-SHA384"
            | "AES128-SHA"
            | "AES256-SHA"
            | "ECDHE-ECDSA-AES128-SHA"
            | "ECDHE-ECDSA-AES256-SHA"
            | "ECDHE-RSA-AES128-SHA"
            | "ECDHE-RSA-AES256-SHA" => {}
            other => problems.push(
                format!("{path}.tls_params.cipher_suites"),
                format!("{other} is not known"),
            ),
        }
    }
    if suites.is_empty() && !names.is_empty() {
        problems.hint(
            format!("{path}.tls_params.cipher_suites"),
            "none of them is supported",
            "name one with ECDHE and GCM or CHACHA20",
        );
    }
    suites
}

fn certificate(
    message: &pb::CommonTlsContext,
    path: &str,
    problems: &mut Problems,
) -> Option<CertificateSource> {
    let inline = &message.tls_certificates[..];
    let secrets = &message.tls_certificate_sds_secret_configs[..];
    match (inline, secrets) {
        ([], []) => Some(CertificateSource::None),
        ([one], []) => {
            let (chain, key) =
                secret::certificate(one, &format!("{path}.tls_certificates[0]"), problems)?;
            Some(CertificateSource::Data { chain, key })
        }
        ([], [secret]) => {
            let path = format!("{path}.tls_certificate_sds_secret_configs[0]");
            let secret = secret::reference(secret, &path, problems)?;
            match (&*secret.name, secret.name.strip_prefix(FILE_CERTIFICATE)) {
                (WORKLOAD_SECRET, _) if !secret.is_delivered() => Some(CertificateSource::Workload),
                (_, Some(files)) => {
                    let Some((chain, key)) = files.split_once('~') else {
                        let reason = format!("{:?} is not file-cert:CHAIN~KEY", secret.name);
                        problems.push(format!("{path}.name"), reason);
                        return None;
                    };
                    Some(CertificateSource::Data {
                        chain: Data::File(chain.into()),
                        key: Data::File(key.into()),
                    })
                }
                _ => Some(CertificateSource::Secret(secret.reference())),
            }
        }
        _ => {
            problems.push(
                format!("{path}.tls_certificates"),
                "several certificates are not supported: give one",
            );
            None
        }
    }
}

/// `None`: something is wrong; `Some(None)`: nothing is validated.
fn validation(
    message: Option<&ValidationContextType>,
    path: &str,
    problems: &mut Problems,
) -> Option<Option<Validation>> {
    match message {
        None => Some(None),
        Some(ValidationContextType::ValidationContext(context)) => {
            let path = format!("{path}.validation_context");
            checks(context, &path, problems).map(Some)
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            let path = format!("{path}.validation_context_sds_secret_config");
            let mut checks = Validation::default();
            trust(secret, &path, &mut checks, problems)?;
            Some(Some(checks))
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let default = pb::CertificateValidationContext::default();
            let context = combined.default_validation_context.as_ref();
            let path = format!("{path}.combined_validation_context");
            let nested = format!("{path}.default_validation_context");
            let mut checks = checks(context.unwrap_or(&default), &nested, problems)?;
            if let Some(secret) = &combined.validation_context_sds_secret_config {
                let path = format!("{path}.validation_context_sds_secret_config");
                trust(secret, &path, &mut checks, problems)?;
            }
            Some(Some(checks))
        }
        Some(_) => {
            problems.push(
                format!("{path}.validation_context"),
                "certificate providers are not supported",
            );
            None
        }
    }
}

/// Envoy merges what a secret says into the context; here it says where the secret is.
fn trust(
    secret: &pb::SdsSecretConfig,
    path: &str,
    checks: &mut Validation,
    problems: &mut Problems,
) -> Option<()> {
    let secret = secret::reference(secret, path, problems)?;
    match (&*secret.name, secret.name.strip_prefix(FILE_ROOTS)) {
        (ROOT_SECRET, _) if !secret.is_delivered() => checks.trust = TrustSource::Mesh,
        (_, Some(file)) => checks.trust = TrustSource::Data(Data::File(file.into())),
        _ => checks.secret = Some(secret.reference()),
    }
    Some(())
}

pub(super) fn checks(
    message: &pb::CertificateValidationContext,
    path: &str,
    problems: &mut Problems,
) -> Option<Validation> {
    let crl = match &message.crl {
        Some(source) => Some(secret::revocations(
            source,
            &format!("{path}.crl"),
            problems,
        )?),
        None => None,
    };
    let trust = match (&message.trusted_ca, &message.custom_validator_config) {
        (_, Some(custom)) => secret::domains(custom, path, problems)?,
        (Some(source), None) => TrustSource::Data(secret::roots(
            source,
            &format!("{path}.trusted_ca"),
            problems,
        )?),
        (None, None) => TrustSource::None,
    };
    Some(Validation {
        trust,
        names: names(message, path, problems),
        crl,
        secret: None,
    })
}

fn names(
    message: &pb::CertificateValidationContext,
    path: &str,
    problems: &mut Problems,
) -> Vec<NameMatcher> {
    let mut names = Vec::new();
    for (i, typed) in message.match_typed_subject_alt_names.iter().enumerate() {
        let path = format!("{path}.match_typed_subject_alt_names[{i}]");
        let kind = match SanType::try_from(typed.san_type) {
            Ok(SanType::Dns) => NameKind::Dns,
            Ok(SanType::Uri) => NameKind::Uri,
            Ok(SanType::IpAddress) => NameKind::Ip,
            Ok(SanType::Email) => NameKind::Email,
            _ => {
                problems.push(
                    format!("{path}.san_type"),
                    "must be DNS, URI, IP_ADDRESS or EMAIL",
                );
                continue;
            }
        };
        let matcher = typed.matcher.clone().unwrap_or_default();
        if let Some(matcher) = matcher::string(&matcher, &format!("{path}.matcher"), problems) {
            names.push(NameMatcher {
                kind: Some(kind),
                matcher,
            });
        }
    }
    // Deprecated in Envoy, and what istiod sends.
    #[expect(deprecated)]
    let untyped = &message.match_subject_alt_names;
    for (i, untyped) in untyped.iter().enumerate() {
        let path = format!("{path}.match_subject_alt_names[{i}]");
        if let Some(matcher) = matcher::string(untyped, &path, problems) {
            names.push(NameMatcher {
                kind: None,
                matcher,
            });
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn typed(message: &str, fields: Value) -> Value {
        let mut typed = json!({ "@type": format!("type.googleapis.com/{message}") });
        for (name, value) in fields.as_object().into_iter().flatten() {
            typed[name] = value.clone();
        }
        json!({ "name": "tls", "typed_config": typed })
    }

    fn socket(message: &str, fields: Value) -> core::TransportSocket {
        let descriptor = crate::config::descriptors::pool()
            .get_message_by_name("envoy.config.core.v3.TransportSocket")
            .expect("known");
        let json = typed(message, fields);
        let message = prost_reflect::DynamicMessage::deserialize(descriptor, json).expect("valid");
        prost::Message::decode(prost::Message::encode_to_vec(&message).as_slice())
            .expect("the same")
    }

    fn refused(transport: Option<UpstreamTransport>, problems: &Problems) -> bool {
        transport.is_none() && !problems.0.is_empty()
    }

    #[test]
    fn the_secrets_of_istiod_are_the_pods_identity_and_the_meshs_roots() {
        let context = json!({
            "sni": "outbound_.80_._.reviews.default.svc.cluster.local",
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{ "name": "default" }],
                "combined_validation_context": {
                    "default_validation_context": { "match_subject_alt_names": [
                        { "exact": "spiffe://cluster.local/ns/default/sa/reviews" } ] },
                    "validation_context_sds_secret_config": { "name": "ROOTCA" },
                },
                "alpn_protocols": ["istio-peer-exchange", "istio"],
            },
        });
        let mut problems = Problems::default();
        let transport = upstream(Some(&socket(UPSTREAM, context)), "t", &mut problems);
        let Some(UpstreamTransport::Tls(tls)) = transport else {
            panic!("{problems:?}");
        };
        assert_eq!(tls.common.certificate, CertificateSource::Workload);
        let validation = tls.common.validation.as_ref().expect("validated");
        assert_eq!(validation.trust, TrustSource::Mesh);
        assert_eq!(validation.names.len(), 1);
        assert_eq!(tls.common.alpn.len(), 2);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_never_plain() {
        for (message, context) in [
            ("envoy.extensions.filters.http.router.v3.Router", json!({})),
            (
                UPSTREAM,
                json!({ "common_tls_context": { "tls_params": {
                    "tls_maximum_protocol_version": "TLSv1_1" } } }),
            ),
            (
                UPSTREAM,
                json!({ "common_tls_context": { "tls_params": {
                    "cipher_suites": ["AES128-SHA"] } } }),
            ),
            (
                UPSTREAM,
                json!({ "common_tls_context": { "validation_context": {
                    "trusted_ca": { "environment_variable": "CA" } } } }),
            ),
        ] {
            let mut problems = Problems::default();
            let transport = upstream(Some(&socket(message, context)), "t", &mut problems);
            assert!(
                refused(transport.clone(), &problems) || !problems.0.is_empty(),
                "{message}: {transport:?}"
            );
        }
        let mut problems = Problems::default();
        let open = json!({ "require_client_certificate": true,
            "common_tls_context": { "tls_certificate_sds_secret_configs": [{ "name": "default" }] } });
        downstream(Some(&socket(DOWNSTREAM, open)), None, "t", &mut problems);
        assert_eq!(problems.0.len(), 1, "trusting everybody is no requirement");
    }

    #[test]
    fn the_first_match_of_an_endpoints_metadata_says_how_it_is_reached() {
        let tls = upstream(
            Some(&socket(UPSTREAM, json!({}))),
            "t",
            &mut Problems::default(),
        )
        .expect("understood");
        let wanted = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(key, value)| (Arc::from(*key), MetadataValue::Text((*value).into())));
            Arc::new(pairs.collect::<Metadata>())
        };
        let matches = [
            TransportMatch {
                name: "tlsMode-istio".into(),
                wanted: wanted(&[("tlsMode", "istio")]),
                transport: tls,
            },
            TransportMatch {
                name: "tlsMode-disabled".into(),
                wanted: wanted(&[]),
                transport: UpstreamTransport::Plain,
            },
        ];
        let select = |pairs: &[(&str, &str)]| {
            UpstreamTransport::select(&matches, &UpstreamTransport::Plain, &wanted(pairs))
        };
        assert!(!select(&[("tlsMode", "istio"), ("more", "yes")]).is_plain());
        assert!(select(&[("tlsMode", "disabled")]).is_plain());
        assert!(select(&[]).is_plain());
    }
}
