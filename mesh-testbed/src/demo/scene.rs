//! Pods and servers of the demo.

use std::net::SocketAddr;

use anyhow::Result;
use mesh_testbed::{MeshAgent, Pod, Server, Testbed};

/// Dropped from top to bottom: the agent first, the testbed last.
pub(super) struct Scene {
    pub(super) agent: Option<MeshAgent>,
    pub(super) reviews_v1: Server,
    pub(super) reviews_v2: Server,
    pub(super) ledger_a: Server,
    pub(super) ledger_b: Server,
    /// Enrolled.
    pub(super) client: Pod,
    /// Not enrolled.
    pub(super) outsider: Pod,
    pub(super) servers: Vec<Pod>,
    pub(super) testbed: Testbed,
    /// Rules of the node itself before the demo.
    pub(super) rules_before: Vec<String>,
}

impl Scene {
    pub(super) fn set() -> Result<(Self, String)> {
        let testbed = Testbed::new()?;
        let client = testbed.pod("client")?;
        let outsider = testbed.pod("outsider")?;
        let servers = testbed.pods(["reviews-v1", "reviews-v2", "ledger-a", "ledger-b"])?;
        let [v1, v2, a, b] = &servers[..] else {
            anyhow::bail!("four names make four pods")
        };
        let scene = Self {
            agent: None,
            reviews_v1: Server::http(v1, "reviews", "v1", 9080)?,
            reviews_v2: Server::http(v2, "reviews", "v2", 9080)?,
            ledger_a: Server::tcp(a, "ledger-a", 9000)?,
            ledger_b: Server::tcp(b, "ledger-b", 9000)?,
            rules_before: super::rules::of_node(),
            client,
            outsider,
            servers,
            testbed,
        };
        let said = format!(
            "6 pods; reviews is {}, ledger is {}, neither has a route",
            scene.reviews_vip(),
            scene.ledger_vip()
        );
        Ok((scene, said))
    }

    pub(super) fn reviews_vip(&self) -> SocketAddr {
        (self.testbed.vip4(10), 80).into()
    }

    pub(super) fn ledger_vip(&self) -> SocketAddr {
        (self.testbed.vip4(11), 9000).into()
    }

    pub(super) fn name(&self) -> String {
        self.testbed.name()
    }

    pub(super) fn agent(&self) -> Result<&MeshAgent> {
        self.agent
            .as_ref()
            .ok_or_else(|| anyhow::anyhow!("the agent does not run"))
    }
}
