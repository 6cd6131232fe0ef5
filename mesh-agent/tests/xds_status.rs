//! What an operator sees of the management server's streams: `/config_dump`, `status`, metrics and
//! the client status discovery service.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use mesh_testbed::ads::{Ads, CLUSTER, ENDPOINTS, LISTENER, ROUTES};
use mesh_testbed::{MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::metric;
use common::resources::{cluster, endpoints, http_listener, routes};

const PATIENCE: Duration = Duration::from_secs(15);

struct Scene {
    agent: MeshAgent,
    ads: Ads,
    vip: SocketAddr,
    _pods: [Pod; 2],
    _server: Server,
    _testbed: Testbed,
}

fn scene() -> Result<Scene> {
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("server")?);
    let server = Server::http(&pod, "one", "v1", 0)?;
    let vip = SocketAddr::new(testbed.vip4(1).into(), 80);
    let ads = Ads::start()?;
    ads.change(|state| {
        state.set(CLUSTER, "one", &cluster("one"));
        state.set(ENDPOINTS, "one", &endpoints("one", &[server.addr4()]));
        state.set(LISTENER, "web", &http_listener("web", vip, "web"));
        state.set(ROUTES, "web", &routes("web", "one"));
    });
    let config = json!({ "workloads": [{ "name": "client", "netns": client.netns_path() }] });
    let agent = MeshAgent::builder(&testbed)?
        .arg("--xds")
        .arg(ads.address())
        .arg("--node-id")
        .arg("node-1")
        .start(&config.to_string())?;
    Ok(Scene {
        agent,
        ads,
        vip,
        _pods: [client, pod],
        _server: server,
        _testbed: testbed,
    })
}

impl Scene {
    /// A part of `/config_dump?include_eds`.
    fn dump(&self, section: &str) -> Result<Value> {
        let page: Value = serde_json::from_str(&self.agent.get("/config_dump?include_eds")?.body)?;
        let wanted = format!("type.googleapis.com/envoy.admin.v3.{section}");
        page["configs"]
            .as_array()
            .and_then(|configs| configs.iter().find(|config| config["@type"] == *wanted))
            .cloned()
            .with_context(|| format!("no {section} in {page}"))
    }

    /// A version of the listener that refers to a filter nobody knows.
    fn break_listener(&self) -> Result<()> {
        let mut broken = http_listener("web", self.vip, "web");
        broken["filter_chains"][0]["filters"][0]["name"] = json!("unknown");
        broken["filter_chains"][0]["filters"][0]["typed_config"] = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" });
        self.ads.change(|state| state.set(LISTENER, "web", &broken));
        eventually("the listener is refused", PATIENCE, || {
            metric(&self.agent, "mesh_xds_rejected_total{type=\"LDS\"}").is_ok_and(|n| n > 0)
        })
    }

    fn client_status(&self) -> Result<Vec<GenericXdsConfig>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let url = format!("http://{}", self.agent.admin());
        let answer: ClientStatusResponse = runtime.block_on(async {
            let mut client = ClientStatusDiscoveryServiceClient::connect(url).await?;
            let answer = client.fetch_client_status(ClientStatusRequest::default());
            anyhow::Ok(answer.await?.into_inner())
        })?;
        let [config] = &answer.config[..] else {
            anyhow::bail!("one client expected: {answer:?}");
        };
        ensure!(config.node.as_ref().is_some_and(|node| node.id == "node-1"));
        Ok(config.generic_xds_configs.clone())
    }
}

#[test]
fn accepted_and_refused_versions_are_shown() -> Result<()> {
    needs_root!(Ok(()));
    let scene = scene()?;
    let clusters = scene.dump("ClustersConfigDump")?;
    let one = &clusters["dynamic_active_clusters"][0];
    assert_eq!(one["cluster"]["name"], "one");
    assert_eq!(one["client_status"], "ACKED");
    ensure!(one["version_info"].as_str().is_some_and(|v| !v.is_empty()));
    ensure!(one["last_updated"].as_str().is_some());
    assert_eq!(
        scene.dump("EndpointsConfigDump")?["dynamic_endpoint_configs"][0]["endpoint_config"]["cluster_name"],
        "one"
    );
    assert_eq!(
        scene.dump("RoutesConfigDump")?["dynamic_route_configs"][0]["route_config"]["name"],
        "web"
    );

    scene.break_listener()?;
    let listener = scene.dump("ListenersConfigDump")?["dynamic_listeners"][0].clone();
    assert_eq!(listener["name"], "web");
    assert_eq!(listener["client_status"], "NACKED");
    let error = listener["error_state"]["details"].as_str();
    ensure!(
        error.is_some_and(|error| error.contains("network filter unknown")),
        "{listener}"
    );
    let active = &listener["active_state"]["listener"]["filter_chains"][0]["filters"][0];
    ensure!(
        active["typed_config"]["stat_prefix"].is_string(),
        "the version before is not shown: {active}"
    );
    let status = scene.agent.command("status")?;
    for shown in [
        "(node)",
        "connected",
        "LDS web refused",
        "network filter unknown",
    ] {
        ensure!(status.contains(shown), "no {shown:?} in\n{status}");
    }
    Ok(())
}

#[test]
fn the_state_of_every_resource_is_told_over_grpc() -> Result<()> {
    needs_root!(Ok(()));
    let scene = scene()?;
    scene.break_listener()?;
    // A cluster whose endpoints do not come, and one that is refused from the start.
    scene.ads.change(|state| {
        state.withhold(ENDPOINTS);
        state.set(CLUSTER, "slow", &cluster("slow"));
        state.set(
            CLUSTER,
            "wrong",
            &json!({ "name": "wrong", "type": "STATIC", "lb_policy": "CLUSTER_PROVIDED" }),
        );
    });
    eventually("the cluster is refused", PATIENCE, || {
        metric(&scene.agent, "mesh_xds_rejected_total{type=\"CDS\"}").is_ok_and(|n| n > 0)
    })?;
    let configs = scene.client_status()?;
    let state = |kind: &str, name: &str| {
        configs
            .iter()
            .find(|config| config.type_url == kind && config.name == name)
            .map(|config| (config.client_status(), config.error_state.is_some()))
    };
    let url = |kind: &str| kind.to_owned();
    assert_eq!(
        state(&url(CLUSTER), "one"),
        Some((ClientResourceStatus::Acked, false))
    );
    assert_eq!(
        state(&url(LISTENER), "web"),
        Some((ClientResourceStatus::Nacked, true))
    );
    assert_eq!(
        state(&url(CLUSTER), "wrong"),
        Some((ClientResourceStatus::Nacked, true))
    );
    assert_eq!(
        state(&url(ENDPOINTS), "slow"),
        Some((ClientResourceStatus::Requested, false))
    );
    let listener = configs.iter().find(|config| config.name == "web");
    ensure!(listener.is_some_and(|config| config.xds_config.is_some()));
    Ok(())
}

#[test]
fn metrics_tell_pushes_rejections_and_the_stream() -> Result<()> {
    needs_root!(Ok(()));
    let mut scene = scene()?;
    let value = |name: &str| metric(&scene.agent, name);
    assert_eq!(value("envoy_control_plane_connected_state")?, 1);
    assert_eq!(value("mesh_xds_rejected_total{type=\"LDS\"}")?, 0);
    assert_eq!(value("mesh_xds_resources{type=\"CDS\"}")?, 1);
    ensure!(value("mesh_xds_responses_total{type=\"EDS\"}")? >= 1);
    ensure!(value("mesh_config_applies_total")? >= 1);
    ensure!(value("mesh_config_apply_last_microseconds")? > 0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let age = now.as_secs() - value("mesh_xds_last_update_seconds")?;
    ensure!(age < 60, "the configuration is {age} s old");
    scene.ads.stop();
    eventually("the stream is gone", PATIENCE, || {
        metric(&scene.agent, "envoy_control_plane_connected_state").is_ok_and(|state| state == 0)
    })?;
    let status = scene.agent.command("status")?;
    ensure!(status.contains("disconnected"), "{status}");
    Ok(())
}
