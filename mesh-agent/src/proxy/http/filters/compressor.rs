//! `envoy.filters.http.compressor`: smaller responses for who can read them.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use hyper::body::Body as _;
use smallvec::SmallVec;

use crate::config::model::filter::HttpFilterKind;
use crate::config::model::filter::compressor::{Compressor, PerRoute};
use crate::config::model::listener::HttpConnectionManager;
use crate::proxy::http::body::ProxyBody;
use crate::proxy::http::compressed::{Compressed, Encoder};
use crate::proxy::http::message::{Reply, Request, text};
use crate::proxy::http::reply::is_grpc;

use super::accept_encoding::{Offer, choose};
use super::{Call, Step};

/// What is left to do when the response comes.
#[derive(Debug)]
pub(super) struct Pending {
    config: Arc<Compressor>,
    /// The chain, for what else it offers.
    chain: Arc<HttpConnectionManager>,
    accepts: Option<HeaderValue>,
    /// The response has no body.
    head: bool,
    /// Local replies become gRPC's, which have no body.
    grpc: bool,
}

/// Notes what the client accepts.
pub(super) fn note(
    call: &Call<'_>,
    config: &Arc<Compressor>,
    said: Option<&PerRoute>,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) {
    let accepts = request.headers.get(header::ACCEPT_ENCODING).cloned();
    let remove = said.and_then(|said| said.remove_accept_encoding);
    if remove.unwrap_or(config.remove_accept_encoding) {
        request.headers.remove(header::ACCEPT_ENCODING);
    }
    if config.enabled {
        steps.push(Step::Compress(Box::new(Pending {
            config: config.clone(),
            chain: call.hcm.clone(),
            accepts,
            head: request.method == Method::HEAD,
            grpc: is_grpc(&request.headers),
        })));
    }
}

/// Compresses a response if it is worth it.
pub(super) fn finish(reply: &mut Reply, pending: &Pending) {
    let config = &pending.config;
    if reply.tunnel.is_some() || !is_compressible(reply, config) {
        return;
    }
    let wanted = pending
        .accepts
        .as_ref()
        .and_then(|accepts| choose(text(accepts), &offers(&pending.chain)));
    let local = matches!(reply.body, ProxyBody::Own(_));
    let empty = pending.head || reply.body.is_end_stream() || (local && pending.grpc);
    if !empty && wanted == Some(config.library.encoding()) {
        compress(reply, config);
    }
    vary(&mut reply.headers);
}

fn offers(chain: &HttpConnectionManager) -> SmallVec<[Offer; 3]> {
    let filters = chain.http_filters.iter();
    filters
        .filter_map(|filter| match &filter.kind {
            HttpFilterKind::Compressor(config) => Some(Offer {
                encoding: config.library.encoding(),
                first: config.choose_first,
            }),
            _ => None,
        })
        .collect()
}

fn is_compressible(reply: &Reply, config: &Compressor) -> bool {
    let headers = &reply.headers;
    let long = headers.get(header::CONTENT_LENGTH).is_none_or(|length| {
        let length: Option<u64> = text(length).parse().ok();
        length.is_some_and(|length| length >= config.min_length)
    });
    let transformable = !headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .any(|value| text(value).to_ascii_lowercase().contains("no-transform"));
    long && transformable
        && !headers.contains_key(header::CONTENT_ENCODING)
        && !(config.disable_on_etag && headers.contains_key(header::ETAG))
        && !config
            .uncompressible_statuses
            .contains(&reply.status.as_u16())
        && is_allowed_type(headers, config)
}

fn is_allowed_type(headers: &HeaderMap, config: &Compressor) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let kind = text(kind).split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    config.types.contains(&kind) || config.type_matchers.iter().any(|one| one.matches(&kind))
}

fn compress(reply: &mut Reply, config: &Compressor) {
    let Ok(encoder) = Encoder::new(config.library) else {
        return;
    };
    let headers = &mut reply.headers;
    weaken(headers, config.weaken_etag);
    headers.remove(header::CONTENT_LENGTH);
    let encoding = HeaderValue::from_static(config.library.encoding());
    headers.insert(header::CONTENT_ENCODING, encoding);
    let body = std::mem::replace(&mut reply.body, ProxyBody::Own(None));
    reply.body = match body {
        // Our own answers stay such: their length is known.
        ProxyBody::Own(bytes) => {
            let whole = encoder.whole(&bytes.unwrap_or_default());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
            ProxyBody::Own(Some(Bytes::from(whole)))
        }
        body => ProxyBody::Compressed(Box::new(Compressed::new(body, encoder))),
    };
}

/// The bytes are not the same any more.
fn weaken(headers: &mut HeaderMap, weaken: bool) {
    let Some(tag) = headers.get(header::ETAG) else {
        return;
    };
    let bytes = tag.as_bytes();
    let weak = bytes.len() > 2 && bytes[..2].eq_ignore_ascii_case(b"w/");
    if weak || (!weaken && bytes.len() <= 2) {
        return;
    }
    let new = weaken
        .then(|| HeaderValue::from_bytes(&[b"W/", bytes].concat()).ok())
        .flatten();
    match new {
        Some(tag) => headers.insert(header::ETAG, tag),
        None => headers.remove(header::ETAG),
    };
}

/// Caches must ask again for who accepts something else.
fn vary(headers: &mut HeaderMap) {
    const ACCEPT_ENCODING: &str = "Accept-Encoding";
    const VARY: HeaderName = header::VARY;
    let Some(there) = headers.get(VARY) else {
        headers.insert(VARY, HeaderValue::from_static(ACCEPT_ENCODING));
        return;
    };
    let there = text(there);
    if !there.contains(ACCEPT_ENCODING)
        && let Ok(both) = HeaderValue::try_from(format!("{there}, {ACCEPT_ENCODING}"))
    {
        headers.insert(VARY, both);
    }
}
