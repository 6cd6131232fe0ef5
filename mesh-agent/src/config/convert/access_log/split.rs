//! Format strings, split into their parts.

use std::sync::Arc;

/// A part of a format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FormatPart {
    /// Copied as it is.
    Text(Arc<str>),
    /// `%NAME(arg):max%`
    Operator {
        /// For example `REQ` or `DOWNSTREAM_REMOTE_ADDRESS`.
        name: Arc<str>,
        /// What stands in brackets.
        argument: Option<Arc<str>>,
        /// The value is cut to that many bytes.
        max_length: Option<usize>,
    },
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
