//! Messages as JSON, whatever is packed in them.
//!
//! Listeners hold messages packed as `Any`, of types that nobody here may know: Istio's are of that
//! kind. Envoy shows what it knows, and `TypedStruct` field by field; what it does not know it could
//! not have accepted. Here such a message is shown as its bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value as PbValue};
use prost::Message as _;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, ReflectMessage as _, SerializeOptions, Value,
};
use serde_json::Value as Json;

use crate::config::convert::typed_struct;
use crate::config::descriptors::pool;

const ANY: &str = "google.protobuf.Any";
const STRUCT_URL: &str = "type.googleapis.com/google.protobuf.Struct";
/// Stands for `@type` in a message that is packed anew.
const TYPE: &str = "@unknown";

/// The message under its field names, as Envoy prints it.
///
/// # Errors
/// What no JSON can hold.
pub(super) fn json(mut message: DynamicMessage) -> Result<Json, String> {
    if let Ok(json) = serialized(&message) {
        return Ok(json);
    }
    repack(&mut message);
    let mut json = serialized(&message)?;
    name(&mut json);
    Ok(json)
}

fn serialized(message: &DynamicMessage) -> Result<Json, String> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| error.to_string())
}

/// Packs what is of unknown types as a type that can be shown.
fn repack(message: &mut DynamicMessage) {
    if message.descriptor().full_name() == ANY {
        return repack_any(message);
    }
    let set: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
    for field in set {
        match message.get_field_mut(&field) {
            Value::Message(inner) => repack(inner),
            Value::List(all) => all.iter_mut().for_each(repack_value),
            Value::Map(all) => all.values_mut().for_each(repack_value),
            _ => {}
        }
    }
}

fn repack_value(value: &mut Value) {
    if let Value::Message(inner) = value {
        repack(inner);
    }
}

fn repack_any(any: &mut DynamicMessage) {
    let url = any.get_field_by_name("type_url");
    let url = url.and_then(|url| url.as_str().map(ToOwned::to_owned));
    let bytes = any.get_field_by_name("value");
    let bytes = bytes.and_then(|bytes| bytes.as_bytes().cloned());
    let (url, bytes) = (url.unwrap_or_default(), bytes.unwrap_or_default());
    let name = url.rsplit('/').next().unwrap_or_default();
    let known = pool().get_message_by_name(name);
    let inner = known.and_then(|known| DynamicMessage::decode(known, bytes.clone()).ok());
    if let Some(mut inner) = inner {
        repack(&mut inner);
        let bytes = prost_reflect::prost::Message::encode_to_vec(&inner);
        any.set_field_by_name("value", Value::Bytes(bytes.into()));
        return;
    }
    let text = |text: String| PbValue {
        kind: Some(Kind::StringValue(text)),
    };
    let fields = match typed_struct(&url, &bytes) {
        Some((of, value)) => {
            let value = PbValue {
                kind: Some(Kind::StructValue(value)),
            };
            vec![
                ("type_url".to_owned(), text(of)),
                ("value".to_owned(), value),
            ]
        }
        None => vec![("value".to_owned(), text(STANDARD.encode(&bytes)))],
    };
    let shown = Struct {
        fields: fields
            .into_iter()
            .chain([(TYPE.to_owned(), text(url))])
            .collect(),
    };
    any.set_field_by_name("type_url", Value::String(STRUCT_URL.into()));
    any.set_field_by_name("value", Value::Bytes(shown.encode_to_vec().into()));
}

/// Gives what was packed anew the type it had.
fn name(json: &mut Json) {
    match json {
        Json::Array(all) => all.iter_mut().for_each(name),
        Json::Object(fields) => {
            let inner = fields.get_mut("value").and_then(Json::as_object_mut);
            let packed = inner.and_then(|inner| {
                let url = inner.remove(TYPE)?;
                let mut inner = std::mem::take(inner);
                inner.insert("@type".into(), url);
                Some(inner)
            });
            if let Some(packed) = packed {
                *fields = packed;
            } else {
                fields.values_mut().for_each(name);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener};
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, HttpFilter, http_filter,
    };
    use envoy_types::pb::google::protobuf::Any;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_packed_is_shown_by_its_type() {
        let any = |kind: &str, value: Vec<u8>| Any {
            type_url: format!("type.googleapis.com/{kind}"),
            value,
        };
        // TypedStruct { type_url: "a/b", value: { "k": true } }
        let loose = b"\x0a\x03a/b\x12\x09\x0a\x07\x0a\x01k\x12\x02\x20\x01".to_vec();
        let hcm = HttpConnectionManager {
            stat_prefix: "h".into(),
            http_filters: [
                any(
                    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
                    vec![8, 1],
                ),
                any("udpa.type.v1.TypedStruct", loose),
            ]
            .map(|any| HttpFilter {
                name: "f".into(),
                config_type: Some(http_filter::ConfigType::TypedConfig(any)),
                ..HttpFilter::default()
            })
            .into(),
            ..HttpConnectionManager::default()
        };
        let url =
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let listener = Listener {
            name: "l".into(),
            filter_chains: vec![FilterChain {
                filters: vec![Filter {
                    name: "hcm".into(),
                    config_type: Some(ConfigType::TypedConfig(any(url, hcm.encode_to_vec()))),
                }],
                ..FilterChain::default()
            }],
            ..Listener::default()
        };
        let descriptor = pool()
            .get_message_by_name("envoy.config.listener.v3.Listener")
            .unwrap();
        let bytes = listener.encode_to_vec();
        let message = DynamicMessage::decode(descriptor, bytes.as_slice()).unwrap();
        let shown = json(message).unwrap();
        let hcm = &shown["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(hcm["@type"], format!("type.googleapis.com/{url}"));
        assert_eq!(hcm["stat_prefix"], "h");
        assert_eq!(
            hcm["http_filters"][0]["typed_config"],
            json!({ "value": "CAE=",
                "@type": "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig" })
        );
        assert_eq!(
            hcm["http_filters"][1]["typed_config"],
            json!({ "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
                "type_url": "a/b", "value": { "k": true } })
        );
    }
}
