//! Answers of our own in the form that the configuration gives them
//! (Envoy: `LocalReply::LocalReplyImpl::rewrite`).

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use crate::config::model::listener::HttpConnectionManager;
use crate::config::model::local_reply::BodyFormat;
use crate::telemetry::access_log;

use super::body::ProxyBody;
use super::headers;
use super::message::Reply;
use super::record::{Answering, Record};

/// Rewrites a local reply. Others are left alone.
pub(super) fn rewrite(reply: &mut Reply, hcm: &HttpConnectionManager, record: &Record) {
    let Some(config) = &hcm.local_reply else {
        return;
    };
    let ProxyBody::Own(body) = &mut reply.body else {
        return;
    };
    if reply.tunnel.is_some() || reply.again.is_some() {
        return;
    }
    let said = body.take().unwrap_or_default();
    let mut text = said.clone();
    let mut format = config.format.as_ref();
    let named = reply.headers.get(header::CONTENT_TYPE).cloned();
    let why = &reply.why;
    let mapper = config.mappers.iter().find(|mapper| {
        let answering = Answering {
            status: reply.status,
            headers: &reply.headers,
            why,
        };
        record.of_reply(answering, &said, |entry| mapper.filter.holds(entry))
    });
    if let Some(mapper) = mapper {
        if let Some(body) = &mapper.body {
            text = body.clone();
        }
        let status = reply.status;
        headers::mutate(&mut reply.headers, &mapper.headers, |headers, pieces| {
            let answering = Answering {
                status,
                headers,
                why,
            };
            let mut value = Vec::new();
            record.of_reply(answering, &text, |entry| {
                access_log::text(pieces, entry, true, &mut value);
            });
            value
        });
        if let Some(status) = mapper.status {
            if reply.status == StatusCode::BAD_REQUEST {
                // Who sent one broken request is not trusted with another, whatever it is told.
                let close = HeaderValue::from_static("close");
                reply.headers.insert(header::CONNECTION, close);
            }
            reply.status = status;
        }
        format = mapper.format.as_ref().or(format);
    }
    let typed = reply.headers.get(header::CONTENT_TYPE) != named.as_ref();
    let written = match format {
        Some(BodyFormat { format, .. }) => {
            let answering = Answering {
                status: reply.status,
                headers: &reply.headers,
                why,
            };
            let mut written = Vec::new();
            record.of_reply(answering, &text, |entry| format.write(entry, &mut written));
            Bytes::from(written)
        }
        None => text,
    };
    let headers = &mut reply.headers;
    if written.is_empty() {
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::CONTENT_TYPE);
        return;
    }
    headers.insert(header::CONTENT_LENGTH, written.len().into());
    if !headers.contains_key(header::CONTENT_TYPE) || (written != said && !typed) {
        let plain = || HeaderValue::from_static("text/plain");
        let content_type = format.map_or_else(plain, |format| format.content_type.clone());
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    *body = Some(written);
}
