//! Answers of our own.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use http::{HeaderValue, StatusCode};

use crate::config::model::access_log::{AccessLogs, Format};
use crate::config::model::local_reply::{BodyFormat, LocalReplyConfig, ReplyMapper};

use super::{Problems, access_log, headers};

/// `logs` keeps what formats and filters will look at.
pub(super) fn convert(
    message: &pb::LocalReplyConfig,
    logs: &mut AccessLogs,
    path: &str,
    problems: &mut Problems,
) -> LocalReplyConfig {
    let mappers: Vec<ReplyMapper> = message
        .mappers
        .iter()
        .enumerate()
        .filter_map(|(i, one)| mapper(one, &format!("{path}.mappers[{i}]"), problems))
        .collect();
    let format = message
        .body_format
        .as_ref()
        .and_then(|one| body_format(one, &format!("{path}.body_format"), problems));
    logs.keep_for(format.as_ref().map(|body| &body.format), None);
    for mapper in &mappers {
        let format = mapper.format.as_ref().map(|body| &body.format);
        logs.keep_for(format, Some(&mapper.filter));
        logs.keep_for_headers(&mapper.headers);
    }
    LocalReplyConfig { mappers, format }
}

fn mapper(
    message: &pb::ResponseMapper,
    path: &str,
    problems: &mut Problems,
) -> Option<ReplyMapper> {
    let Some(filter) = &message.filter else {
        problems.push(format!("{path}.filter"), "is missing");
        return None;
    };
    let status = match message.status_code.as_ref().map(|code| code.value) {
        None => None,
        Some(code) => {
            let known = u16::try_from(code)
                .ok()
                .filter(|code| (200..600).contains(code))
                .and_then(|code| StatusCode::from_u16(code).ok());
            if known.is_none() {
                problems.push(format!("{path}.status_code"), "must be from 200 to 599");
            }
            known
        }
    };
    let body = match &message.body {
        None => None,
        Some(source) => Some(said(source, &format!("{path}.body"), problems)?),
    };
    let format = match &message.body_format_override {
        None => None,
        Some(format) => Some(body_format(
            format,
            &format!("{path}.body_format_override"),
            problems,
        )?),
    };
    Some(ReplyMapper {
        filter: access_log::filter(filter, &format!("{path}.filter"), problems)?,
        status,
        body,
        format,
        headers: headers::mutations("response", &message.headers_to_add, &[], path, problems),
    })
}

fn said(source: &core::DataSource, path: &str, problems: &mut Problems) -> Option<Bytes> {
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Some(text.clone().into()),
        Some(Specifier::InlineBytes(bytes)) => Some(bytes.clone().into()),
        Some(Specifier::Filename(name)) => match std::fs::read(name) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                let path = format!("{path}.filename");
                problems.push(path, format!("cannot read {name}: {error}"));
                None
            }
        },
        _ => {
            problems.push(path, "inline_string, inline_bytes or filename is missing");
            None
        }
    }
}

fn body_format(
    message: &core::SubstitutionFormatString,
    path: &str,
    problems: &mut Problems,
) -> Option<BodyFormat> {
    let format = access_log::format(message, path, problems)?;
    let content_type = match (message.content_type.as_str(), &format) {
        ("", Format::Json { .. }) => HeaderValue::from_static("application/json"),
        ("", Format::Text { .. }) => HeaderValue::from_static("text/plain"),
        (said, _) => match HeaderValue::from_str(said) {
            Ok(value) => value,
            Err(_) => {
                problems.push(format!("{path}.content_type"), "is not a header value");
                return None;
            }
        },
    };
    Some(BodyFormat {
        format,
        content_type,
    })
}
