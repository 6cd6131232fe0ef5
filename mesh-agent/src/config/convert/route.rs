//! Route configurations.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RoutingPriority as PbPriority;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier as Specified, HostRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{
    RandomValueSpecifier, cluster_weight,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use http::{HeaderName, StatusCode};

use crate::balance::subset::Metadata;
use crate::config::model::cluster::RoutingPriority;
use crate::config::model::domains::DomainIndex;
use crate::config::model::mirror::Mirror;
use crate::config::model::retry::RetryPolicy;
use crate::config::model::route::{
    ClusterSpecifier, CookieMatcher, DirectResponse, Forward, HostRewrite, PathMatcher,
    RandomValue, Redirect, RedirectPath, RegexRewrite, RequireTls, Route, RouteAction,
    RouteConfiguration, RouteMatch, StreamDuration, VirtualHost, WeightedCluster, WeightedClusters,
};

use super::headers::mutations;
use super::{
    Converted, Problems, access_log, duration, filter, hash, internal_redirect, matcher, mirror,
    path_template, rate_limit, retry, subset, timeout,
};

/// How much of a body Envoy keeps by default: a connection's buffer limit.
const BUFFER_LIMIT: usize = 1 << 20;

/// Envoy's default route timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// A named route configuration.
///
/// # Errors
/// Everything that is wrong with it.
pub fn route_configuration(message: &pb::RouteConfiguration) -> Converted<RouteConfiguration> {
    let mut problems = Problems::of("envoy.config.route.v3.RouteConfiguration", message);
    let converted = convert(message, "", &mut problems);
    match converted {
        Some(value) => problems.finish(|| value),
        None => Err(problems.0),
    }
}

/// As [`route_configuration`], for one that is part of a listener.
pub(super) fn convert(
    message: &pb::RouteConfiguration,
    path: &str,
    problems: &mut Problems,
) -> Option<RouteConfiguration> {
    let join = |field: &str| crate::config::error::join(path, field);
    let mirrors = mirror::policies(&message.request_mirror_policies, path, problems);
    let virtual_hosts: Vec<Arc<VirtualHost>> = message
        .virtual_hosts
        .iter()
        .enumerate()
        .map(|(i, host)| {
            Arc::new(virtual_host(
                host,
                &mirrors,
                &join(&format!("virtual_hosts[{i}]")),
                problems,
            ))
        })
        .collect();
    for (i, host) in virtual_hosts.iter().enumerate() {
        if let Some(first) = virtual_hosts[..i]
            .iter()
            .position(|other| other.name == host.name)
        {
            problems.push(
                join(&format!("virtual_hosts[{i}].name")),
                format!("{} is also the name of virtual_hosts[{first}]", host.name),
            );
        }
    }
    let domains = match DomainIndex::new(&virtual_hosts) {
        Ok(domains) => domains,
        Err(duplicate) => {
            let at = format!(
                "virtual_hosts[{}].domains[{}]",
                duplicate.virtual_host, duplicate.index
            );
            problems.push(
                join(&at),
                format!(
                    "{} belongs to another virtual host already",
                    duplicate.domain
                ),
            );
            return None;
        }
    };
    Some(RouteConfiguration {
        name: message.name.as_str().into(),
        virtual_hosts,
        domains,
        request_headers: mutations(
            "request",
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            path,
            problems,
        ),
        response_headers: mutations(
            "response",
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
            path,
            problems,
        ),
        most_specific_header_mutations_wins: message.most_specific_header_mutations_wins,
        ignore_port_in_host_matching: message.ignore_port_in_host_matching,
        overrides: filter::overrides(&message.typed_per_filter_config, path, problems),
        validate_clusters: message.validate_clusters.as_ref().map(|value| value.value),
    })
}

fn virtual_host(
    message: &pb::VirtualHost,
    mirrors: &Arc<[Mirror]>,
    path: &str,
    problems: &mut Problems,
) -> VirtualHost {
    if message.name.is_empty() {
        problems.push(format!("{path}.name"), "a name is missing");
    }
    if message.domains.is_empty() {
        problems.hint(
            format!("{path}.domains"),
            "at least one domain is needed",
            "write [\"*\"]",
        );
    }
    for (i, domain) in message.domains.iter().enumerate() {
        let stars = domain.matches('*').count();
        let edge = domain.starts_with('*') || domain.ends_with('*');
        if domain.is_empty() || stars > 1 || (stars == 1 && !edge) {
            problems.hint(
                format!("{path}.domains[{i}]"),
                format!("{domain:?} is not a domain"),
                "one * may stand at the beginning or at the end",
            );
        }
    }
    let own_mirrors = mirror::policies(&message.request_mirror_policies, path, problems);
    let inherited = Inherited {
        mirrors: if own_mirrors.is_empty() {
            mirrors.clone()
        } else {
            own_mirrors
        },
        retry: message.retry_policy.as_ref().map(|policy| {
            Arc::new(retry::convert(
                policy,
                &format!("{path}.retry_policy"),
                problems,
            ))
        }),
        buffer_limit: buffer_limit(
            message
                .request_body_buffer_limit
                .as_ref()
                .map(|limit| limit.value),
            message
                .per_request_buffer_limit_bytes
                .as_ref()
                .map(|limit| limit.value),
        ),
    };
    let routes = message
        .routes
        .iter()
        .enumerate()
        .filter_map(|(i, message)| {
            route(
                message,
                &inherited,
                &format!("{path}.routes[{i}]"),
                problems,
            )
        })
        .map(Arc::new)
        .collect();
    VirtualHost {
        name: message.name.as_str().into(),
        domains: message
            .domains
            .iter()
            .map(|domain| domain.to_ascii_lowercase().into())
            .collect(),
        routes,
        require_tls: match message.require_tls {
            1 => RequireTls::ExternalOnly,
            2 => RequireTls::All,
            _ => RequireTls::None,
        },
        request_headers: mutations(
            "request",
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            path,
            problems,
        ),
        response_headers: mutations(
            "response",
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
            path,
            problems,
        ),
        include_request_attempt_count: message.include_request_attempt_count,
        include_attempt_count_in_response: message.include_attempt_count_in_response,
        include_is_timeout_retry_header: message.include_is_timeout_retry_header,
        rate_limits: rate_limit::convert(&message.rate_limits, path, problems),
        overrides: filter::overrides(&message.typed_per_filter_config, path, problems),
    }
}

/// What routes take from their virtual host if they say nothing themselves.
struct Inherited {
    retry: Option<Arc<RetryPolicy>>,
    buffer_limit: Option<usize>,
    mirrors: Arc<[Mirror]>,
}

/// How much of a request's body may be kept. The older field is bounded by the connection's
/// limit.
fn buffer_limit(own: Option<u64>, older: Option<u32>) -> Option<usize> {
    own.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
        .or_else(|| older.map(|limit| (limit as usize).min(BUFFER_LIMIT)))
}

fn route(
    message: &pb::Route,
    inherited: &Inherited,
    path: &str,
    problems: &mut Problems,
) -> Option<Route> {
    let matcher = match &message.r#match {
        Some(message) => route_match(message, &format!("{path}.match"), problems),
        None => {
            problems.hint(
                format!("{path}.match"),
                "a match is missing",
                "add match: {prefix: /}",
            );
            None
        }
    };
    let action = match &message.action {
        Some(Action::Route(action)) => {
            let path_matcher = matcher.as_ref().map(|matcher| &matcher.path);
            let mut converted = forward(action, path_matcher, &format!("{path}.route"), problems);
            if let Some(forward) = &mut converted {
                if forward.retry.is_none() {
                    forward.retry.clone_from(&inherited.retry);
                }
                if forward.mirrors.is_empty() {
                    forward.mirrors.clone_from(&inherited.mirrors);
                }
                forward.buffer_limit = buffer_limit(
                    message
                        .request_body_buffer_limit
                        .as_ref()
                        .map(|limit| limit.value),
                    message
                        .per_request_buffer_limit_bytes
                        .as_ref()
                        .map(|limit| limit.value),
                )
                .or(inherited.buffer_limit)
                .unwrap_or(BUFFER_LIMIT);
            }
            converted.map(|forward| RouteAction::Forward(Box::new(forward)))
        }
        Some(Action::Redirect(action)) => {
            redirect(action, &format!("{path}.redirect"), problems).map(RouteAction::Redirect)
        }
        Some(Action::DirectResponse(action)) => {
            direct_response(action, &format!("{path}.direct_response"), problems)
                .map(RouteAction::DirectResponse)
        }
        Some(_) => {
            problems.push(
                path,
                "only route, redirect and direct_response are supported",
            );
            None
        }
        None => {
            problems.push(
                path,
                "an action is missing: route, redirect or direct_response",
            );
            None
        }
    };
    Some(Route {
        name: message.name.as_str().into(),
        request_headers: mutations(
            "request",
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            path,
            problems,
        ),
        response_headers: mutations(
            "response",
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
            path,
            problems,
        ),
        overrides: filter::overrides(&message.typed_per_filter_config, path, problems),
        matcher: matcher?,
        action: action?,
    })
}

pub(super) fn route_match(
    message: &pb::RouteMatch,
    path: &str,
    problems: &mut Problems,
) -> Option<RouteMatch> {
    let matcher = match &message.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => Some(PathMatcher::Prefix(prefix.as_str().into())),
        Some(PathSpecifier::Path(exact)) => Some(PathMatcher::Exact(exact.as_str().into())),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                problems.push(
                    format!("{path}.path_separated_prefix"),
                    format!("{prefix:?} must begin with / and not end with it"),
                );
            }
            Some(PathMatcher::PathSeparatedPrefix(prefix.as_str().into()))
        }
        Some(PathSpecifier::SafeRegex(regex)) => {
            matcher::full_regex(regex, &format!("{path}.safe_regex"), problems)
                .map(PathMatcher::Regex)
        }
        Some(PathSpecifier::ConnectMatcher(_)) => Some(PathMatcher::Connect),
        Some(PathSpecifier::PathMatchPolicy(policy)) => {
            path_template::matcher(policy, &format!("{path}.path_match_policy"), problems)
        }
        None => {
            problems.push(
                path,
                "a path is missing: prefix, path, path_separated_prefix or safe_regex",
            );
            None
        }
    };
    let headers = message
        .headers
        .iter()
        .enumerate()
        .filter_map(|(i, header)| {
            matcher::header(header, &format!("{path}.headers[{i}]"), problems)
        })
        .collect();
    let query = message
        .query_parameters
        .iter()
        .enumerate()
        .filter_map(|(i, query)| {
            matcher::query(query, &format!("{path}.query_parameters[{i}]"), problems)
        })
        .collect();
    let fraction = message
        .runtime_fraction
        .as_ref()
        .map(|fraction| filter::fraction(fraction.default_value.as_ref()));
    let cookies = message
        .cookies
        .iter()
        .enumerate()
        .filter_map(|(i, cookie)| {
            let path = format!("{path}.cookies[{i}]");
            if cookie.name.is_empty() {
                problems.push(format!("{path}.name"), "a name is missing");
            }
            let path = format!("{path}.string_match");
            Some(CookieMatcher {
                name: cookie.name.as_str().into(),
                value: match &cookie.string_match {
                    Some(value) => matcher::string(value, &path, problems)?,
                    None => {
                        problems.push(path, "is missing");
                        return None;
                    }
                },
                invert: cookie.invert_match,
            })
        })
        .collect();
    let certificate = message.tls_context.as_ref().and_then(|tls| {
        let presented = tls.presented.as_ref().map(|value| value.value);
        // Who shows a certificate that does not hold is not served.
        let validated = tls.validated.as_ref().map(|value| value.value);
        if let (Some(one), Some(other)) = (presented, validated)
            && one != other
        {
            problems.hint(
                format!("{path}.tls_context"),
                "asks for a certificate that was presented and did not hold, or the reverse",
                "such connections are refused by the handshake: set both to the same",
            );
        }
        presented.or(validated)
    });
    let metadata = message
        .dynamic_metadata
        .iter()
        .enumerate()
        .filter_map(|(i, metadata)| {
            matcher::metadata(metadata, &format!("{path}.dynamic_metadata[{i}]"), problems)
        })
        .collect();
    Some(RouteMatch {
        cookies,
        certificate,
        metadata,
        path: matcher?,
        case_sensitive: message
            .case_sensitive
            .as_ref()
            .is_none_or(|value| value.value),
        headers,
        query,
        grpc: message.grpc.is_some(),
        fraction,
    })
}

fn forward(
    message: &pb::RouteAction,
    matcher: Option<&PathMatcher>,
    path: &str,
    problems: &mut Problems,
) -> Option<Forward> {
    let subset = subset::wanted(message.metadata_match.as_ref(), None);
    let cluster = match &message.cluster_specifier {
        Some(Specified::Cluster(name)) if !name.is_empty() => {
            Some(ClusterSpecifier::Cluster(name.as_str().into()))
        }
        Some(Specified::ClusterHeader(name)) => match HeaderName::try_from(name.as_str()) {
            Ok(name) => Some(ClusterSpecifier::Header(name)),
            Err(_) => {
                problems.push(format!("{path}.cluster_header"), "is not a header name");
                None
            }
        },
        Some(Specified::WeightedClusters(weighted)) => {
            let path = format!("{path}.weighted_clusters");
            weighted_clusters(weighted, subset.as_ref(), &path, problems)
                .map(ClusterSpecifier::Weighted)
        }
        Some(Specified::Cluster(_)) | None => {
            problems.push(
                path,
                "a cluster is missing: cluster, cluster_header or weighted_clusters",
            );
            None
        }
        Some(_) => {
            problems.push(path, "cluster specifier plugins are not supported");
            None
        }
    };
    let not_found = ClusterNotFoundResponseCode::try_from(message.cluster_not_found_response_code);
    let header = |name: &str, problems: &mut Problems| match HeaderName::try_from(name) {
        Ok(name) => Some(HostRewrite::Header(name)),
        Err(_) => {
            problems.push(
                format!("{path}.host_rewrite_header"),
                "is not a header name",
            );
            None
        }
    };
    let host_rewrite = match &message.host_rewrite_specifier {
        None => Some(HostRewrite::Keep),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Some(HostRewrite::Literal(host.as_str().into()))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => Some(if auto.value {
            HostRewrite::Auto
        } else {
            HostRewrite::Keep
        }),
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => header(name, problems),
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            Some(HostRewrite::PathRegex(regex_rewrite(
                rewrite,
                &format!("{path}.host_rewrite_path_regex"),
                problems,
            )?))
        }
        Some(HostRewriteSpecifier::HostRewrite(text)) => {
            access_log::pieces(text, &format!("{path}.host_rewrite"), problems)
                .map(|pieces| HostRewrite::Format(pieces.into()))
        }
    };
    let regex_rewrite = match &message.regex_rewrite {
        Some(rewrite) => Some(regex_rewrite(
            rewrite,
            &format!("{path}.regex_rewrite"),
            problems,
        )?),
        None => None,
    };
    let template_rewrite = message.path_rewrite_policy.as_ref().and_then(|policy| {
        let path = format!("{path}.path_rewrite_policy");
        path_template::rewrite(policy, matcher, &path, problems)
    });
    let prefix_rewrite =
        (!message.prefix_rewrite.is_empty()).then(|| message.prefix_rewrite.as_str().into());
    let path_format = match message.path_rewrite.as_str() {
        "" => None,
        text => access_log::pieces(text, &format!("{path}.path_rewrite"), problems),
    };
    let rewrites = [
        path_format.is_some(),
        prefix_rewrite.is_some(),
        regex_rewrite.is_some(),
        template_rewrite.is_some(),
    ];
    if rewrites.into_iter().filter(|there| *there).count() > 1 {
        problems.push(
            path,
            "only one of prefix_rewrite, regex_rewrite, path_rewrite_policy and path_rewrite may be \
             set",
        );
    }
    let idle_timeout = message
        .idle_timeout
        .as_ref()
        .map(|idle| timeout(Some(idle), None, &format!("{path}.idle_timeout"), problems));
    Some(Forward {
        cluster: cluster?,
        subset,
        cluster_not_found_status: match not_found {
            Ok(ClusterNotFoundResponseCode::NotFound) => StatusCode::NOT_FOUND,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        prefix_rewrite,
        regex_rewrite,
        template_rewrite,
        mirrors: mirror::policies(&message.request_mirror_policies, path, problems),
        path_format: path_format.map(Into::into),
        host_rewrite: host_rewrite?,
        append_x_forwarded_host: message.append_x_forwarded_host,
        timeout: timeout(
            message.timeout.as_ref(),
            Some(DEFAULT_TIMEOUT),
            &format!("{path}.timeout"),
            problems,
        ),
        grpc_timeout_max: grpc_timeout_max(message, path, problems),
        idle_timeout,
        retry: message.retry_policy.as_ref().map(|policy| {
            Arc::new(retry::convert(
                policy,
                &format!("{path}.retry_policy"),
                problems,
            ))
        }),
        hash: hash::policies(&message.hash_policy, path, problems),
        buffer_limit: BUFFER_LIMIT,
        stream_duration: message
            .max_stream_duration
            .as_ref()
            .map(|message| stream_duration(message, path, problems)),
        rate_limits: rate_limit::convert(&message.rate_limits, path, problems),
        include_host_rate_limits: message
            .include_vh_rate_limits
            .as_ref()
            .is_some_and(|value| value.value),
        priority: match PbPriority::try_from(message.priority) {
            Ok(PbPriority::High) => RoutingPriority::High,
            _ => RoutingPriority::Default,
        },
        upgrades: message
            .upgrade_configs
            .iter()
            .map(|upgrade| {
                let enabled = upgrade.enabled.as_ref().is_none_or(|value| value.value);
                (upgrade.upgrade_type.to_ascii_lowercase().into(), enabled)
            })
            .collect(),
        connect_ends: message.upgrade_configs.iter().any(|upgrade| {
            upgrade.connect_config.is_some() && upgrade.upgrade_type.eq_ignore_ascii_case("connect")
        }),
        internal_redirect: message.internal_redirect_policy.as_ref().map(|policy| {
            let path = format!("{path}.internal_redirect_policy");
            Arc::new(internal_redirect::convert(policy, &path, problems))
        }),
    })
}

/// Deprecated in Envoy, and what istiod sends.
#[expect(deprecated)]
fn grpc_timeout_max(
    message: &pb::RouteAction,
    path: &str,
    problems: &mut Problems,
) -> Option<Duration> {
    let most = message.max_grpc_timeout.as_ref()?;
    Some(duration(
        most,
        &format!("{path}.max_grpc_timeout"),
        problems,
    ))
}

fn stream_duration(
    message: &pb::route_action::MaxStreamDuration,
    path: &str,
    problems: &mut Problems,
) -> StreamDuration {
    let path = format!("{path}.max_stream_duration");
    let mut time = |value: &Option<_>, field: &str| {
        value
            .as_ref()
            .map(|value| duration(value, &format!("{path}.{field}"), problems))
    };
    StreamDuration {
        max: time(&message.max_stream_duration, "max_stream_duration"),
        grpc_timeout_max: time(&message.grpc_timeout_header_max, "grpc_timeout_header_max"),
        grpc_timeout_offset: time(
            &message.grpc_timeout_header_offset,
            "grpc_timeout_header_offset",
        )
        .unwrap_or_default(),
    }
}

fn weighted_clusters(
    message: &pb::WeightedCluster,
    subset: Option<&Arc<Metadata>>,
    path: &str,
    problems: &mut Problems,
) -> Option<WeightedClusters> {
    let clusters: Vec<WeightedCluster> = message
        .clusters
        .iter()
        .enumerate()
        .map(|(i, cluster)| {
            let path = format!("{path}.clusters[{i}]");
            let header = match cluster.cluster_header.as_str() {
                "" => None,
                name => HeaderName::try_from(name).ok(),
            };
            if cluster.name.is_empty() == cluster.cluster_header.is_empty() {
                problems.push(
                    format!("{path}.name"),
                    "either a name or a cluster_header is needed",
                );
            } else if header.is_none() && cluster.name.is_empty() {
                problems.push(format!("{path}.cluster_header"), "is not a header name");
            }
            WeightedCluster {
                name: cluster.name.as_str().into(),
                header,
                weight: cluster.weight.as_ref().map_or(0, |weight| weight.value),
                subset: subset::wanted(cluster.metadata_match.as_ref(), subset),
                request_headers: mutations(
                    "request",
                    &cluster.request_headers_to_add,
                    &cluster.request_headers_to_remove,
                    &path,
                    problems,
                ),
                response_headers: mutations(
                    "response",
                    &cluster.response_headers_to_add,
                    &cluster.response_headers_to_remove,
                    &path,
                    problems,
                ),
                host_rewrite: cluster.host_rewrite_specifier.as_ref().map(|specifier| {
                    let cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host) = specifier;
                    host.as_str().into()
                }),
            }
        })
        .collect();
    let total: u64 = clusters
        .iter()
        .map(|cluster| u64::from(cluster.weight))
        .sum();
    if clusters.is_empty() {
        problems.push(format!("{path}.clusters"), "at least one cluster is needed");
        return None;
    }
    if total == 0 || total > u64::from(u32::MAX) {
        problems.push(
            path,
            format!("the weights sum to {total}; they must sum to 1 at least"),
        );
        return None;
    }
    let random = match &message.random_value_specifier {
        Some(RandomValueSpecifier::HeaderName(name)) => match HeaderName::try_from(name.as_str()) {
            Ok(name) => RandomValue::Header(name),
            Err(_) => {
                problems.push(format!("{path}.header_name"), "is not a header name");
                return None;
            }
        },
        Some(RandomValueSpecifier::UseHashPolicy(use_it)) if use_it.value => RandomValue::Hash,
        _ => RandomValue::Own,
    };
    Some(WeightedClusters {
        clusters,
        total,
        random,
    })
}

fn redirect(message: &pb::RedirectAction, path: &str, problems: &mut Problems) -> Option<Redirect> {
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    let scheme = match &message.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => text(scheme),
    };
    let target =
        match &message.path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(target)) => {
                RedirectPath::Replace(target.as_str().into())
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(prefix.as_str().into())
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => RedirectPath::Regex(
                regex_rewrite(rewrite, &format!("{path}.regex_rewrite"), problems)?,
            ),
            Some(PathRewriteSpecifier::PathRewrite(text)) => RedirectPath::Format(
                access_log::pieces(text, &format!("{path}.path_rewrite"), problems)?.into(),
            ),
        };
    let port = u16::try_from(message.port_redirect).ok();
    if port.is_none() {
        problems.push(
            format!("{path}.port_redirect"),
            "is not a port: the largest is 65535",
        );
    }
    let status = match RedirectResponseCode::try_from(message.response_code) {
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        _ => StatusCode::MOVED_PERMANENTLY,
    };
    Some(Redirect {
        status,
        scheme,
        host: text(&message.host_redirect),
        port: port.filter(|port| *port != 0),
        path: target,
        strip_query: message.strip_query,
    })
}

pub(super) fn regex_rewrite(
    message: &RegexMatchAndSubstitute,
    path: &str,
    problems: &mut Problems,
) -> Option<RegexRewrite> {
    let pattern = matcher::search_regex(
        message.pattern.as_ref(),
        &format!("{path}.pattern"),
        problems,
    )?;
    let groups = pattern.captures_len().saturating_sub(1);
    let mut characters = message.substitution.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            continue;
        }
        match characters.next() {
            Some('\\') => {}
            Some(digit)
                if digit
                    .to_digit(10)
                    .is_some_and(|group| group as usize <= groups) => {}
            _ => {
                problems.push(
                    format!("{path}.substitution"),
                    format!("names a group the pattern does not have (it has {groups})"),
                );
                return None;
            }
        }
    }
    Some(RegexRewrite {
        pattern,
        substitution: message.substitution.as_str().into(),
    })
}

fn direct_response(
    message: &pb::DirectResponseAction,
    path: &str,
    problems: &mut Problems,
) -> Option<DirectResponse> {
    let status = u16::try_from(message.status)
        .ok()
        .filter(|status| (200..600).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok());
    if status.is_none() {
        problems.push(format!("{path}.status"), "must be from 200 to 599");
    }
    let body = match message
        .body
        .as_ref()
        .and_then(|body| body.specifier.as_ref())
    {
        None => bytes::Bytes::new(),
        Some(Specifier::InlineString(text)) => text.clone().into(),
        Some(Specifier::InlineBytes(body)) => body.clone().into(),
        Some(_) => {
            problems.push(
                format!("{path}.body"),
                "only inline_string and inline_bytes are supported",
            );
            return None;
        }
    };
    Some(DirectResponse {
        status: status?,
        body,
    })
}
