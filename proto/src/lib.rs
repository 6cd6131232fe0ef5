//! Protocol definitions: the descriptors of Envoy's messages, for JSON and YAML.

/// An encoded `google.protobuf.FileDescriptorSet` with the messages a configuration file may
/// hold. Made by `cargo xtask gen-descriptors`.
pub const DESCRIPTORS: &[u8] = include_bytes!("../descriptors.bin");
