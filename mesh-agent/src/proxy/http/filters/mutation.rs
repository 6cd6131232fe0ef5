//! Headers as services that filters ask want them.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::config::model::headers::AppendAction;
use crate::proxy::http::message::{Path, Request};

/// One header.
#[derive(Debug, Clone)]
pub(super) struct Mutation {
    pub(super) target: Target,
    pub(super) value: HeaderValue,
    pub(super) append: AppendAction,
    /// Another value in the line that is there, behind a comma; without one it is left out.
    pub(super) joined: bool,
}

/// What is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Header(HeaderName),
    Path,
    Authority,
    Method,
}

impl Target {
    /// By name; `None`: it cannot be set.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            ":path" => Self::Path,
            ":authority" => Self::Authority,
            ":method" => Self::Method,
            name => match HeaderName::try_from(name).ok()? {
                header::HOST => Self::Authority,
                name => Self::Header(name),
            },
        })
    }
}

impl Mutation {
    /// Replaces what is there.
    pub(super) fn set(name: &HeaderName, value: &HeaderValue) -> Self {
        Self {
            target: Target::Header(name.clone()),
            value: value.clone(),
            append: AppendAction::OverwriteIfExistsOrAdd,
            joined: false,
        }
    }

    /// Stands beside what is there.
    pub(super) fn add(name: &HeaderName, value: &HeaderValue) -> Self {
        Self {
            append: AppendAction::AppendIfExistsOrAdd,
            ..Self::set(name, value)
        }
    }

    /// Changes headers; what is no header is left out.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        let Target::Header(name) = &self.target else {
            return;
        };
        let there = headers.contains_key(name);
        match self.append {
            AppendAction::AppendIfExistsOrAdd if self.joined => {
                let Some(first) = headers.get(name) else {
                    return;
                };
                let mut whole = first.as_bytes().to_vec();
                whole.push(b',');
                whole.extend_from_slice(self.value.as_bytes());
                if let Ok(whole) = HeaderValue::from_bytes(&whole) {
                    headers.insert(name, whole);
                }
            }
            AppendAction::AppendIfExistsOrAdd => {
                headers.append(name, self.value.clone());
            }
            AppendAction::AddIfAbsent if there => {}
            AppendAction::OverwriteIfExists if !there => {}
            _ => {
                headers.insert(name, self.value.clone());
            }
        }
    }

    /// Changes a request.
    pub(super) fn apply_to(&self, request: &mut Request) {
        match &self.target {
            Target::Header(_) => self.apply(&mut request.headers),
            Target::Authority => request.authority = self.value.clone(),
            Target::Path => {
                let bytes = Bytes::copy_from_slice(self.value.as_bytes());
                if let Some(path) = Path::new(bytes) {
                    request.path = path;
                }
            }
            Target::Method => {
                if let Ok(method) = Method::from_bytes(self.value.as_bytes()) {
                    request.method = method;
                }
            }
        }
    }
}
