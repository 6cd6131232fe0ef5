//! Header mutations and the format strings in them.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use http::{HeaderName, HeaderValue};

use crate::config::model::headers::{
    AppendAction, FormatPart, HeaderAddition, HeaderMutations, HeaderTemplate,
};

use super::Problems;

/// Operators that header values may hold.
const OPERATORS: &[&str] = &[
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "PROTOCOL",
    "REQ",
    "RESP",
    "RESPONSE_CODE",
    "ROUTE_NAME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_HOST",
    "UPSTREAM_REMOTE_ADDRESS",
    "HOSTNAME",
];

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
    let parts = match parse_format(text) {
        Ok(parts) => parts,
        Err(reason) => {
            problems.hint(path, reason, "a percent sign alone is written %%");
            return None;
        }
    };
    if let [] | [FormatPart::Text(_)] = &parts[..] {
        let literal = match parts.first() {
            Some(FormatPart::Text(text)) => text,
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
    for part in &parts {
        if let FormatPart::Operator { name, .. } = part
            && !OPERATORS.contains(&&**name)
        {
            problems.hint(
                path,
                format!("%{name}% is not supported yet"),
                format!("known are {}", OPERATORS.join(", ")),
            );
            return None;
        }
    }
    Some(HeaderTemplate::Format(parts.into()))
}

/// Splits a format string. Texts next to each other are one.
pub(super) fn parse_format(text: &str) -> Result<Vec<FormatPart>, String> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(percent) = rest.find('%') {
        literal.push_str(&rest[..percent]);
        rest = &rest[percent + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        let name_end = rest
            .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
            .unwrap_or(rest.len());
        let name = &rest[..name_end];
        rest = &rest[name_end..];
        let mut argument = None;
        if let Some(after) = rest.strip_prefix('(') {
            let end = after.find(')').ok_or("a bracket is not closed")?;
            argument = Some(after[..end].into());
            rest = &after[end + 1..];
        }
        let mut max_length = None;
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find('%').ok_or("an operator is not closed")?;
            let length = after[..end]
                .parse()
                .map_err(|_| "a length is not a number".to_owned())?;
            max_length = Some(length);
            rest = &after[end..];
        }
        rest = rest.strip_prefix('%').ok_or("an operator is not closed")?;
        if name.is_empty() {
            return Err("an operator has no name".into());
        }
        if !literal.is_empty() {
            parts.push(FormatPart::Text(std::mem::take(&mut literal).into()));
        }
        parts.push(FormatPart::Operator {
            name: name.into(),
            argument,
            max_length,
        });
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(FormatPart::Text(literal.into()));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_split_into_parts() {
        assert_eq!(
            parse_format("a%%b %REQ(x-y?z):10%!").unwrap(),
            [
                FormatPart::Text("a%b ".into()),
                FormatPart::Operator {
                    name: "REQ".into(),
                    argument: Some("x-y?z".into()),
                    max_length: Some(10)
                },
                FormatPart::Text("!".into()),
            ]
        );
        for bad in ["%", "50% off", "%REQ(x%", "%REQ(x):a%", "%REQ(x):5"] {
            assert!(parse_format(bad).is_err(), "{bad}");
        }
    }
}
