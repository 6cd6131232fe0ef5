//! Which entries are written.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::comparison_filter::Op;
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;

use crate::config::convert::filter::fraction;
use crate::config::convert::{Problems, matcher};
use crate::config::model::access_log::{Compare, Comparison, Filter};
use crate::config::model::response_flag::{ResponseFlag, ResponseFlags};

pub(in crate::config::convert) fn convert(
    message: &pb::AccessLogFilter,
    path: &str,
    problems: &mut Problems,
) -> Option<Filter> {
    let Some(specifier) = &message.filter_specifier else {
        problems.push(path, "says nothing of what is written");
        return None;
    };
    let below = |field: &str| format!("{path}.{field}");
    Some(match specifier {
        FilterSpecifier::StatusCodeFilter(filter) => Filter::Status(comparison(
            filter.comparison.as_ref(),
            &below("status_code_filter.comparison"),
            problems,
        )?),
        FilterSpecifier::DurationFilter(filter) => Filter::Duration(comparison(
            filter.comparison.as_ref(),
            &below("duration_filter.comparison"),
            problems,
        )?),
        FilterSpecifier::NotHealthCheckFilter(_) => Filter::NotHealthCheck,
        // Without a tracer no request is traced.
        FilterSpecifier::TraceableFilter(_) => Filter::Any(Vec::new()),
        FilterSpecifier::RuntimeFilter(filter) => {
            Filter::Share(fraction(filter.percent_sampled.as_ref()))
        }
        FilterSpecifier::AndFilter(and) => {
            Filter::All(all(&and.filters, &below("and_filter"), problems)?)
        }
        FilterSpecifier::OrFilter(or) => {
            Filter::Any(all(&or.filters, &below("or_filter"), problems)?)
        }
        FilterSpecifier::HeaderFilter(filter) => {
            let path = below("header_filter.header");
            let Some(header) = &filter.header else {
                problems.push(path, "is missing");
                return None;
            };
            Filter::Header(matcher::header(header, &path, problems)?)
        }
        FilterSpecifier::ResponseFlagFilter(filter) => {
            let flags = filter.flags.iter().enumerate();
            let known: Option<ResponseFlags> = flags
                .map(|(i, flag)| {
                    let known = ResponseFlag::of(flag);
                    if known.is_none() {
                        problems.push(
                            below(&format!("response_flag_filter.flags[{i}]")),
                            format!("{flag:?} is no response flag"),
                        );
                    }
                    known
                })
                .collect();
            let known = known?;
            Filter::Flags((!known.is_empty()).then_some(known))
        }
        FilterSpecifier::GrpcStatusFilter(filter) => Filter::Grpc {
            statuses: filter
                .statuses
                .iter()
                .filter(|status| (0..32).contains(*status))
                .fold(0, |bits, status| bits | 1 << status),
            exclude: filter.exclude,
        },
        FilterSpecifier::MetadataFilter(filter) => {
            let path = below("metadata_filter.matcher");
            let Some(wanted) = &filter.matcher else {
                problems.push(path, "is missing");
                return None;
            };
            Filter::Metadata {
                matcher: matcher::metadata(wanted, &path, problems)?,
                missing: filter
                    .match_if_key_not_found
                    .as_ref()
                    .is_none_or(|value| value.value),
            }
        }
        FilterSpecifier::LogTypeFilter(filter) => {
            let named =
                |kind: AccessLogType| filter.types.contains(&(kind as i32)) != filter.exclude;
            Filter::Kinds {
                requests: named(AccessLogType::DownstreamEnd),
                connections: named(AccessLogType::TcpConnectionEnd),
            }
        }
        FilterSpecifier::ExtensionFilter(filter) => {
            problems.push(
                below("extension_filter"),
                format!("filter {} is not supported yet", filter.name),
            );
            return None;
        }
    })
}

fn all(
    filters: &[pb::AccessLogFilter],
    path: &str,
    problems: &mut Problems,
) -> Option<Vec<Filter>> {
    filters
        .iter()
        .enumerate()
        .map(|(i, filter)| convert(filter, &format!("{path}.filters[{i}]"), problems))
        .collect()
}

fn comparison(
    message: Option<&pb::ComparisonFilter>,
    path: &str,
    problems: &mut Problems,
) -> Option<Comparison> {
    let Some(message) = message else {
        problems.push(path, "is missing");
        return None;
    };
    Some(Comparison {
        op: match Op::try_from(message.op) {
            Ok(Op::Eq) => Compare::Equal,
            Ok(Op::Ge) => Compare::AtLeast,
            Ok(Op::Le) => Compare::AtMost,
            Ok(Op::Ne) => Compare::NotEqual,
            Err(_) => {
                problems.push(format!("{path}.op"), "unknown comparison");
                return None;
            }
        },
        // Runtime may say otherwise elsewhere.
        value: message
            .value
            .as_ref()
            .map_or(0, |value| value.default_value),
    })
}
