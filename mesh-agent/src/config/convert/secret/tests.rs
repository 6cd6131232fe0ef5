use serde_json::{Value, json};

use super::*;
use crate::config::model::tls::{CertificateSource, DownstreamTls, DownstreamTransport};
use crate::identity::dev::test_pair;

fn message<M: prost::Message + Default>(name: &str, json: Value) -> M {
    let descriptor = crate::config::descriptors::pool()
        .get_message_by_name(name)
        .expect(name);
    let filled = prost_reflect::DynamicMessage::deserialize(descriptor, json).expect("valid");
    M::decode(prost::Message::encode_to_vec(&filled).as_slice()).expect("the same")
}

fn converted(json: Value) -> Result<Secret, String> {
    let message: pb::Secret = message("envoy.extensions.transport_sockets.tls.v3.Secret", json);
    secret(&message).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })
}

fn context(certificate: Value, validation: Value) -> Arc<DownstreamTls> {
    let any = json!({ "name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": { "tls_certificate_sds_secret_configs": [certificate],
            "combined_validation_context": {
                "default_validation_context": { "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "exact": "spiffe://a/b" } }] },
                "validation_context_sds_secret_config": validation } } } });
    let socket = message("envoy.config.core.v3.TransportSocket", any);
    let mut problems = Problems::default();
    match tls::downstream(Some(&socket), None, "t", &mut problems) {
        Some(DownstreamTransport::Tls(tls)) if problems.0.is_empty() => tls,
        other => panic!("{other:?} {problems:?}"),
    }
}

#[test]
fn a_bad_secret_is_refused_with_the_reason() {
    let (chain, key) = test_pair("spiffe://a/b");
    let (_, other) = test_pair("spiffe://a/c");
    let pair = |chain: &str, key: &str| {
        json!({ "name": "s", "tls_certificate": { "certificate_chain": { "inline_string": chain },
            "private_key": { "inline_string": key } } })
    };
    let roots = |pem: &str| json!({ "name": "s", "validation_context": { "trusted_ca": { "inline_string": pem } } });
    assert!(converted(pair(&chain, &key)).is_ok());
    assert!(converted(roots(&chain)).is_ok());
    let spiffe = |domains: Value| {
        json!({ "name": "s", "validation_context": { "custom_validator_config": {
            "name": "envoy.tls.cert_validator.spiffe", "typed_config": {
                "@type": format!("type.googleapis.com/{SPIFFE_VALIDATOR}"), "trust_domains": domains } } } })
    };
    let domain = |name: &str| json!({ "name": name, "trust_bundle": { "inline_string": chain } });
    assert!(converted(spiffe(json!([domain("a"), domain("b")]))).is_ok());
    for (json, reason) in [
        (pair(&chain, &other), "does not fit"),
        (pair("", &key), "no certificate"),
        (pair(&chain, ""), "no private key"),
        (roots("garbage"), "no certificate"),
        (json!({ "name": "s" }), "is empty"),
        (json!({ "tls_certificate": {} }), "is missing"),
        (
            json!({ "name": "s", "generic_secret": {} }),
            "not supported",
        ),
        (
            json!({ "name": "s", "validation_context": { "crl": { "inline_string": chain } } }),
            "no revocation list",
        ),
        (spiffe(json!([])), "at least one"),
        (spiffe(json!([domain("a"), domain("a")])), "twice"),
        (
            json!({ "name": "s", "validation_context": { "custom_validator_config": {
                "name": "mine", "typed_config": {
                    "@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s" } } } }),
            "only custom validator",
        ),
    ] {
        let error = converted(json.clone()).expect_err(&json.to_string());
        assert!(error.contains(reason), "{json}: {error}");
    }
}

#[test]
fn who_delivers_a_secret_is_told_by_its_source() {
    let api = |service: Value| {
        json!({ "api_config_source": { "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [service] }, "resource_api_version": "V3" })
    };
    let own = api(json!({ "envoy_grpc": { "cluster_name": "sds-grpc" } }));
    let istio = context(
        json!({ "name": "default", "sds_config": own }),
        json!({ "name": "ROOTCA", "sds_config": own }),
    );
    assert_eq!(istio.common.certificate, CertificateSource::Workload);
    let validation = istio.common.validation.as_ref().expect("validated");
    assert_eq!(
        (&validation.trust, &validation.secret),
        (&TrustSource::Mesh, &None)
    );

    let of = |source: SecretSource, name: &str| SecretRef {
        name: name.into(),
        source,
    };
    let spire = api(json!({ "envoy_grpc": { "cluster_name": "spire" } }));
    let target =
        api(json!({ "google_grpc": { "target_uri": "unix:/agent.sock", "stat_prefix": "s" } }));
    let tls = context(
        json!({ "name": "spiffe://a/b", "sds_config": spire }),
        json!({ "name": "spiffe://a", "sds_config": target }),
    );
    let server = |server: SecretServer| SecretSource::Server(server);
    assert_eq!(
        tls.common.secrets(),
        [
            Some(&of(
                server(SecretServer::Cluster("spire".into())),
                "spiffe://a/b"
            )),
            Some(&of(
                server(SecretServer::Target("unix:/agent.sock".into())),
                "spiffe://a"
            )),
        ]
    );
    // Named so, and delivered all the same.
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let tls = context(
        json!({ "name": "default", "sds_config": ads }),
        json!({ "name": "mine" }),
    );
    let configured = |name: &str| of(SecretSource::Configuration, name);
    assert_eq!(
        tls.common.secrets(),
        [Some(&configured("default")), Some(&configured("mine"))]
    );
    // Names of both hold, trust is the secret's.
    let (chain, _) = test_pair("spiffe://a/b");
    let secret = converted(json!({ "name": "mine", "validation_context": {
        "trusted_ca": { "inline_string": chain },
        "match_typed_subject_alt_names": [
            { "san_type": "URI", "matcher": { "exact": "spiffe://a/c" } }] } }))
    .expect("valid");
    let SecretValue::Validation(checks) = &secret.value else {
        panic!("{secret:?}");
    };
    let merged = tls
        .common
        .validation
        .as_ref()
        .expect("validated")
        .merged(checks);
    assert!(matches!(merged.trust, TrustSource::Data(_)) && merged.secret.is_none());
    assert_eq!(merged.names.len(), 2);
}
