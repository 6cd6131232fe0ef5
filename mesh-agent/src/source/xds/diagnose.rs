//! What an error of a connection or a stream means to an operator, and which flag mends it.

use std::error::Error;
use std::path::Path;

use tonic::{Code, Status};
use x509_parser::pem::Pem;

use super::transport::Server;

/// Why no connection came to be.
pub(super) fn connecting(server: &Server, error: &anyhow::Error) -> String {
    let text = chain(error.as_ref());
    let hint = transport_hint(server, &text);
    format!("{text}{hint}")
}

/// Why a stream could not be opened on a connection that stood.
pub(super) fn opening(server: &Server, status: &Status) -> String {
    let text = self::status(server, status);
    // Whoever is not let in by TLS 1.3 learns so only after its own side of the handshake, and the
    // alert may be lost with the connection.
    let lost = matches!(
        status.code(),
        Code::Cancelled | Code::Unknown | Code::Unavailable | Code::Internal
    );
    if !lost || text.contains("--xds-") {
        return text;
    }
    let hint = match &server.identity {
        _ if !server.is_secured() => "it may want TLS: --xds-ca FILE".into(),
        None => "perhaps it wants a certificate of ours: --xds-cert FILE and --xds-key FILE".into(),
        Some((certificate, _)) => format!(
            "perhaps it does not take the certificate in {} (--xds-cert){}",
            certificate.display(),
            expiry(certificate)
        ),
    };
    format!("{text}; it broke off at once: {hint}")
}

/// Why a stream ended.
pub(super) fn status(server: &Server, status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(source) = status.source() {
        let source = chain(source);
        if !text.contains(&source) {
            text = format!("{text}: {source}");
        }
    }
    let hint = match status.code() {
        Code::Unimplemented => {
            "; it may not speak this variant: --xds-mode sotw or delta".to_owned()
        }
        Code::OutOfRange => "; --xds-max-message-mib sets what is taken".to_owned(),
        Code::Internal if is_indigestible(status) => {
            "; it may answer in the other variant: --xds-mode sotw or delta".to_owned()
        }
        Code::Unauthenticated | Code::PermissionDenied => identity_hint(server),
        _ => transport_hint(server, &text),
    };
    format!("{text}{hint}")
}

/// Whether the message itself could not be taken, rather than the connection failing: too large,
/// or not what the call returns. The server will send it again.
pub(super) fn is_indigestible(status: &Status) -> bool {
    match status.code() {
        Code::OutOfRange => true,
        Code::Internal => status.message().contains("decode"),
        _ => false,
    }
}

/// The texts of an error and of what caused it, each once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}

/// The server does not know who asks, or does not like it.
fn identity_hint(server: &Server) -> String {
    match (&server.token, &server.identity) {
        (Some(token), _) => format!(
            "; it does not take the token in {} (--xds-token): expired, for another audience, or \
             of another account than the pod's? ({{namespace}} and {{service_account}} in the name \
             of the file stand for each pod's own)",
            token.display()
        ),
        (None, Some((certificate, _))) => format!(
            "; it does not take the certificate in {} (--xds-cert){}; it may want a token: \
             --xds-token FILE",
            certificate.display(),
            expiry(certificate)
        ),
        (None, None) => "; it wants to know who asks: --xds-token FILE, or --xds-cert FILE and \
                         --xds-key FILE"
            .into(),
    }
}

/// What goes wrong below the stream, by what rustls and h2 say of it.
fn transport_hint(server: &Server, text: &str) -> String {
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let ca = server.ca.as_deref().unwrap_or(Path::new(""));
    if has(&["UnknownIssuer", "BadSignature"]) {
        return format!(
            "; the server's certificate does not descend from the roots in {} (--xds-ca)",
            ca.display()
        );
    }
    if has(&["not valid for name", "NotValidForName"]) {
        return "; --xds-server-name says which name its certificate has".into();
    }
    if has(&[
        "peer certificate: certificate expired",
        "certificate not valid yet",
    ]) {
        return "; the server's certificate must be renewed, or the clock of this machine is wrong"
            .into();
    }
    if has(&["received corrupt message", "InvalidContentType"]) {
        return "; it does not speak TLS there: another port, or leave out --xds-ca".into();
    }
    // Alerts are what the other side says of us.
    if has(&["alert: CertificateRequired"])
        || server.identity.is_none() && has(&["alert: HandshakeFailure", "alert: BadCertificate"])
    {
        return "; it wants a certificate of ours: --xds-cert FILE and --xds-key FILE".into();
    }
    if let Some((certificate, _)) = &server.identity
        && has(&["received fatal alert"])
    {
        return format!(
            "; it does not take the certificate in {} (--xds-cert){}",
            certificate.display(),
            expiry(certificate)
        );
    }
    if !server.is_secured()
        && has(&[
            "h2 protocol error",
            "http2 error",
            "frame with invalid size",
        ])
    {
        return "; it may want TLS: --xds-ca FILE".into();
    }
    String::new()
}

/// Says so if the certificate is not valid now.
fn expiry(file: &Path) -> String {
    let Ok(bytes) = std::fs::read(file) else {
        return String::new();
    };
    let Some(Ok(pem)) = Pem::iter_from_buffer(&bytes).next() else {
        return String::new();
    };
    match pem.parse_x509() {
        Ok(certificate) if !certificate.validity().is_valid() => format!(
            ", which is valid from {} to {} only: renew it",
            certificate.validity().not_before,
            certificate.validity().not_after
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(tls: bool) -> Server {
        Server {
            address: "127.0.0.1:1".into(),
            ca: tls.then(|| "ca.pem".into()),
            ..Server::default()
        }
    }

    #[test]
    fn every_error_names_the_flag_that_mends_it() {
        let mutual = Server {
            identity: Some(("ours.pem".into(), "ours.key".into())),
            ..server(true)
        };
        let token = Server {
            token: Some("token".into()),
            ..server(true)
        };
        for (server, status, flag) in [
            (
                &server(true),
                Status::unauthenticated("who?"),
                "--xds-token FILE",
            ),
            (
                &token,
                Status::unauthenticated("who?"),
                "the token in token",
            ),
            (
                &mutual,
                Status::permission_denied("no"),
                "ours.pem (--xds-cert)",
            ),
            (&server(true), Status::unimplemented("?"), "--xds-mode"),
            (
                &server(true),
                Status::out_of_range("big"),
                "--xds-max-message-mib",
            ),
            (
                &server(true),
                Status::internal("failed to decode Protobuf message"),
                "--xds-mode",
            ),
            (
                &server(true),
                Status::unavailable("received fatal alert: CertificateRequired"),
                "--xds-cert FILE",
            ),
            (
                &mutual,
                Status::unavailable("received fatal alert: CertificateExpired"),
                "--xds-cert",
            ),
            (
                &server(false),
                Status::internal("h2 protocol error: http2 error"),
                "--xds-ca",
            ),
        ] {
            let text = super::opening(server, &status);
            assert!(text.contains(flag), "{flag} is not in: {text}");
        }
    }
}
