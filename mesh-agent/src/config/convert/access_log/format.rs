//! Format strings and JSON formats.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format as PbFormat;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};

use crate::config::convert::{Problems, type_name};
use crate::config::model::access_log::{Format, Json, Piece};

use super::operator;
use super::split::{FormatPart, parse_format};

/// Envoy's own format.
const DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% \
    %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \
    \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Formatters whose operators are understood without them.
const BUILT_IN: &[&str] = &[
    "envoy.extensions.formatter.metadata.v3.Metadata",
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
];

/// The format of a log that says nothing of one.
pub(super) fn default() -> Format {
    let mut problems = Problems::default();
    text(DEFAULT, false, "", &mut problems).expect("Envoy's own format is well-formed")
}

pub(in crate::config::convert) fn convert(
    message: &core::SubstitutionFormatString,
    path: &str,
    problems: &mut Problems,
) -> Option<Format> {
    for (i, formatter) in message.formatters.iter().enumerate() {
        let kind = formatter.typed_config.as_ref().map_or("", type_name);
        if !BUILT_IN.contains(&kind) {
            problems.push(
                format!("{path}.formatters[{i}]"),
                format!("formatter {} ({kind}) is not supported yet", formatter.name),
            );
            return None;
        }
    }
    let omit = message.omit_empty_values;
    #[expect(deprecated, reason = "configurations still use it")]
    match &message.format {
        Some(PbFormat::TextFormat(format)) => {
            text(format, omit, &format!("{path}.text_format"), problems)
        }
        Some(PbFormat::TextFormatSource(source)) => {
            let path = format!("{path}.text_format_source");
            text(&said(source, &path, problems)?, omit, &path, problems)
        }
        Some(PbFormat::JsonFormat(fields)) => {
            json(fields, omit, &format!("{path}.json_format"), problems)
        }
        None => Some(default()),
    }
}

fn said(source: &core::DataSource, path: &str, problems: &mut Problems) -> Option<String> {
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Some(text.clone()),
        Some(Specifier::InlineBytes(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Some(Specifier::Filename(name)) => match std::fs::read_to_string(name) {
            Ok(text) => Some(text),
            Err(error) => {
                problems.push(
                    format!("{path}.filename"),
                    format!("cannot read {name}: {error}"),
                );
                None
            }
        },
        _ => {
            problems.push(path, "inline_string, inline_bytes or filename is missing");
            None
        }
    }
}

/// A format string.
pub(super) fn text(
    text: &str,
    omit_empty: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<Format> {
    Some(Format::Text {
        pieces: pieces(text, path, problems)?,
        omit_empty,
    })
}

/// A JSON format.
pub(super) fn json(
    fields: &Struct,
    omit_empty: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<Format> {
    Some(Format::Json {
        root: object(fields, path, problems)?,
        omit_empty,
    })
}

fn object(fields: &Struct, path: &str, problems: &mut Problems) -> Option<Json> {
    // The message has no order of its own; Envoy sorts, too.
    let mut sorted: Vec<_> = fields.fields.iter().collect();
    sorted.sort_by_key(|(key, _)| *key);
    let mut known = Vec::with_capacity(sorted.len());
    for (key, value) in sorted {
        let path = format!("{path}[{key}]");
        let written = serde_json::Value::from(key.as_str()).to_string();
        known.push((written, self::value(value, &path, problems)?));
    }
    Some(Json::Object(known))
}

fn value(value: &Value, path: &str, problems: &mut Problems) -> Option<Json> {
    Some(match &value.kind {
        Some(Kind::StringValue(text)) => Json::Text(pieces(text, path, problems)?),
        Some(Kind::StructValue(fields)) => object(fields, path, problems)?,
        Some(Kind::ListValue(list)) => {
            let values = list.values.iter().enumerate();
            let converted: Option<Vec<Json>> = values
                .map(|(i, value)| self::value(value, &format!("{path}[{i}]"), problems))
                .collect();
            Json::List(converted?)
        }
        Some(Kind::BoolValue(truth)) => Json::Literal(truth.to_string()),
        Some(Kind::NumberValue(number)) => Json::Literal(number.to_string()),
        Some(Kind::NullValue(_)) | None => Json::Literal("null".into()),
    })
}

/// The pieces of a format string.
pub(in crate::config::convert) fn pieces(
    text: &str,
    path: &str,
    problems: &mut Problems,
) -> Option<Vec<Piece>> {
    let parts = match parse_format(text) {
        Ok(parts) => parts,
        Err(reason) => {
            problems.hint(path, reason, "a percent sign alone is written %%");
            return None;
        }
    };
    parts
        .into_iter()
        .map(|part| match part {
            FormatPart::Text(text) => Some(Piece::Text(text)),
            FormatPart::Operator {
                name,
                argument,
                max_length,
            } => Some(Piece::Operator {
                operator: operator::convert(&name, argument.as_deref(), path, problems)?,
                max_length,
            }),
        })
        .collect()
}
