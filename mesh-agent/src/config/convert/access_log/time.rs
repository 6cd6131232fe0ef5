//! The argument of `START_TIME`.

use crate::config::model::access_log::{TimeFormat, TimePart};

/// Conversions of strftime(3) that are understood.
const CONVERSIONS: &str = "YmdHMSzZsFTjyeklIpDRabABhntCGVuw";

/// Reads a format.
pub(super) fn parse(text: &str) -> Result<TimeFormat, String> {
    if text.is_empty() {
        return Ok(TimeFormat::Iso);
    }
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            literal.push(c);
            continue;
        }
        let part = match chars.next() {
            Some('%') => {
                literal.push('%');
                continue;
            }
            Some('f') => TimePart::Fraction(9),
            Some(digits @ '1'..='9') => match chars.next() {
                Some('f') => TimePart::Fraction(digits as u8 - b'0'),
                _ => return Err(format!("%{digits} must be followed by f")),
            },
            Some('E') => match (chars.next(), chars.next()) {
                (Some(digits @ '1'..='9'), Some('S')) => TimePart::Seconds(digits as u8 - b'0'),
                _ => return Err("%E must be followed by a digit and S".into()),
            },
            Some(conversion) if CONVERSIONS.contains(conversion) => TimePart::Strftime(conversion),
            Some(other) => return Err(format!("%{other} is not supported")),
            None => return Err("it ends with %".into()),
        };
        if !literal.is_empty() {
            parts.push(TimePart::Text(std::mem::take(&mut literal)));
        }
        parts.push(part);
    }
    if !literal.is_empty() {
        parts.push(TimePart::Text(literal));
    }
    Ok(TimeFormat::Parts(parts))
}
