//! Filters whose configuration comes as a `TypedStruct`: a type's name beside loose fields.
//!
//! Control planes use it for types they do not know themselves. What it holds is judged by the
//! type it names, never by the name of the filter: an access check called `istio.stats` stays an
//! access check.

use std::borrow::Cow;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::listener_filter;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Struct, Value};
use prost::Message;
use prost_reflect::DynamicMessage;

use crate::config::descriptors::pool;

use super::{Problems, type_name};

/// `xds.type.v3.TypedStruct`.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Struct>,
}

/// The two names of the message; their fields are the same.
const TYPED_STRUCT: [&str; 2] = ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// The listener with plain messages in place of loose ones.
pub(super) fn listener<'a>(
    message: &'a pb::Listener,
    problems: &mut Problems,
) -> Cow<'a, pb::Listener> {
    if !message
        .encode_to_vec()
        .windows(b".TypedStruct".len())
        .any(|window| window == b".TypedStruct")
    {
        return Cow::Borrowed(message);
    }
    let mut message = message.clone();
    for (i, filter) in message.listener_filters.iter_mut().enumerate() {
        if let Some(listener_filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
            unwrap(
                any,
                &format!("listener_filters[{i}].typed_config"),
                problems,
            );
        }
    }
    let default = message.default_filter_chain.iter_mut();
    let default = default.map(|chain| ("default_filter_chain".to_owned(), chain));
    let chains = message.filter_chains.iter_mut().enumerate();
    let chains = chains.map(|(i, chain)| (format!("filter_chains[{i}]"), chain));
    for (path, chain) in chains.chain(default) {
        for (i, filter) in chain.filters.iter_mut().enumerate() {
            if let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type {
                let path = format!("{path}.filters[{i}].typed_config");
                unwrap(any, &path, problems);
                if type_name(any) == HCM {
                    http_filters(any, &path, problems);
                }
            }
        }
    }
    Cow::Owned(message)
}

fn http_filters(any: &mut Any, path: &str, problems: &mut Problems) {
    // What is malformed is told by who reads it.
    let Ok(mut hcm) = HttpConnectionManager::decode(any.value.as_slice()) else {
        return;
    };
    for (i, filter) in hcm.http_filters.iter_mut().enumerate() {
        if let Some(http_filter::ConfigType::TypedConfig(any)) = &mut filter.config_type {
            let path = format!("{path}.http_filters[{i}].typed_config");
            unwrap(any, &path, problems);
        }
    }
    any.value = hcm.encode_to_vec();
}

/// Replaces a loose message of a type that is known, or is one of Envoy's extensions. Others are
/// left to be judged by the filter's name.
fn unwrap(any: &mut Any, path: &str, problems: &mut Problems) {
    if !TYPED_STRUCT.contains(&type_name(any)) {
        return;
    }
    let Ok(typed) = TypedStruct::decode(any.value.as_slice()) else {
        problems.push(path, "malformed TypedStruct");
        return;
    };
    let name = typed.type_url.rsplit('/').next().unwrap_or_default();
    let Some(descriptor) = pool().get_message_by_name(name) else {
        if name.starts_with("envoy.extensions.") {
            any.type_url = typed.type_url;
            any.value = Vec::new();
        }
        return;
    };
    let fields = json(typed.value.unwrap_or_default());
    match DynamicMessage::deserialize(descriptor, fields) {
        Ok(message) => {
            any.value = message.encode_to_vec();
            any.type_url = typed.type_url;
        }
        Err(error) => problems.push(path, format!("is no {name}: {error}")),
    }
}

/// The type that a loose message names, and its fields.
pub(crate) fn typed_struct(type_url: &str, bytes: &[u8]) -> Option<(String, Struct)> {
    let name = type_url.rsplit('/').next()?;
    if !TYPED_STRUCT.contains(&name) {
        return None;
    }
    let typed = TypedStruct::decode(bytes).ok()?;
    Some((typed.type_url, typed.value.unwrap_or_default()))
}

fn json(message: Struct) -> serde_json::Value {
    let fields = message.fields.into_iter();
    fields.map(|(key, value)| (key, plain(value))).collect()
}

fn plain(value: Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::NumberValue(number)) => number_of(number),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::BoolValue(truth)) => truth.into(),
        Some(Kind::StructValue(fields)) => json(fields),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(plain).collect(),
    }
}

/// Whole numbers without a point: fields of integers take nothing else.
fn number_of(number: f64) -> serde_json::Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return (number as i64).into();
    }
    number.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::convert;

    fn listener(filter: &str, config: &serde_json::Value) -> pb::Listener {
        let descriptor = pool()
            .get_message_by_name("envoy.config.listener.v3.Listener")
            .expect("known");
        let message = DynamicMessage::deserialize(
            descriptor,
            json!({
                "name": "l",
                "address": { "socket_address": { "address": "192.0.2.1", "port_value": 80 } },
                "filter_chains": [{ "filters": [{ "name": filter }, {
                    "name": "tcp",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "t", "cluster": "c",
                    },
                }] }],
            }),
        )
        .expect("valid");
        let mut message = pb::Listener::decode(message.encode_to_vec().as_slice()).expect("same");
        let value = structure(config["value"].clone());
        let typed = TypedStruct {
            type_url: format!(
                "type.googleapis.com/{}",
                config["type"].as_str().expect("a type")
            ),
            value: Some(value),
        };
        message.filter_chains[0].filters[0].config_type = Some(ConfigType::TypedConfig(Any {
            type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".into(),
            value: typed.encode_to_vec(),
        }));
        message
    }

    fn structure(value: serde_json::Value) -> Struct {
        let fields = value.as_object().cloned().unwrap_or_default();
        let fields = fields.into_iter().map(|(key, value)| {
            let kind = match value {
                serde_json::Value::String(text) => Kind::StringValue(text),
                serde_json::Value::Bool(truth) => Kind::BoolValue(truth),
                serde_json::Value::Number(number) => {
                    Kind::NumberValue(number.as_f64().unwrap_or_default())
                }
                other => Kind::StructValue(structure(other)),
            };
            (key, Value { kind: Some(kind) })
        });
        Struct {
            fields: fields.collect(),
        }
    }

    #[test]
    fn telemetry_of_istio_is_left_out() {
        let config = json!({ "type": "envoy.tcp.metadataexchange.config.MetadataExchange",
            "value": { "protocol": "istio-peer-exchange", "enable_discovery": true } });
        let converted = convert::listener(&listener("istio.metadata_exchange", &config));
        assert!(converted.is_ok(), "{converted:?}");
    }

    #[test]
    fn what_a_filter_does_is_told_by_its_type() {
        let disguised = json!({ "type": "envoy.extensions.filters.network.rbac.v3.RBAC",
            "value": { "stat_prefix": "r", "rules": { "action": "DENY" } } });
        let plain =
            json!({ "type": "envoy.extensions.filters.network.unknown.v3.Check", "value": {} });
        for config in [disguised, plain] {
            let listener = listener("istio.stats", &config);
            let mut problems = Problems::default();
            let unwrapped = super::listener(&listener, &mut problems);
            let Some(ConfigType::TypedConfig(any)) =
                &unwrapped.filter_chains[0].filters[0].config_type
            else {
                panic!("no configuration");
            };
            assert_eq!(type_name(any), config["type"].as_str().expect("a type"));
        }
    }

    #[test]
    fn fields_that_do_not_fit_the_type_are_refused() {
        let wrong = json!({ "type": "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "value": { "no_such_field": 1 } });
        let problems = convert::listener(&listener("x", &wrong)).expect_err("refused");
        assert!(
            problems[0].to_string().contains("no_such_field"),
            "{problems:?}"
        );
    }
}
