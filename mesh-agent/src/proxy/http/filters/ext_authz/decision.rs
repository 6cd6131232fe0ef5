//! What a service decided, and what follows from it.

use bytes::Bytes;
use http::{HeaderName, StatusCode, header};
use serde_json::Value;

use crate::proxy::http::filters::mutation::{Mutation, Target};
use crate::proxy::http::filters::query::Query;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::with_body;

/// A decision, whoever made it. An error is none.
#[derive(Debug, Clone)]
pub(super) enum Decision {
    /// The request goes on, changed.
    Allowed(Changes),
    /// It is answered.
    Denied(Denial),
}

/// What an allowed request and its response are like.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    pub(super) request: Vec<Mutation>,
    pub(super) remove: Vec<HeaderName>,
    pub(super) response: Vec<Mutation>,
    pub(super) set_query: Vec<(String, String)>,
    pub(super) remove_query: Vec<String>,
    pub(super) metadata: Option<Value>,
    /// Something of it does not fit HTTP.
    pub(super) invalid: bool,
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Denial {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    pub(super) headers: Vec<Mutation>,
    pub(super) metadata: Option<Value>,
}

impl Changes {
    /// Whether the request may match another route now.
    pub(super) fn touches_request(&self) -> bool {
        !self.request.is_empty()
            || !self.remove.is_empty()
            || !self.set_query.is_empty()
            || !self.remove_query.is_empty()
    }

    /// Changes the request.
    pub(super) fn apply(&self, request: &mut Request) {
        for mutation in &self.request {
            mutation.apply_to(request);
        }
        for name in &self.remove {
            request.headers.remove(name);
        }
        if self.set_query.is_empty() && self.remove_query.is_empty() {
            return;
        }
        let mut query = Query::parse(request.path.query().unwrap_or_default());
        for (key, value) in &self.set_query {
            query.set(key, value);
        }
        for key in &self.remove_query {
            query.remove(key);
        }
        if let Some(path) = query.on(request.path.path()) {
            request.path = path;
        }
    }
}

impl Denial {
    /// The answer. What the service says of headers replaces what we would say.
    pub(super) fn reply(&self) -> Reply {
        let mut reply = with_body(self.status, self.body.clone());
        let named = |mutation: &Mutation| match &mutation.target {
            // The length is that of the body.
            Target::Header(name) if *name != header::CONTENT_LENGTH => Some(name.clone()),
            _ => None,
        };
        for name in self.headers.iter().filter_map(named) {
            reply.headers.remove(name);
        }
        for mutation in &self.headers {
            if let Some(name) = named(mutation) {
                reply.headers.append(name, mutation.value.clone());
            }
        }
        reply
    }
}
