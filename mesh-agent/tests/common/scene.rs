//! An agent with a management server that the test steers, and a service behind it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_testbed::ads::{Ads, CLUSTER, ENDPOINTS, LISTENER, ROUTES, State};
use mesh_testbed::{Curl, MeshAgent, MeshAgentBuilder, Pod, Server, Testbed, eventually};
use serde_json::json;

use super::resources::{cluster, endpoints, http_listener, routes};
use super::traffic::Traffic;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A web service `web` at a VIP, with two upstreams behind clusters `one` and `two`.
pub(crate) struct Scene {
    pub(crate) agent: MeshAgent,
    pub(crate) ads: Ads,
    pub(crate) vip: SocketAddr,
    pub(crate) one: Server,
    pub(crate) two: Server,
    pub(crate) client: Pod,
    _server: Pod,
    pub(crate) testbed: Testbed,
}

impl Scene {
    pub(crate) fn start(mode: &str) -> Result<Self> {
        Self::with(mode, |builder| builder, |_| {})
    }

    /// With further flags and resources.
    pub(crate) fn with(
        mode: &str,
        flags: impl FnOnce(MeshAgentBuilder) -> MeshAgentBuilder,
        more: impl FnOnce(&mut State),
    ) -> Result<Self> {
        Self::at(Ads::start()?, mode, flags, more)?.ready()
    }

    /// With a server of one's own; the agent is not waited for.
    pub(crate) fn at(
        ads: Ads,
        mode: &str,
        flags: impl FnOnce(MeshAgentBuilder) -> MeshAgentBuilder,
        more: impl FnOnce(&mut State),
    ) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        let one = Server::http(&server, "one", "v1", 0)?;
        let two = Server::http(&server, "two", "v1", 0)?;
        let vip = SocketAddr::new(testbed.vip4(1).into(), 80);
        ads.change(|state| {
            state.set(CLUSTER, "one", &cluster("one"));
            state.set(ENDPOINTS, "one", &endpoints("one", &[one.addr4()]));
            state.set(LISTENER, "web", &http_listener("web", vip, "web"));
            state.set(ROUTES, "web", &routes("web", "one"));
            more(state);
        });
        let config = json!({ "workloads": [{ "name": "client", "netns": client.netns_path() }] });
        let builder = MeshAgent::builder(&testbed)?
            .arg("--xds")
            .arg(ads.address())
            .arg("--xds-mode")
            .arg(mode)
            .arg("--node-id")
            .arg("node-1");
        let agent = flags(builder).spawn(&config.to_string())?;
        Ok(Self {
            agent,
            ads,
            vip,
            one,
            two,
            client,
            _server: server,
            testbed,
        })
    }

    /// Waits until the agent is.
    pub(crate) fn ready(self) -> Result<Self> {
        let ready = || {
            self.agent
                .get("/ready")
                .is_ok_and(|page| page.status == 200)
        };
        match eventually("the agent is ready", PATIENCE, ready) {
            Ok(()) => Ok(self),
            Err(error) => Err(error.context(self.agent.log())),
        }
    }

    /// Waits until the agent has logged it.
    pub(crate) fn logs(&self, text: &str) -> Result<()> {
        let logs = || self.agent.log().contains(text);
        eventually(&format!("the agent says {text:?}"), PATIENCE, logs)
            .with_context(|| self.agent.log())
    }

    /// Who answers.
    pub(crate) fn served_by(&self) -> Result<String> {
        let response = Curl::get(&self.client, &format!("http://{}/", self.vip)).send()?;
        match response.echo() {
            Ok(echo) => Ok(echo.name),
            Err(_) => Ok(format!("status {}", response.status)),
        }
    }

    pub(crate) fn eventually_served_by(&self, name: &str) -> Result<()> {
        eventually(&format!("{name} answers"), PATIENCE, || {
            self.served_by().is_ok_and(|served| served == name)
        })
    }

    /// Requests without a pause until it is asked for the outcome.
    pub(crate) fn traffic(&self) -> Result<Traffic> {
        Traffic::start(&self.client, self.vip)
    }

    /// The server changes from `one` to `two`, as a careful one does.
    pub(crate) fn add_two(&self) {
        self.ads.change(|state| {
            state.set(CLUSTER, "two", &cluster("two"));
            state.set(ENDPOINTS, "two", &endpoints("two", &[self.two.addr4()]));
        });
    }
}
