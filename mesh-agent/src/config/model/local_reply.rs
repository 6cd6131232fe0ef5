//! What answers of our own look like.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::access_log::{Filter, Format};
use super::headers::HeaderMutations;

/// Envoy's `LocalReplyConfig`.
#[derive(Debug, Clone)]
pub struct LocalReplyConfig {
    /// The first one that matches counts.
    pub mappers: Vec<ReplyMapper>,
    /// Of answers that no mapper gives another one.
    pub format: Option<BodyFormat>,
}

/// Envoy's `ResponseMapper`.
#[derive(Debug, Clone)]
pub struct ReplyMapper {
    /// Which answers.
    pub filter: Filter,
    /// Their status instead.
    pub status: Option<StatusCode>,
    /// Their text instead.
    pub body: Option<Bytes>,
    /// Their format instead.
    pub format: Option<BodyFormat>,
    /// Headers they get.
    pub headers: HeaderMutations,
}

/// How a body is written.
#[derive(Debug, Clone)]
pub struct BodyFormat {
    /// The text, or the JSON object.
    pub format: Format,
    /// What it is called.
    pub content_type: HeaderValue,
}
