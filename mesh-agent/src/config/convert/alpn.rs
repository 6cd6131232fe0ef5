//! `istio.alpn`: what HTTP requests offer to endpoints that speak Istio's mutual TLS, so that the
//! other side knows before it decrypts that HTTP will follow.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use prost::Message;

use crate::config::model::listener::AlpnOverride;

use super::{Problems, decode, type_name};

const TYPE: &str = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig";

/// Istio's `FilterConfig`.
#[derive(Clone, PartialEq, Message)]
struct FilterConfig {
    #[prost(message, repeated, tag = "1")]
    alpn_override: Vec<Override>,
}

#[derive(Clone, PartialEq, Message)]
struct Override {
    #[prost(enumeration = "Protocol", tag = "1")]
    upstream_protocol: i32,
    #[prost(string, repeated, tag = "2")]
    alpn_override: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Protocol {
    Http10 = 0,
    Http11 = 1,
    Http2 = 2,
}

/// What the filter says, if it is there.
pub(super) fn convert(
    filters: &[HttpFilter],
    path: &str,
    problems: &mut Problems,
) -> Option<Arc<AlpnOverride>> {
    let (index, any) =
        filters
            .iter()
            .enumerate()
            .find_map(|(i, filter)| match &filter.config_type {
                Some(ConfigType::TypedConfig(any)) if type_name(any) == TYPE => Some((i, any)),
                _ => None,
            })?;
    let path = format!("{path}.http_filters[{index}].typed_config");
    let message: FilterConfig = decode(any, &path, problems)?;
    let of = |protocol: Protocol| {
        let wanted = protocol as i32;
        let mut all = message.alpn_override.iter();
        let one = all.find(|one| one.upstream_protocol == wanted)?;
        Some(
            one.alpn_override
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
        )
    };
    Some(Arc::new(AlpnOverride {
        http1: of(Protocol::Http11),
        http2: of(Protocol::Http2),
    }))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::Any;

    use super::*;

    #[test]
    fn each_protocol_has_its_names() {
        let config = FilterConfig {
            alpn_override: vec![Override {
                upstream_protocol: Protocol::Http11 as i32,
                alpn_override: vec!["istio-http/1.1".into(), "istio".into()],
            }],
        };
        let filter = HttpFilter {
            name: "istio.alpn".into(),
            config_type: Some(ConfigType::TypedConfig(Any {
                type_url: format!("type.googleapis.com/{TYPE}"),
                value: config.encode_to_vec(),
            })),
            ..HttpFilter::default()
        };
        let mut problems = Problems::default();
        let converted = convert(&[filter], "", &mut problems).expect("it is there");
        let http1 = converted.http1.as_deref().expect("HTTP/1.1");
        assert_eq!(
            http1.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["istio-http/1.1", "istio"]
        );
        assert!(converted.http2.is_none());
        assert!(convert(&[], "", &mut problems).is_none());
    }
}
