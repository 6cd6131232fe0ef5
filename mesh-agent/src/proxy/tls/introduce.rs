//! What two pods of this node would know of each other after a handshake that does not take place.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::UnixTime;

use crate::config::model::tls::{
    CertificateSource, CommonTls, DownstreamTls, TrustSource, UpstreamTls,
};
use crate::identity::SpiffeId;

use super::peer::{Role, Verifier};
use super::{Contexts, Offer, Peer, config, known, take_refused};

impl Contexts {
    /// The server's view of the client, if each side's context accepts the certificate that the
    /// agent holds for the other one. `None`: they would not trust each other, or their
    /// certificates and roots are not those of the mesh; a handshake tells.
    pub(in crate::proxy) fn introduce(
        &self,
        client: (&Arc<UpstreamTls>, &SpiffeId),
        server: (&Arc<DownstreamTls>, &SpiffeId),
    ) -> Option<Peer> {
        let (client, client_id) = client;
        let (server, server_id) = server;
        if !of_the_mesh(&client.common) || !of_the_mesh(&server.common) {
            return None;
        }
        let credentials = self.credentials.load();
        let now = UnixTime::since_unix_epoch(
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()?,
        );
        let judged = |verifier: Arc<Verifier>, peer: &SpiffeId, role: Role| {
            let chain = &credentials.identities.get(peer)?.key.cert;
            let judged = verifier.judge(chain, now, role);
            // A handshake tells who is refused.
            take_refused();
            judged.ok()?;
            Some(chain)
        };
        let of_client = self.cache.verifier(client, client_id, &credentials).ok()?;
        judged(of_client, server_id, Role::Server)?;
        let asked = server.common.validation.is_some();
        let certificate = match asked {
            true => {
                let of_server = self.cache.verifier(server, server_id, &credentials).ok()?;
                let chain = judged(of_server, client_id, Role::Client)?;
                Some(known::certificate(chain)?)
            }
            false if server.require_client_certificate => return None,
            false => None,
        };
        Some(Peer {
            encrypted: true,
            names: certificate
                .as_ref()
                .map(|certificate| certificate.bare_names.clone()),
            certificate,
            local: Some(server_id.clone()),
            server_name: client
                .sni
                .as_deref()
                .map(|sni| sni.to_ascii_lowercase().into()),
        })
    }
}

/// The protocols that a handshake would offer.
pub(in crate::proxy) fn offers(tls: &UpstreamTls, offer: Option<&Offer>) -> Vec<String> {
    match offer {
        Some(offer) => offer.iter().map(ToString::to_string).collect(),
        None => config::offered(&tls.common)
            .map(ToString::to_string)
            .collect(),
    }
}

/// Whether certificates and roots are those that the agent keeps for its pods.
fn of_the_mesh(common: &CommonTls) -> bool {
    let trust = common
        .validation
        .as_ref()
        .map(|validation| &validation.trust);
    common.certificate == CertificateSource::Workload
        && common.secrets() == [None, None]
        && matches!(trust, None | Some(TrustSource::Mesh))
}
