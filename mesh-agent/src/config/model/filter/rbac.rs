//! Role-based access control.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::model::Name;
use crate::config::model::matcher::{HeaderMatcher, MetadataMatcher, StringMatcher};

/// Envoy's `RBAC` filter.
#[derive(Debug, Clone, Default)]
pub struct Rbac {
    /// `None`: everything is allowed.
    pub rules: Option<Rules>,
    /// Looked at and told, without effect.
    pub shadow: Option<Rules>,
    /// Stands before the names by which `rules` tell what they decided.
    pub rules_prefix: String,
    /// The same for `shadow`.
    pub shadow_prefix: String,
}

/// Policies and what a match means.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What becomes of a request that a policy matches.
    pub action: Action,
    /// By name, in order of the names.
    pub policies: Vec<(Name, Policy)>,
}

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Allows what matches; everything else is denied.
    Allow,
    /// Denies what matches; everything else is allowed.
    Deny,
    /// Allows everything.
    Log,
}

/// Who may do what: any of both.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What.
    pub permissions: Vec<Rule>,
    /// Who.
    pub principals: Vec<Rule>,
}

/// A condition. Envoy's permissions and principals have most of them in common.
#[derive(Debug, Clone)]
pub enum Rule {
    /// All hold.
    All(Vec<Rule>),
    /// One holds.
    Any(Vec<Rule>),
    /// It does not hold.
    Not(Box<Rule>),
    /// Always.
    Always,
    /// Never.
    Never,
    /// A header.
    Header(HeaderMatcher),
    /// The path, without query and fragment.
    Path(StringMatcher),
    /// Where the connection was going.
    DestinationIp(IpNet),
    /// The port, from the first to before the second.
    DestinationPort(u32, u32),
    /// Who is connected.
    DirectRemoteIp(IpNet),
    /// Who asks, as trusted proxies say.
    RemoteIp(IpNet),
    /// The peer proved to be one of these by its certificate; `None`: anybody.
    Authenticated(Option<StringMatcher>),
    /// The name asked for in the TLS handshake; empty without TLS.
    ServerName(StringMatcher),
    /// What filters before found out.
    Metadata(MetadataMatcher),
}

/// What rules are asked about.
pub trait Facts {
    /// Whether a header matches.
    fn header(&self, matcher: &HeaderMatcher) -> bool;
    /// The path without the query.
    fn path(&self) -> &str;
    /// Where the connection was going.
    fn destination(&self) -> (IpAddr, u16);
    /// Who is connected.
    fn direct_remote(&self) -> IpAddr;
    /// Who asks.
    fn remote(&self) -> IpAddr;
    /// The names in the peer's certificate; `None`: it showed none.
    fn peer_names(&self) -> Option<&[Arc<str>]>;
    /// The name asked for in the TLS handshake.
    fn server_name(&self) -> &str;
    /// Whether dynamic metadata matches.
    fn metadata(&self, matcher: &MetadataMatcher) -> bool;
}

impl Rules {
    /// Whether the request may go on, and the policy that decided.
    pub fn allow(&self, facts: &dyn Facts) -> (bool, Option<&Name>) {
        let matched = self
            .policies
            .iter()
            .find(|(_, policy)| policy.matches(facts))
            .map(|(name, _)| name);
        let allowed = match self.action {
            Action::Allow => matched.is_some(),
            Action::Deny => matched.is_none(),
            Action::Log => true,
        };
        (allowed, matched)
    }
}

impl Policy {
    fn matches(&self, facts: &dyn Facts) -> bool {
        let any = |rules: &[Rule]| rules.iter().any(|rule| rule.holds(facts));
        any(&self.permissions) && any(&self.principals)
    }
}

impl Rule {
    /// Whether it holds.
    pub fn holds(&self, facts: &dyn Facts) -> bool {
        match self {
            Self::All(rules) => rules.iter().all(|rule| rule.holds(facts)),
            Self::Any(rules) => rules.iter().any(|rule| rule.holds(facts)),
            Self::Not(rule) => !rule.holds(facts),
            Self::Always => true,
            Self::Never => false,
            Self::Header(matcher) => facts.header(matcher),
            Self::Path(matcher) => matcher.matches(facts.path()),
            Self::DestinationIp(range) => range.contains(&facts.destination().0),
            Self::DestinationPort(first, end) => {
                (*first..*end).contains(&u32::from(facts.destination().1))
            }
            Self::DirectRemoteIp(range) => range.contains(&facts.direct_remote()),
            Self::RemoteIp(range) => range.contains(&facts.remote()),
            Self::Authenticated(matcher) => match (facts.peer_names(), matcher) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(names), Some(matcher)) => names.iter().any(|name| matcher.matches(name)),
            },
            Self::ServerName(matcher) => matcher.matches(facts.server_name()),
            Self::Metadata(matcher) => facts.metadata(matcher),
        }
    }
}
