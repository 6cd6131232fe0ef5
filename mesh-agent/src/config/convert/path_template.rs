//! Path templates of routes.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;

use crate::config::model::path_template::{PathTemplate, TemplateRewrite};
use crate::config::model::route::PathMatcher;

use super::{Problems, decode, type_name};

const MATCH: &str = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
const REWRITE: &str = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";

/// `path_match_policy`
pub(super) fn matcher(
    policy: &TypedExtensionConfig,
    path: &str,
    problems: &mut Problems,
) -> Option<PathMatcher> {
    let any = policy.typed_config.as_ref();
    let Some(any) = any.filter(|any| type_name(any) == MATCH) else {
        unknown(policy, path, "envoy.path.match.uri_template", problems);
        return None;
    };
    let config: UriTemplateMatchConfig = decode(any, path, problems)?;
    match PathTemplate::new(&config.path_template) {
        Ok(template) => Some(PathMatcher::Template(template)),
        Err(reason) => {
            problems.push(format!("{path}.typed_config.path_template"), reason);
            None
        }
    }
}

/// `path_rewrite_policy` of a route with this match.
pub(super) fn rewrite(
    policy: &TypedExtensionConfig,
    matcher: Option<&PathMatcher>,
    path: &str,
    problems: &mut Problems,
) -> Option<TemplateRewrite> {
    let any = policy.typed_config.as_ref();
    let Some(any) = any.filter(|any| type_name(any) == REWRITE) else {
        unknown(policy, path, "envoy.path.rewrite.uri_template", problems);
        return None;
    };
    let config: UriTemplateRewriteConfig = decode(any, path, problems)?;
    let Some(PathMatcher::Template(template)) = matcher else {
        problems.push(path, "needs a path_match_policy of uri_template");
        return None;
    };
    match TemplateRewrite::new(&config.path_template_rewrite, template) {
        Ok(rewrite) => Some(rewrite),
        Err(reason) => {
            problems.push(format!("{path}.typed_config.path_template_rewrite"), reason);
            None
        }
    }
}

fn unknown(policy: &TypedExtensionConfig, path: &str, use_this: &str, problems: &mut Problems) {
    problems.hint(
        path,
        format!("{} is not supported", policy.name),
        format!("use {use_this}"),
    );
}
