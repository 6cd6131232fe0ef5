//! `envoy.filters.http.rbac`: who may do what.

use std::net::IpAddr;
use std::sync::Arc;

use http::StatusCode;
use serde_json::{Map, Value};

use crate::config::model::Name;
use crate::config::model::filter::rbac::{Action, Facts, Rbac, Rules};
use crate::config::model::matcher::{HeaderMatcher, MetadataMatcher};
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;
use crate::proxy::http::router::header_matches;

use crate::proxy::stats::count;

use super::Call;

/// Where filters behind find what was decided.
const NAMESPACE: &str = "envoy.filters.http.rbac";
/// Where the access log finds what rules that only log have matched.
const COMMON: &str = "envoy.common";

/// What the rules may look at.
struct Seen<'a, 'c> {
    call: &'a Call<'c>,
    request: &'a Request,
}

impl Facts for Seen<'_, '_> {
    fn header(&self, matcher: &HeaderMatcher) -> bool {
        header_matches(matcher, self.request)
    }

    fn path(&self) -> &str {
        self.request.path.path()
    }

    fn destination(&self) -> (IpAddr, u16) {
        let destination = self.call.connection.caught.destination;
        (destination.ip(), destination.port())
    }

    fn direct_remote(&self) -> IpAddr {
        self.call.connection.caught.peer.ip()
    }

    fn remote(&self) -> IpAddr {
        self.call.remote
    }

    fn peer_names(&self) -> Option<&[Arc<str>]> {
        self.call.connection.peer_names()
    }

    fn server_name(&self) -> &str {
        self.call.connection.server_name()
    }

    fn metadata(&self, matcher: &MetadataMatcher) -> bool {
        let found = self.request.metadata.get(&matcher.filter);
        matcher.matches(found)
    }
}

/// Refuses what the rules do not allow, and tells filters behind and the access log what was
/// decided, and what shadow rules would have decided.
pub(super) fn check(call: &Call<'_>, rbac: &Rbac, request: &mut Request) -> Result<(), Box<Reply>> {
    let stats = &call.connection.context.shared.stats;
    if let Some(shadow) = &rbac.shadow {
        let (allowed, policy) = decide(call, shadow, request);
        count(if allowed {
            &stats.rbac_shadow_allowed
        } else {
            &stats.rbac_shadow_denied
        });
        let (result, id) = ("shadow_engine_result", "shadow_effective_policy_id");
        tell(request, &rbac.shadow_prefix, result, id, allowed, policy);
    }
    let Some(rules) = &rbac.rules else {
        return Ok(());
    };
    let (allowed, policy) = decide(call, rules, request);
    if rules.action == Action::Log {
        let common = namespace(request, COMMON);
        common.insert("access_log_hint".to_owned(), Value::from(policy.is_some()));
    }
    let (result, id) = ("enforced_engine_result", "enforced_effective_policy_id");
    tell(request, &rbac.rules_prefix, result, id, allowed, policy);
    if allowed {
        count(&stats.rbac_http_allowed);
        return Ok(());
    }
    count(&stats.rbac_http_denied);
    tracing::debug!(policy = policy.map(|name| &**name), "access denied");
    let policy = policy.map_or("none", |policy| policy);
    let details = format!("rbac_access_denied_matched_policy[{policy}]").replace(' ', "_");
    let reply = local(StatusCode::FORBIDDEN, "RBAC: access denied").because(details);
    Err(Box::new(reply))
}

fn decide<'r>(call: &Call<'_>, rules: &'r Rules, request: &Request) -> (bool, Option<&'r Name>) {
    rules.allow(&Seen { call, request })
}

fn namespace<'r>(request: &'r mut Request, name: &str) -> &'r mut Map<String, Value> {
    let value = request.metadata.entry(Arc::from(name));
    let value = value.or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}

fn tell(
    request: &mut Request,
    prefix: &str,
    result: &str,
    id: &str,
    allowed: bool,
    policy: Option<&Name>,
) {
    let told = namespace(request, NAMESPACE);
    let word = if allowed { "allowed" } else { "denied" };
    told.insert(format!("{prefix}{result}"), Value::from(word));
    if let Some(policy) = policy {
        told.insert(format!("{prefix}{id}"), Value::from(&**policy));
    }
}
