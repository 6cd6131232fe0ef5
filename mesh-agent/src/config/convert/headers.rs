//! Header mutations and the format strings in them.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use http::{HeaderName, HeaderValue};

use crate::config::model::access_log::Piece;
use crate::config::model::headers::{
    AppendAction, HeaderAddition, HeaderMutations, HeaderTemplate,
};

use super::{Problems, access_log};

/// `kind` is `request` or `response`, as the field names say.
pub(super) fn mutations(
    kind: &str,
    add: &[HeaderValueOption],
    remove: &[String],
    path: &str,
    problems: &mut Problems,
) -> HeaderMutations {
    let below = |field: &str| super::super::error::join(path, field);
    let add = add
        .iter()
        .enumerate()
        .filter_map(|(index, option)| {
            addition(
                option,
                &below(&format!("{kind}_headers_to_add[{index}]")),
                problems,
            )
        })
        .collect();
    let remove = remove
        .iter()
        .enumerate()
        .filter_map(|(index, name)| {
            let path = below(&format!("{kind}_headers_to_remove[{index}]"));
            header_name(name, &path, problems)
        })
        .collect();
    HeaderMutations { add, remove }
}

fn addition(
    option: &HeaderValueOption,
    path: &str,
    problems: &mut Problems,
) -> Option<HeaderAddition> {
    let Some(header) = &option.header else {
        problems.push(path, "header is missing");
        return None;
    };
    let append = match option.append.as_ref().map(|append| append.value) {
        Some(true) => AppendAction::AppendIfExistsOrAdd,
        Some(false) => AppendAction::OverwriteIfExistsOrAdd,
        None => match HeaderAppendAction::try_from(option.append_action) {
            Ok(HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
            Ok(HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
            Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
            Ok(HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
            Err(_) => {
                problems.push(format!("{path}.append_action"), "unknown action");
                return None;
            }
        },
    };
    Some(HeaderAddition {
        name: header_name(&header.key, &format!("{path}.header.key"), problems)?,
        value: template(&header.value, &format!("{path}.header.value"), problems)?,
        append,
        keep_empty_value: option.keep_empty_value,
    })
}

/// A header that may be changed: not a pseudo-header, not `host`.
pub(super) fn header_name(name: &str, path: &str, problems: &mut Problems) -> Option<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        problems.hint(
            path,
            format!("{name} cannot be changed by header mutations"),
            "use host_rewrite or path rewrites",
        );
        return None;
    }
    match HeaderName::try_from(name) {
        Ok(name) => Some(name),
        Err(_) => {
            problems.push(path, format!("{name:?} is not a header name"));
            None
        }
    }
}

fn template(text: &str, path: &str, problems: &mut Problems) -> Option<HeaderTemplate> {
    let pieces = access_log::pieces(text, path, problems)?;
    if let [] | [Piece::Text(_)] = &pieces[..] {
        let literal = match pieces.first() {
            Some(Piece::Text(text)) => text,
            _ => "",
        };
        return match HeaderValue::try_from(literal) {
            Ok(value) => Some(HeaderTemplate::Literal(value)),
            Err(_) => {
                problems.push(path, "has characters a header value must not have");
                None
            }
        };
    }
    Some(HeaderTemplate::Format(pieces.into()))
}
