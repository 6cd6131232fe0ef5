//! Certificates, for `/certs` and the metrics.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::agent::certificates::Certificates;
use crate::config::model::secret::{Secret, SecretServer, SecretValue};
use crate::config::model::tls::Data;
use crate::identity::files::Read;
use crate::identity::{Keeper, Leaf, certificates};

use super::pages::{Sample, seconds};

/// Each identity: its certificate, and when the next one is asked for. Then what contexts find in
/// files and at servers of secrets.
pub(super) fn page(state: &Certificates) -> Value {
    json!({
        "source": state.keeper.as_ref().map(Keeper::source),
        "certificates": state.keeper.as_ref().map_or_else(Vec::new, identities),
        "roots": state.credentials().load().roots.as_ref().map(|roots| roots.len()),
        "files": files(state),
        "secrets": secrets(state),
    })
}

fn identities(keeper: &Keeper) -> Vec<Value> {
    let credentials = keeper.credentials().load();
    let states = keeper.states();
    let each = states.iter().map(|(id, state)| {
        let leaf = credentials
            .identities
            .get(id)
            .map(|identity| &identity.leaf);
        let mut entry = json!({
            "identity": id.as_str(),
            "source": keeper.source(),
            "next_rotation": state.next.map(time),
            "issued": state.issued,
            "failures": state.failures,
            "error": state.error,
        });
        describe(&mut entry, leaf);
        entry
    });
    each.collect()
}

fn describe(entry: &mut Value, leaf: Option<&Leaf>) {
    entry["issuer"] = json!(leaf.map(|leaf| &leaf.issuer));
    entry["serial"] = json!(leaf.map(|leaf| &leaf.serial));
    entry["not_before"] = json!(leaf.map(|leaf| time(leaf.not_before)));
    entry["not_after"] = json!(leaf.map(|leaf| time(leaf.not_after)));
}

/// The first certificate of a chain.
fn first(chain: &[CertificateDer<'_>]) -> Option<Leaf> {
    Leaf::of(chain.first()?).ok()
}

fn names(leaf: Option<&Leaf>) -> String {
    leaf.map_or_else(|| "-".into(), |leaf| leaf.names.join(","))
}

fn files(state: &Certificates) -> Vec<Value> {
    let states = state.files.states();
    let each = states.values().map(|file| {
        let leaf = match &file.good {
            Some(Read::Certificate(key)) => first(&key.cert),
            _ => None,
        };
        let (kind, size) = match &file.good {
            Some(Read::Certificate(key)) => ("certificate", Some(key.cert.len())),
            Some(Read::Roots(roots)) => ("roots", Some(roots.len())),
            Some(Read::Revocations(lists)) => ("revocations", Some(lists.len())),
            None => ("-", None),
        };
        let mut entry = json!({
            "source": file.place,
            "kind": kind,
            "entries": size,
            "identity": names(leaf.as_ref()),
            "read": file.read.map(time),
            "error": file.error,
        });
        describe(&mut entry, leaf.as_ref());
        entry
    });
    each.collect()
}

fn secrets(state: &Certificates) -> Vec<Value> {
    let delivered = state.discovery.delivered();
    let delivered = delivered.borrow();
    let each = delivered.iter().map(|((server, name), secret)| {
        let leaf = secret.secret.as_deref().and_then(leaf_of);
        let server = match server {
            SecretServer::Cluster(cluster) => format!("cluster {cluster}"),
            SecretServer::Target(target) => target.to_string(),
        };
        let mut entry = json!({
            "name": name,
            "source": format!("sds:{server}"),
            "kind": secret.secret.as_deref().map(kind),
            "identity": names(leaf.as_ref()),
            "version": secret.version,
            "updated": secret.updated.map(time),
            "rejected": secret.rejected,
            "error": secret.error,
        });
        describe(&mut entry, leaf.as_ref());
        entry
    });
    each.collect()
}

fn kind(secret: &Secret) -> &'static str {
    match secret.value {
        SecretValue::Certificate { .. } => "certificate",
        SecretValue::Validation(_) => "roots",
    }
}

fn leaf_of(secret: &Secret) -> Option<Leaf> {
    match &secret.value {
        SecretValue::Certificate {
            chain: Data::Inline(pem),
            ..
        } => first(&certificates(pem).ok()?),
        _ => None,
    }
}

fn time(time: SystemTime) -> String {
    prost_reflect::prost_types::Timestamp::from(time).to_string()
}

/// Metric families.
pub(super) fn families(state: &Certificates) -> Vec<(&'static str, &'static str, Vec<Sample>)> {
    let one = |value: u64| vec![(String::new(), value)];
    let delivered = state.discovery.delivered();
    let (there, rejected) = {
        let delivered = delivered.borrow();
        let there = delivered
            .values()
            .filter(|one| one.secret.is_some())
            .count();
        let rejected = delivered.values().map(|one| one.rejected).sum();
        (there as u64, rejected)
    };
    let mut families = vec![
        (
            "mesh_certificate_file_failures_total",
            "counter",
            one(state.files.failures()),
        ),
        ("mesh_secrets_delivered", "gauge", one(there)),
        ("mesh_secrets_rejected_total", "counter", one(rejected)),
    ];
    let Some(keeper) = &state.keeper else {
        return families;
    };
    let states = keeper.states();
    let credentials = keeper.credentials().load();
    let now = SystemTime::now();
    let expiry = credentials.identities.iter().map(|(id, identity)| {
        (
            format!("{{identity=\"{id}\"}}"),
            seconds(identity.leaf.not_after),
        )
    });
    let near = credentials
        .identities
        .values()
        .filter(|identity| identity.leaf.is_near_its_end(now));
    families.extend([
        (
            "mesh_certificate_not_after_seconds",
            "gauge",
            expiry.collect(),
        ),
        (
            "mesh_certificates_near_expiry",
            "gauge",
            one(near.count() as u64),
        ),
        (
            "mesh_certificates_issued_total",
            "counter",
            one(states.values().map(|state| state.issued).sum()),
        ),
        (
            "mesh_certificate_failures_total",
            "counter",
            one(states.values().map(|state| state.failures).sum()),
        ),
    ]);
    families
}
