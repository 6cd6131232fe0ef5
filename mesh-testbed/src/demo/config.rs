//! The mesh's configuration: `examples/reviews.yaml` with the addresses of this scene.

use anyhow::{Result, ensure};

use super::scene::Scene;

const EXAMPLE: &str = include_str!("../../../examples/reviews.yaml");

/// Shares of 100 of the requests to `reviews`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub(super) v1: u32,
    pub(super) v2: u32,
}

/// Only the client is enrolled. `reviews` is HTTP and goes through the agent; `ledger` is plain
/// TCP and needs nothing that the kernel cannot do.
pub(super) fn yaml(scene: &Scene, weights: Weights) -> Result<String> {
    let replacements = [
        (
            "netns: client",
            format!("netns: {}", scene.client.netns_path().display()),
        ),
        ("10.96.0.10", scene.reviews_vip().ip().to_string()),
        ("10.96.0.11", scene.ledger_vip().ip().to_string()),
        ("10.0.0.11", scene.reviews_v1.addr4().ip().to_string()),
        ("10.0.0.12", scene.reviews_v2.addr4().ip().to_string()),
        ("10.0.0.21", scene.ledger_a.addr4().ip().to_string()),
        ("10.0.0.22", scene.ledger_b.addr4().ip().to_string()),
        (
            "reviews-v1, weight: 90",
            format!("reviews-v1, weight: {}", weights.v1),
        ),
        (
            "reviews-v2, weight: 10",
            format!("reviews-v2, weight: {}", weights.v2),
        ),
    ];
    let mut text = EXAMPLE.to_owned();
    for (from, to) in replacements {
        ensure!(text.contains(from), "examples/reviews.yaml has no {from:?}");
        text = text.replace(from, &to);
    }
    Ok(text)
}
