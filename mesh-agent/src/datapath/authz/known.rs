//! Rules asked with part of the facts: what holds, what does not, and what only the agent can
//! tell when the connection is there.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::model::filter::rbac::{Action, Policy, Rbac, Rule, Rules};

/// What is known of connections.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::datapath) struct Known {
    /// Who connects.
    pub(in crate::datapath) source: Option<IpAddr>,
    /// The address dialled.
    pub(in crate::datapath) destination: Option<IpAddr>,
    /// The port dialled.
    pub(in crate::datapath) port: Port,
}

/// The port dialled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::datapath) enum Port {
    /// Any.
    #[default]
    Unknown,
    /// This one.
    Is(u16),
    /// One that no rule names by itself, but perhaps as one of a range.
    Unnamed,
}

/// Kleene's logic of three values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::datapath) enum Truth {
    No,
    Maybe,
    Yes,
}

impl Truth {
    fn of(value: bool) -> Self {
        if value { Self::Yes } else { Self::No }
    }

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }

    fn any(values: impl Iterator<Item = Self>) -> Self {
        values.max().unwrap_or(Self::No)
    }

    fn all(values: impl Iterator<Item = Self>) -> Self {
        values.min().unwrap_or(Self::Yes)
    }
}

impl Known {
    /// Whether one of the filters denies such connections.
    pub(in crate::datapath) fn denied(&self, filters: &[Rbac]) -> Truth {
        let rules = filters.iter().filter_map(|filter| filter.rules.as_ref());
        Truth::any(rules.map(|rules| self.denied_by(rules)))
    }

    fn denied_by(&self, rules: &Rules) -> Truth {
        let matched = Truth::any(rules.policies.iter().map(|(_, one)| self.matches(one)));
        match rules.action {
            Action::Allow => matched.not(),
            Action::Deny => matched,
            Action::Log => Truth::No,
        }
    }

    fn matches(&self, policy: &Policy) -> Truth {
        let any = |rules: &[Rule]| Truth::any(rules.iter().map(|rule| self.holds(rule)));
        any(&policy.permissions).min(any(&policy.principals))
    }

    fn holds(&self, rule: &Rule) -> Truth {
        let within = |range: &IpNet, ip: Option<IpAddr>| {
            ip.map_or(Truth::Maybe, |ip| Truth::of(range.contains(&ip)))
        };
        match rule {
            Rule::All(rules) => Truth::all(rules.iter().map(|rule| self.holds(rule))),
            Rule::Any(rules) => Truth::any(rules.iter().map(|rule| self.holds(rule))),
            Rule::Not(rule) => self.holds(rule).not(),
            Rule::Always => Truth::Yes,
            Rule::Never => Truth::No,
            Rule::DestinationIp(range) => within(range, self.destination),
            Rule::DirectRemoteIp(range) | Rule::RemoteIp(range) => within(range, self.source),
            Rule::DestinationPort(first, end) => match self.port {
                Port::Unknown => Truth::Maybe,
                Port::Is(port) => Truth::of((*first..*end).contains(&u32::from(port))),
                Port::Unnamed if end.saturating_sub(*first) <= 1 => Truth::No,
                Port::Unnamed => Truth::Maybe,
            },
            Rule::Header(_)
            | Rule::Path(_)
            | Rule::Authenticated(_)
            | Rule::ServerName(_)
            | Rule::Metadata(_) => Truth::Maybe,
        }
    }
}

/// Everything of a kind that rules name.
pub(super) fn walk(filters: &[Rbac], each: &mut impl FnMut(&Rule)) {
    fn visit(rule: &Rule, each: &mut impl FnMut(&Rule)) {
        each(rule);
        match rule {
            Rule::All(rules) | Rule::Any(rules) => {
                for rule in rules {
                    visit(rule, each);
                }
            }
            Rule::Not(rule) => visit(rule, each),
            _ => {}
        }
    }
    let rules = filters.iter().filter_map(|filter| filter.rules.as_ref());
    for (_, policy) in rules.flat_map(|rules| &rules.policies) {
        for rule in policy.permissions.iter().chain(&policy.principals) {
            visit(rule, each);
        }
    }
}
