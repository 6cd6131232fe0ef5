//! Protocol definitions: the descriptors of Envoy's messages, for JSON and YAML.

/// An encoded `google.protobuf.FileDescriptorSet` with the messages a configuration file may
/// hold. Made by `cargo xtask gen-descriptors`.
pub const DESCRIPTORS: &[u8] = include_bytes!("../descriptors.bin");

/// Istio's own protocols.
pub mod istio {
    /// `istio.v1`
    pub mod v1 {
        /// `istio.v1.auth`
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}
