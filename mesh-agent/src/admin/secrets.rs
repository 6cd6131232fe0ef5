//! Secrets as they may be shown.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::core::v3::DataSource;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use prost::Message as _;

use crate::config::model::Name;
use crate::config::model::secret::Secret;
use crate::store::Resource;

/// What Envoy writes in place of a key.
const REDACTED: &str = "[redacted]";

/// The secrets without their keys.
pub(super) fn redacted(
    secrets: &BTreeMap<Name, Resource<Secret>>,
) -> BTreeMap<Name, Resource<Secret>> {
    let shown = secrets.iter().map(|(name, resource)| {
        let mut shown = resource.clone();
        // What cannot be read is not shown at all.
        let mut message = pb::Secret::decode(&*resource.raw).unwrap_or_default();
        match &mut message.r#type {
            Some(Type::TlsCertificate(pair)) => {
                hide(pair.private_key.as_mut());
                hide(pair.password.as_mut());
            }
            Some(Type::ValidationContext(_)) | None => {}
            Some(_) => message.r#type = None,
        }
        shown.raw = message.encode_to_vec().into();
        (name.clone(), shown)
    });
    shown.collect()
}

fn hide(source: Option<&mut DataSource>) {
    if let Some(source) = source
        && !matches!(source.specifier, Some(Specifier::Filename(_)))
    {
        source.specifier = Some(Specifier::InlineString(REDACTED.into()));
    }
}
