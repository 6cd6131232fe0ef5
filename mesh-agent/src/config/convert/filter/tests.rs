use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};

use crate::config::convert::{self, Problems};
use crate::config::descriptors::pool;

/// What is wrong with a listener that has one filter.
fn problems(filter: &Value) -> Vec<String> {
    let router = json!({ "name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } });
    let hcm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h", "route_config": { "name": "r" }, "http_filters": [filter, router],
    });
    let listener = json!({
        "name": "l",
        "address": { "socket_address": { "address": "192.0.2.1", "port_value": 80 } },
        "filter_chains": [{ "filters": [{ "name": "h", "typed_config": hcm }] }],
    });
    let descriptor = pool()
        .get_message_by_name("envoy.config.listener.v3.Listener")
        .expect("known");
    let message = DynamicMessage::deserialize(descriptor, listener).expect("valid");
    let message = Listener::decode(message.encode_to_vec().as_slice()).expect("the same");
    match convert::listener(&message) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn of(name: &str, message: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = json!(format!(
        "type.googleapis.com/envoy.extensions.filters.http.{message}"
    ));
    json!({ "name": name, "typed_config": config })
}

#[track_caller]
fn refused(filter: &Value, words: &[&str]) {
    let problems = problems(filter);
    let all = problems.join("\n");
    assert!(!problems.is_empty(), "{filter} is taken");
    for word in words {
        assert!(all.contains(word), "{word} is not said: {all}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (kind, reason) in [
        ("lua.v3.Lua", "scripts do not run"),
        ("wasm.v3.Wasm", "modules do not run"),
        (
            "grpc_json_transcoder.v3.GrpcJsonTranscoder",
            "not translated",
        ),
        ("unheard_of.v3.Filter", "not supported yet"),
    ] {
        let filter = HttpFilter {
            name: "x".into(),
            config_type: Some(ConfigType::TypedConfig(Any {
                type_url: format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"),
                value: Vec::new(),
            })),
            ..Default::default()
        };
        let mut problems = Problems::default();
        super::chain(&[filter], "hcm", &mut problems);
        let all = format!("{problems:?}");
        assert!(all.contains(kind) && all.contains(reason), "{all}");
    }
}

#[test]
fn optional_filters_are_left_out_unless_they_decide_about_access() {
    let any = |kind: &str, value| {
        let type_url = format!("type.googleapis.com/{kind}");
        Some(ConfigType::TypedConfig(Any { type_url, value }))
    };
    // A loose message of a type that nobody here knows: a string in field 1.
    let loose = |inner: &str| {
        let mut value = vec![10, inner.len() as u8];
        value.extend(inner.as_bytes());
        any("xds.type.v3.TypedStruct", value)
    };
    let discovered = |inner: &str| {
        Some(ConfigType::ConfigDiscovery(ExtensionConfigSource {
            type_urls: vec![inner.into()],
            ..Default::default()
        }))
    };
    let extension = "envoy.extensions.filters.http";
    for (name, config_type, is_left_out) in [
        ("x", any("acme.Colours", Vec::new()), true),
        (
            "x",
            any(&format!("{extension}.wasm.v3.Wasm"), Vec::new()),
            true,
        ),
        ("x", loose("acme.com/acme.Colours"), true),
        ("x", discovered("acme.com/acme.Colours"), true),
        (
            "x",
            any(&format!("{extension}.basic_auth.v3.BasicAuth"), Vec::new()),
            false,
        ),
        (
            "x",
            any(&format!("{extension}.csrf.v3.CsrfPolicy"), Vec::new()),
            false,
        ),
        ("x", any("acme.RbacCheck", Vec::new()), false),
        ("x", loose("acme.com/acme.OAuth"), false),
        ("x", discovered("acme.com/acme.JwtCheck"), false),
        (
            "acme.authz",
            any(&format!("{extension}.wasm.v3.Wasm"), Vec::new()),
            false,
        ),
        (
            "envoy.filters.http.rbac",
            discovered("acme.com/acme.Colours"),
            false,
        ),
        ("envoy.filters.http.ext_authz", None, false),
    ] {
        for is_optional in [true, false] {
            let filter = HttpFilter {
                name: name.into(),
                config_type: config_type.clone(),
                is_optional,
                ..Default::default()
            };
            let router = HttpFilter {
                name: "envoy.filters.http.router".into(),
                ..Default::default()
            };
            let mut problems = Problems::default();
            super::chain(&[filter, router], "hcm", &mut problems);
            let told = problems.finish(|| ()).is_err();
            let wanted = !(is_optional && is_left_out);
            assert_eq!(
                told, wanted,
                "{name} {config_type:?} optional: {is_optional}"
            );
        }
    }
}

#[test]
fn conditions_that_are_not_understood_are_refused() {
    let policy = json!({ "permissions": [{ "any": true }], "principals": [{ "any": true }],
        "condition": { "const_expr": { "bool_value": true } } });
    let rbac = json!({ "rules": { "policies": { "p": policy } } });
    refused(
        &of("rbac", "rbac.v3.RBAC", rbac),
        &["policies[p].condition"],
    );
}

#[test]
fn token_providers_must_be_complete() {
    let jwt = |config: Value| of("jwt", "jwt_authn.v3.JwtAuthentication", config);
    let keys = json!({ "inline_string": "{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}" });
    let good = json!({ "providers": { "p": { "issuer": "i", "local_jwks": keys } },
        "rules": [{ "match": { "prefix": "/" }, "requires": { "provider_name": "p" } }] });
    assert_eq!(problems(&jwt(good.clone())), Vec::<String>::new());
    let mut other = good.clone();
    other["rules"][0]["requires"]["provider_name"] = json!("q");
    refused(
        &jwt(other),
        &["rules[0].requires.provider_name", "q is not configured"],
    );
    let mut none = good.clone();
    none["providers"]["p"] = json!({ "issuer": "i" });
    refused(&jwt(none), &["providers[p]", "keys are missing"]);
    let mut broken = good.clone();
    broken["providers"]["p"]["local_jwks"] = json!({ "inline_string": "nonsense" });
    refused(&jwt(broken), &["local_jwks", "invalid JSON"]);
    let mut extracted = good;
    extracted["rules"][0]["requires"] = json!({ "extract_only_without_validation": {} });
    refused(&jwt(extracted), &["extract_only_without_validation"]);
}

#[test]
fn settings_of_kept_decisions_are_checked() {
    let authz = |cache: Value| {
        let service = json!({ "envoy_grpc": { "cluster_name": "c" } });
        let config =
            json!({ "grpc_service": service, "filter_metadata": { "check_cache": cache } });
        of("authz", "ext_authz.v3.ExtAuthz", config)
    };
    let good = json!({ "positive_ttl": "1.5s", "negative_ttl": "1s", "max_entries": 10, "headers": ["a"] });
    assert_eq!(problems(&authz(good)), Vec::<String>::new());
    for (field, value) in [
        ("positive_ttl", json!(5)),
        ("negative_ttl", json!("-1s")),
        ("max_entries", json!(0)),
        ("headers", json!(["not a name"])),
        ("ttl", json!("1s")),
    ] {
        refused(&authz(json!({ field: value })), &["check_cache", field]);
    }
}

#[test]
fn services_that_are_asked_are_clusters() {
    let google =
        json!({ "grpc_service": { "google_grpc": { "target_uri": "a", "stat_prefix": "s" } } });
    refused(
        &of("authz", "ext_authz.v3.ExtAuthz", google),
        &["google_grpc"],
    );
    let limit = json!({ "domain": "d", "rate_limit_service": { "transport_api_version": "V3" } });
    refused(
        &of("rls", "ratelimit.v3.RateLimit", limit),
        &["rate_limit_service.grpc_service"],
    );
}
