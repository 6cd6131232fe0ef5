//! The pods' certificates, for `/certs` and the metrics.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::identity::Keeper;

use super::pages::{Sample, seconds};

/// Each identity: its certificate, and when the next one is asked for.
pub(super) fn page(keeper: Option<&Keeper>) -> Value {
    let Some(keeper) = keeper else {
        return json!({ "source": null, "certificates": [] });
    };
    let credentials = keeper.credentials().load();
    let certificates: Vec<Value> = keeper
        .states()
        .iter()
        .map(|(id, state)| {
            let identity = credentials.identities.get(id);
            json!({
                "identity": id.as_str(),
                "issuer": identity.map(|identity| &identity.issuer),
                "serial": identity.map(|identity| &identity.serial),
                "not_before": identity.map(|identity| time(identity.not_before)),
                "not_after": identity.map(|identity| time(identity.not_after)),
                "next_rotation": state.next.map(time),
                "issued": state.issued,
                "failures": state.failures,
                "error": state.error,
            })
        })
        .collect();
    json!({ "source": keeper.source(), "certificates": certificates })
}

fn time(time: SystemTime) -> String {
    prost_reflect::prost_types::Timestamp::from(time).to_string()
}

/// Metric families.
pub(super) fn families(keeper: Option<&Keeper>) -> Vec<(&'static str, &'static str, Vec<Sample>)> {
    let Some(keeper) = keeper else {
        return Vec::new();
    };
    let states = keeper.states();
    let credentials = keeper.credentials().load();
    let expiry = credentials.identities.iter().map(|(id, identity)| {
        (
            format!("{{identity=\"{id}\"}}"),
            seconds(identity.not_after),
        )
    });
    let one = |value: u64| vec![(String::new(), value)];
    vec![
        (
            "mesh_certificate_not_after_seconds",
            "gauge",
            expiry.collect(),
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
    ]
}
