//! The descriptor pool: what JSON, YAML and [`super::support`] know of Envoy's messages.

use std::sync::OnceLock;

use prost_reflect::DescriptorPool;

/// The pool; decoded when first needed, off the request path.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(mesh_proto::DESCRIPTORS)
            .expect("the embedded descriptors were compiled when they were made")
    })
}
