//! `x-forwarded-client-cert`: who the client is, for the application.
//!
//! Envoy: `ConnectionManagerUtility::mutateXfccRequestHeader`.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::model::listener::{ClientCert, ForwardClientCert};
use crate::config::model::tls::NameKind;
use crate::proxy::tls::Peer;

use super::headers;

const NAME: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removes the header, or says who the client is.
pub(super) fn forward(headers: &mut HeaderMap, settings: &ClientCert, peer: &Peer) {
    let known = peer.certificate.is_some();
    match settings.forward {
        ForwardClientCert::AlwaysForwardOnly => {}
        ForwardClientCert::ForwardOnly if known => {}
        ForwardClientCert::AppendForward if known => {
            if let Some(element) = element(settings, peer) {
                headers::append_joined(headers, NAME, &element);
            }
        }
        ForwardClientCert::SanitizeSet if known => match element(settings, peer) {
            Some(element) => {
                headers.insert(NAME, element);
            }
            None => {
                headers.remove(NAME);
            }
        },
        _ => {
            headers.remove(NAME);
        }
    }
}

fn element(settings: &ClientCert, peer: &Peer) -> Option<HeaderValue> {
    let certificate = peer.certificate.as_ref()?;
    let mut text = String::with_capacity(256);
    if let Some(local) = &peer.local {
        let _ = write!(text, "By={local};");
    }
    text.push_str("Hash=");
    text.push_str(&certificate.hash);
    if settings.cert {
        let _ = write!(text, ";Cert=\"{}\"", certificate.pem);
    }
    if settings.chain {
        let _ = write!(text, ";Chain=\"{}\"", certificate.chain_pem);
    }
    if settings.subject {
        let _ = write!(text, ";Subject=\"{}\"", certificate.subject);
    }
    for (wanted, kind, key) in [
        (settings.uri, NameKind::Uri, "URI"),
        (settings.dns, NameKind::Dns, "DNS"),
    ] {
        if !wanted {
            continue;
        }
        let names = certificate.names.iter().filter(|(of, _)| *of == kind);
        for (_, name) in names {
            let _ = write!(text, ";{key}={name}");
        }
    }
    HeaderValue::try_from(text).ok()
}
