//! `envoy.filters.http.compressor`

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::compression::brotli::compressor::v3::Brotli;
use envoy_types::pb::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use envoy_types::pb::envoy::extensions::compression::gzip::compressor::v3::gzip::CompressionLevel;
use envoy_types::pb::envoy::extensions::compression::zstd::compressor::v3::Zstd;
use envoy_types::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::compressor::v3::compressor_per_route::Override;

use crate::config::convert::{Problems, decode, matcher, type_name};
use crate::config::model::filter::FilterOverride;
use crate::config::model::filter::compressor::{Compressor, Library, PerRoute};

const GZIP: &str = "envoy.extensions.compression.gzip.compressor.v3.Gzip";
const BROTLI: &str = "envoy.extensions.compression.brotli.compressor.v3.Brotli";
const ZSTD: &str = "envoy.extensions.compression.zstd.compressor.v3.Zstd";

/// Envoy's defaults.
const MIN_LENGTH: u64 = 30;
const TYPES: [&str; 20] = [
    "application/ecmascript",
    "application/javascript",
    "application/json",
    "application/x-ecmascript",
    "application/x-javascript",
    "application/x-json",
    "application/xhtml+xml",
    "application/xml",
    "image/svg+xml",
    "text/css",
    "text/ecmascript",
    "text/html",
    "text/javascript",
    "text/js",
    "text/jscript",
    "text/plain",
    "text/x-javascript",
    "text/x-js",
    "text/x-json",
    "text/xml",
];

#[expect(
    deprecated,
    reason = "the older fields still stand beside the newer ones"
)]
pub(super) fn convert(
    message: &pb::Compressor,
    path: &str,
    problems: &mut Problems,
) -> Option<Compressor> {
    if message.request_direction_config.is_some() {
        problems.hint(
            format!("{path}.request_direction_config"),
            "requests are not compressed",
            "remove it",
        );
        return None;
    }
    let response = message.response_direction_config.as_ref();
    let common = response.and_then(|response| response.common_config.as_ref());
    let flag = match common {
        Some(common) => common.enabled.as_ref(),
        None => message.runtime_enabled.as_ref(),
    };
    let min_length = match common {
        Some(common) => common.min_content_length.as_ref(),
        None => message.content_length.as_ref(),
    };
    let types = match common {
        Some(common) => &common.content_type,
        None => &message.content_type,
    };
    let matchers = common.map_or(&[][..], |common| &common.content_type_matcher);
    let type_matchers = matchers
        .iter()
        .enumerate()
        .map(|(i, one)| {
            let path =
                format!("{path}.response_direction_config.common_config.content_type_matcher[{i}]");
            matcher::string(one, &path, problems)
        })
        .collect::<Option<Vec<_>>>()?;
    let types = if types.is_empty() && type_matchers.is_empty() {
        TYPES.map(str::to_owned).into()
    } else {
        types.iter().map(|one| one.to_ascii_lowercase()).collect()
    };
    Some(Compressor {
        library: library(
            message.compressor_library.as_ref(),
            &format!("{path}.compressor_library"),
            problems,
        )?,
        enabled: flag
            .and_then(|flag| flag.default_value.as_ref())
            .is_none_or(|value| value.value),
        min_length: min_length.map_or(MIN_LENGTH, |length| length.value.into()),
        types,
        type_matchers,
        disable_on_etag: response.map_or(message.disable_on_etag_header, |response| {
            response.disable_on_etag_header
        }),
        weaken_etag: response.is_some_and(|response| response.weaken_etag_on_compress),
        remove_accept_encoding: response
            .map_or(message.remove_accept_encoding_header, |response| {
                response.remove_accept_encoding_header
            }),
        uncompressible_statuses: response
            .map_or(&[][..], |response| &response.uncompressible_response_codes)
            .iter()
            .filter_map(|status| u16::try_from(*status).ok())
            .collect(),
        choose_first: message.choose_first,
    })
}

pub(super) fn per_route(
    message: &pb::CompressorPerRoute,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterOverride> {
    match &message.r#override {
        Some(Override::Disabled(true)) => Some(FilterOverride::Disabled),
        Some(Override::Overrides(overrides)) => {
            if overrides.compressor_library.is_some() {
                problems.push(
                    format!("{path}.overrides.compressor_library"),
                    "is not supported per route",
                );
                return None;
            }
            let response = overrides.response_direction_config.as_ref();
            let remove =
                response.and_then(|response| response.remove_accept_encoding_header.as_ref());
            Some(FilterOverride::Compressor(Arc::new(PerRoute {
                remove_accept_encoding: remove.map(|value| value.value),
            })))
        }
        Some(Override::Disabled(false)) | None => {
            problems.push(path, "says nothing: disabled: true, or overrides");
            None
        }
    }
}

fn library(
    message: Option<&TypedExtensionConfig>,
    path: &str,
    problems: &mut Problems,
) -> Option<Library> {
    let Some(any) = message.and_then(|message| message.typed_config.as_ref()) else {
        problems.push(path, "is missing");
        return None;
    };
    let path = format!("{path}.typed_config");
    let within = |value: Option<u32>, default: u32, least: u32, most: u32| {
        Some(value.unwrap_or(default)).filter(|value| (least..=most).contains(value))
    };
    let library = match type_name(any) {
        GZIP => {
            let config: Gzip = decode(any, &path, problems)?;
            let level = match CompressionLevel::try_from(config.compression_level) {
                Ok(CompressionLevel::DefaultCompression) | Err(_) => Some(6),
                Ok(level) => within(u32::try_from(level as i32).ok(), 6, 1, 9),
            };
            level.map(Library::Gzip)
        }
        BROTLI => {
            let config: Brotli = decode(any, &path, problems)?;
            let quality = within(config.quality.as_ref().map(|v| v.value), 3, 0, 11);
            let window = within(config.window_bits.as_ref().map(|v| v.value), 18, 10, 24);
            quality
                .zip(window)
                .map(|(quality, window_bits)| Library::Brotli {
                    quality,
                    window_bits,
                })
        }
        ZSTD => {
            let config: Zstd = decode(any, &path, problems)?;
            let level = within(config.compression_level.as_ref().map(|v| v.value), 3, 1, 22);
            level
                .and_then(|level| i32::try_from(level).ok())
                .map(Library::Zstd)
        }
        other => {
            problems.push(path, format!("{other} is not supported"));
            return None;
        }
    };
    if library.is_none() {
        problems.push(path, "a number is out of range");
    }
    library
}
