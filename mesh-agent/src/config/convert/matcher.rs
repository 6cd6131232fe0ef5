//! Strings, headers, query parameters.

use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use http::HeaderName;
use regex_automata::meta::Regex;

use crate::config::model::matcher::{
    HeaderCondition, HeaderKey, HeaderMatcher, MetadataMatcher, QueryCondition, QueryMatcher,
    SafeRegex, StringMatcher, ValueMatcher,
};

use super::Problems;

/// Compiled size of one regex; RE2 in Envoy has a similar guard.
const REGEX_SIZE: usize = 10 << 20;

/// A regex, not anchored.
pub(super) fn search_regex(
    message: Option<&matcher::RegexMatcher>,
    path: &str,
    problems: &mut Problems,
) -> Option<Regex> {
    let source = message.map_or("", |message| &message.regex);
    if source.is_empty() {
        problems.push(format!("{path}.regex"), "a regex is missing");
        return None;
    }
    compile(source, path, problems)
}

/// A regex that must match the whole text.
pub(super) fn full_regex(
    message: &matcher::RegexMatcher,
    path: &str,
    problems: &mut Problems,
) -> Option<SafeRegex> {
    // Checked alone first, so that the message shows what was written.
    compile(&message.regex, path, problems)?;
    let full = compile(&format!("^(?:{})$", message.regex), path, problems)?;
    Some(SafeRegex {
        source: message.regex.as_str().into(),
        full,
    })
}

fn compile(source: &str, path: &str, problems: &mut Problems) -> Option<Regex> {
    let built = Regex::builder()
        .configure(Regex::config().nfa_size_limit(Some(REGEX_SIZE)))
        .syntax(regex_automata::util::syntax::Config::new().utf8(false))
        .build(source);
    match built {
        Ok(regex) => Some(regex),
        Err(error) => {
            let reason = match error.syntax_error() {
                Some(error) => error.to_string().replace('\n', " "),
                None => error.to_string(),
            };
            problems.hint(
                format!("{path}.regex"),
                format!("not a valid regex: {reason}"),
                "RE2 syntax: no look-around, no back-references",
            );
            None
        }
    }
}

/// Envoy's `StringMatcher`.
pub(super) fn string(
    message: &matcher::StringMatcher,
    path: &str,
    problems: &mut Problems,
) -> Option<StringMatcher> {
    let ignore_case = message.ignore_case;
    let text = |text: &str| text.into();
    Some(match &message.match_pattern {
        Some(MatchPattern::Exact(value)) => StringMatcher::Exact {
            value: text(value),
            ignore_case,
        },
        Some(MatchPattern::Prefix(value)) => StringMatcher::Prefix {
            value: text(value),
            ignore_case,
        },
        Some(MatchPattern::Suffix(value)) => StringMatcher::Suffix {
            value: text(value),
            ignore_case,
        },
        Some(MatchPattern::Contains(value)) => StringMatcher::Contains {
            value: text(value),
            ignore_case,
        },
        Some(MatchPattern::SafeRegex(regex)) => {
            StringMatcher::Regex(full_regex(regex, &format!("{path}.safe_regex"), problems)?)
        }
        Some(MatchPattern::Custom(_)) => {
            problems.push(
                format!("{path}.custom"),
                "custom matchers are not supported",
            );
            return None;
        }
        None => {
            problems.push(
                path,
                "a pattern is missing: exact, prefix, suffix, contains or safe_regex",
            );
            return None;
        }
    })
}

/// A header as matchers name it.
pub(super) fn header_key(name: &str, path: &str, problems: &mut Problems) -> Option<HeaderKey> {
    Some(match name {
        ":method" => HeaderKey::Method,
        ":path" => HeaderKey::Path,
        ":authority" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        ":status" => HeaderKey::Status,
        name if name.eq_ignore_ascii_case("host") => HeaderKey::Authority,
        name => match HeaderName::try_from(name) {
            Ok(name) => HeaderKey::Header(name),
            Err(_) => {
                problems.push(path, format!("{name:?} is not a header name"));
                return None;
            }
        },
    })
}

/// Envoy's `HeaderMatcher`, its older forms included.
pub(super) fn header(
    message: &route::HeaderMatcher,
    path: &str,
    problems: &mut Problems,
) -> Option<HeaderMatcher> {
    let name = header_key(&message.name, &format!("{path}.name"), problems)?;
    let plain = |value: &str| -> (std::sync::Arc<str>, bool) { (value.into(), false) };
    let condition = match &message.header_match_specifier {
        None => HeaderCondition::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderCondition::Present(*present),
        Some(HeaderMatchSpecifier::StringMatch(value)) => {
            HeaderCondition::Value(string(value, &format!("{path}.string_match"), problems)?)
        }
        Some(HeaderMatchSpecifier::RangeMatch(range)) => HeaderCondition::Range {
            start: range.start,
            end: range.end,
        },
        Some(HeaderMatchSpecifier::ExactMatch(value)) => {
            let (value, ignore_case) = plain(value);
            HeaderCondition::Value(StringMatcher::Exact { value, ignore_case })
        }
        Some(HeaderMatchSpecifier::PrefixMatch(value)) => {
            let (value, ignore_case) = plain(value);
            HeaderCondition::Value(StringMatcher::Prefix { value, ignore_case })
        }
        Some(HeaderMatchSpecifier::SuffixMatch(value)) => {
            let (value, ignore_case) = plain(value);
            HeaderCondition::Value(StringMatcher::Suffix { value, ignore_case })
        }
        Some(HeaderMatchSpecifier::ContainsMatch(value)) => {
            let (value, ignore_case) = plain(value);
            HeaderCondition::Value(StringMatcher::Contains { value, ignore_case })
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
            HeaderCondition::Value(StringMatcher::Regex(full_regex(
                regex,
                &format!("{path}.safe_regex_match"),
                problems,
            )?))
        }
    };
    Some(HeaderMatcher {
        name,
        condition,
        invert: message.invert_match,
        treat_missing_as_empty: message.treat_missing_header_as_empty,
    })
}

/// Envoy's `QueryParameterMatcher`.
pub(super) fn query(
    message: &route::QueryParameterMatcher,
    path: &str,
    problems: &mut Problems,
) -> Option<QueryMatcher> {
    if message.name.is_empty() {
        problems.push(format!("{path}.name"), "a name is missing");
    }
    let condition = match &message.query_parameter_match_specifier {
        None => QueryCondition::Present(true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => {
            QueryCondition::Present(*present)
        }
        Some(QueryParameterMatchSpecifier::StringMatch(value)) => {
            QueryCondition::Value(string(value, &format!("{path}.string_match"), problems)?)
        }
    };
    Some(QueryMatcher {
        name: message.name.as_str().into(),
        condition,
    })
}

/// Envoy's `MetadataMatcher`.
pub(super) fn metadata(
    message: &matcher::MetadataMatcher,
    path: &str,
    problems: &mut Problems,
) -> Option<MetadataMatcher> {
    let keys = message.path.iter().map(|segment| {
        let matcher::metadata_matcher::path_segment::Segment::Key(key) =
            segment.segment.as_ref()?;
        Some(key.as_str().into())
    });
    let Some(keys) = keys
        .collect::<Option<Vec<_>>>()
        .filter(|keys| !keys.is_empty())
    else {
        problems.push(format!("{path}.path"), "a key is missing");
        return None;
    };
    Some(MetadataMatcher {
        filter: message.filter.as_str().into(),
        path: keys,
        value: value(message.value.as_ref(), &format!("{path}.value"), problems)?,
        invert: message.invert,
    })
}

fn value(
    message: Option<&matcher::ValueMatcher>,
    path: &str,
    problems: &mut Problems,
) -> Option<ValueMatcher> {
    use matcher::double_matcher::MatchPattern as Number;
    use matcher::value_matcher::MatchPattern as Pattern;
    Some(
        match message.and_then(|message| message.match_pattern.as_ref()) {
            Some(Pattern::NullMatch(_)) => ValueMatcher::Null,
            Some(Pattern::DoubleMatch(number)) => match number.match_pattern.as_ref() {
                Some(Number::Exact(number)) => ValueMatcher::Number(*number),
                Some(Number::Range(range)) => ValueMatcher::Range(range.start, range.end),
                None => {
                    problems.push(format!("{path}.double_match"), "a pattern is missing");
                    return None;
                }
            },
            Some(Pattern::StringMatch(text)) => {
                ValueMatcher::Text(string(text, &format!("{path}.string_match"), problems)?)
            }
            Some(Pattern::BoolMatch(wanted)) => ValueMatcher::Bool(*wanted),
            Some(Pattern::PresentMatch(wanted)) => ValueMatcher::Present(*wanted),
            Some(Pattern::ListMatch(list)) => {
                let Some(matcher::list_matcher::MatchPattern::OneOf(one)) = &list.match_pattern
                else {
                    problems.push(format!("{path}.list_match"), "a pattern is missing");
                    return None;
                };
                let one = value(Some(one), &format!("{path}.list_match.one_of"), problems)?;
                ValueMatcher::OneOf(Box::new(one))
            }
            Some(Pattern::OrMatch(or)) => ValueMatcher::Or(
                or.value_matchers
                    .iter()
                    .enumerate()
                    .map(|(i, one)| {
                        let path = format!("{path}.or_match.value_matchers[{i}]");
                        value(Some(one), &path, problems)
                    })
                    .collect::<Option<_>>()?,
            ),
            None => {
                problems.push(path, "a pattern is missing");
                return None;
            }
        },
    )
}
