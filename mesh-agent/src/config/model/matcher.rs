//! Matchers that several resources share: strings, headers, query parameters.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderName;
use regex_automata::meta::Regex;

/// Envoy's `StringMatcher` (`envoy.type.matcher.v3`).
#[derive(Debug, Clone)]
pub enum StringMatcher {
    /// Equal. Lower-cased when `ignore_case`.
    Exact {
        /// The text to equal.
        value: Arc<str>,
        /// Compare ASCII-case-insensitively.
        ignore_case: bool,
    },
    /// Starts with.
    Prefix {
        /// The text to start with.
        value: Arc<str>,
        /// Compare ASCII-case-insensitively.
        ignore_case: bool,
    },
    /// Ends with.
    Suffix {
        /// The text to end with.
        value: Arc<str>,
        /// Compare ASCII-case-insensitively.
        ignore_case: bool,
    },
    /// Contains.
    Contains {
        /// The text to contain.
        value: Arc<str>,
        /// Compare ASCII-case-insensitively.
        ignore_case: bool,
    },
    /// Matches the whole string (RE2 full match: Envoy anchors both ends).
    Regex(SafeRegex),
}

/// A regex that must match the whole input, as Envoy's `safe_regex`.
#[derive(Debug, Clone)]
pub struct SafeRegex {
    /// As configured, for display.
    pub source: Arc<str>,
    /// Compiled from `^(?:source)$`, so a match is a full match.
    pub full: Regex,
}

impl SafeRegex {
    /// Whether the whole of `text` matches.
    pub fn is_full_match(&self, text: &[u8]) -> bool {
        self.full.is_match(text)
    }
}

impl StringMatcher {
    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact {
                value,
                ignore_case: false,
            } => text == &**value,
            Self::Exact {
                value,
                ignore_case: true,
            } => text.eq_ignore_ascii_case(value),
            Self::Prefix {
                value,
                ignore_case: false,
            } => text.starts_with(&**value),
            Self::Prefix {
                value,
                ignore_case: true,
            } => {
                let (text, value) = (text.as_bytes(), value.as_bytes());
                text.len() >= value.len() && text[..value.len()].eq_ignore_ascii_case(value)
            }
            Self::Suffix {
                value,
                ignore_case: false,
            } => text.ends_with(&**value),
            Self::Suffix {
                value,
                ignore_case: true,
            } => {
                let (text, value) = (text.as_bytes(), value.as_bytes());
                text.len() >= value.len()
                    && text[text.len() - value.len()..].eq_ignore_ascii_case(value)
            }
            Self::Contains {
                value,
                ignore_case: false,
            } => text.contains(&**value),
            Self::Contains {
                value,
                ignore_case: true,
            } => text
                .to_ascii_lowercase()
                .contains(&value.to_ascii_lowercase()),
            Self::Regex(regex) => regex.is_full_match(text.as_bytes()),
        }
    }
}

/// Envoy's `HeaderMatcher` (`envoy.config.route.v3`).
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    /// The header looked at: a name, or a pseudo-header.
    pub name: HeaderKey,
    /// What its value must be.
    pub condition: HeaderCondition,
    /// The result is inverted.
    pub invert: bool,
    /// A missing header counts as an empty value instead of a mismatch.
    pub treat_missing_as_empty: bool,
}

impl HeaderMatcher {
    /// Whether it matches a header with these values. One that came several times matches if one
    /// of its values does; inversion comes last (Envoy 1.40).
    pub fn matches<'a>(&self, values: impl Iterator<Item = Cow<'a, str>>) -> bool {
        let mut values = values.peekable();
        let missing = values.peek().is_none();
        let matched = match &self.condition {
            HeaderCondition::Present(present) => {
                let there = !missing || self.treat_missing_as_empty;
                there == *present
            }
            // A missing header never matches a value, inverted or not.
            _ if missing && !self.treat_missing_as_empty => return false,
            HeaderCondition::Value(text) if missing => text.matches(""),
            HeaderCondition::Value(text) => values.any(|value| text.matches(&value)),
            HeaderCondition::Range { start, end } => values.any(|value| {
                value
                    .parse()
                    .is_ok_and(|number: i64| (*start..*end).contains(&number))
            }),
        };
        matched != self.invert
    }
}

/// A header as matchers and formatters name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    /// `:method`
    Method,
    /// `:path` (with the query string)
    Path,
    /// `:authority`
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status` of a response.
    Status,
    /// A regular header.
    Header(HeaderName),
}

/// What a header's value must be.
#[derive(Debug, Clone)]
pub enum HeaderCondition {
    /// Present (`true`) or absent (`false`).
    Present(bool),
    /// The value (several are joined by a comma, as Envoy does) matches.
    Value(StringMatcher),
    /// A base-10 integer in `[start, end)`.
    Range {
        /// Inclusive.
        start: i64,
        /// Exclusive.
        end: i64,
    },
}

/// Envoy's `QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    /// The parameter's name.
    pub name: Arc<str>,
    /// What is asked of it.
    pub condition: QueryCondition,
}

/// What a query parameter has to be.
#[derive(Debug, Clone)]
pub enum QueryCondition {
    /// Present, or absent.
    Present(bool),
    /// Present, and its first value matches.
    Value(StringMatcher),
}

/// Envoy's `MetadataMatcher`: a value that a filter found out.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    /// The filter's name.
    pub filter: Arc<str>,
    /// Keys from the outside in.
    pub path: Vec<Arc<str>>,
    /// What the value must be.
    pub value: ValueMatcher,
    /// The result is turned round.
    pub invert: bool,
}

/// Envoy's `ValueMatcher`.
#[derive(Debug, Clone)]
pub enum ValueMatcher {
    /// Null.
    Null,
    /// Equal.
    Number(f64),
    /// From, to before.
    Range(f64, f64),
    /// A text.
    Text(StringMatcher),
    /// Equal.
    Bool(bool),
    /// There, or not.
    Present(bool),
    /// A list, one of whose values matches.
    OneOf(Box<ValueMatcher>),
    /// Any of these.
    Or(Vec<ValueMatcher>),
}

impl MetadataMatcher {
    /// Whether it matches what a filter found out, if it found out anything.
    pub fn matches(&self, found: Option<&serde_json::Value>) -> bool {
        let value = self
            .path
            .iter()
            .try_fold(found, |value, key| Some(value?.get(&**key)))
            .flatten();
        self.value.matches(value) != self.invert
    }
}

impl ValueMatcher {
    fn matches(&self, value: Option<&serde_json::Value>) -> bool {
        use serde_json::Value;
        match (self, value) {
            // What is not there never matches.
            (Self::Present(wanted), value) => *wanted && value.is_some(),
            (Self::Or(matchers), value) => matchers.iter().any(|one| one.matches(value)),
            (_, None) => false,
            (Self::Null, Some(value)) => value.is_null(),
            (Self::Number(wanted), Some(value)) => value.as_f64() == Some(*wanted),
            (Self::Range(start, end), Some(value)) => value
                .as_f64()
                .is_some_and(|number| (*start..*end).contains(&number)),
            (Self::Text(matcher), Some(value)) => {
                value.as_str().is_some_and(|text| matcher.matches(text))
            }
            (Self::Bool(wanted), Some(value)) => value.as_bool() == Some(*wanted),
            (Self::OneOf(matcher), Some(Value::Array(values))) => {
                values.iter().any(|value| matcher.matches(Some(value)))
            }
            (Self::OneOf(_), Some(_)) => false,
        }
    }
}
