//! Header mutations configured on routes, virtual hosts and route configurations.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::access_log::Piece;

/// Mutations of one level (weighted cluster, route, virtual host or route configuration).
#[derive(Debug, Clone, Default)]
pub struct HeaderMutations {
    /// Applied in order, before the removals (Envoy: `HeaderParser::evaluateHeaders`).
    pub add: Vec<HeaderAddition>,
    /// Removed by name.
    pub remove: Vec<HeaderName>,
}

impl HeaderMutations {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// One header to add.
#[derive(Debug, Clone)]
pub struct HeaderAddition {
    /// The header.
    pub name: HeaderName,
    /// The value: literal text and command operators.
    pub value: HeaderTemplate,
    /// What happens when it is there already.
    pub append: AppendAction,
    /// Added even when the value comes out empty.
    pub keep_empty_value: bool,
}

/// Envoy's `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AppendAction {
    /// Add another value (the default).
    #[default]
    AppendIfExistsOrAdd,
    /// Only when absent.
    AddIfAbsent,
    /// Replace or add.
    OverwriteIfExistsOrAdd,
    /// Replace, never add.
    OverwriteIfExists,
}

/// A header value that may hold Envoy command operators such as `%DOWNSTREAM_REMOTE_ADDRESS%`.
#[derive(Debug, Clone)]
pub enum HeaderTemplate {
    /// No operators: ready to use.
    Literal(HeaderValue),
    /// Operators to evaluate per request, as in access logs.
    Format(Arc<[Piece]>),
}
