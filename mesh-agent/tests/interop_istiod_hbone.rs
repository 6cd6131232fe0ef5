//! HBONE as Istio's own discovery server asks sidecars for it: internal addresses and internal
//! listeners.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::{Curl, Istiod, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::metric;

const PATIENCE: Duration = Duration::from_secs(30);
const AMBIENT: [(&str, &str); 3] = [
    ("PILOT_ENABLE_AMBIENT", "true"),
    // There is nobody to write a status to.
    ("AMBIENT_ENABLE_STATUS", "false"),
    ("PILOT_PREFER_SENDING_HBONE", "true"),
];

struct Scene {
    _istiod: Istiod,
    agent: MeshAgent,
    client: Pod,
    web: SocketAddr,
    raw: SocketAddr,
    _servers: [Server; 2],
    _pod: Pod,
    _ca: tempfile::TempDir,
    _testbed: Testbed,
}

fn resource(api: &str, kind: &str, spec: &Value) -> Value {
    json!({ "apiVersion": format!("{api}.istio.io/v1"), "kind": kind,
        "metadata": { "name": "web", "namespace": "default" }, "spec": spec })
}

impl Scene {
    fn start() -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, pod) = (testbed.pod("client")?, testbed.pod("web")?);
        let servers = [
            Server::http(&pod, "web", "v1", 0)?,
            Server::http(&pod, "raw", "v1", 0)?,
        ];
        let at = |port| SocketAddr::new(testbed.vip4(1).into(), port);
        let (web, raw) = (at(80), at(700));
        let labels = json!({ "app": "web", "networking.istio.io/tunnel": "http",
            "security.istio.io/tlsMode": "istio" });
        let [http, tcp] = [servers[0].port(), servers[1].port()];
        let entry = resource(
            "networking",
            "ServiceEntry",
            &json!({ "hosts": ["web.default.svc.cluster.local"], "addresses": [web.ip()],
                "location": "MESH_INTERNAL", "resolution": "STATIC",
                "ports": [
                    { "number": web.port(), "name": "http", "protocol": "HTTP", "targetPort": http },
                    { "number": raw.port(), "name": "tcp", "protocol": "TCP", "targetPort": tcp },
                ],
                "endpoints": [{ "address": pod.ip4(), "ports": { "http": http, "tcp": tcp },
                    "labels": labels, "serviceAccount": "web" }] }),
        );
        let strict = resource(
            "security",
            "PeerAuthentication",
            &json!({ "mtls": { "mode": "STRICT" } }),
        );
        let istiod = Istiod::start_with(
            testbed.pod("istiod")?,
            &json!({ "rootNamespace": "istio-system" }),
            &[("web", &[entry, strict])],
            &AMBIENT,
        )?;
        let workload = |pod: &Pod, account: &str| {
            json!({ "name": pod.name(), "namespace": "default", "service_account": account,
                "labels": { "app": account }, "netns": pod.netns_path() })
        };
        let config = json!({ "workloads": [workload(&client, "client"), workload(&pod, "web")] });
        let ca = tempfile::tempdir()?;
        let agent = MeshAgent::builder(&testbed)?
            .arg("--xds")
            .arg(istiod.xds())
            .arg("--xds-scope")
            .arg("workload")
            .arg("--ca")
            .arg(format!("dev:{}", ca.path().display()))
            .start(&config.to_string())?;
        Ok(Self {
            _istiod: istiod,
            agent,
            client,
            web,
            raw,
            _servers: servers,
            _pod: pod,
            _ca: ca,
            _testbed: testbed,
        })
    }

    fn status(&self, at: SocketAddr) -> Option<u16> {
        let response = Curl::get(&self.client, &format!("http://{at}/"))
            .send()
            .ok()?;
        Some(response.status)
    }
}

#[test]
fn istiods_tunnels_are_made_and_ended() -> Result<()> {
    needs_root!(Ok(()));
    if Istiod::program().is_none() {
        mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
        return Ok(());
    }
    let scene = Scene::start()?;
    eventually("the client is served", PATIENCE, || {
        scene.status(scene.web) == Some(200)
    })?;
    assert_eq!(scene.agent.get("/ready")?.status, 200);
    let granted = metric(&scene.agent, "mesh_hbone_downstream_streams_granted_total")?;
    ensure!(granted >= 1, "it was served without a tunnel");
    assert_eq!(scene.status(scene.raw), Some(200));
    ensure!(metric(&scene.agent, "mesh_hbone_downstream_streams_granted_total")? > granted);
    // Nothing that istiod sent was refused.
    let log = scene.agent.log();
    ensure!(!log.contains("a resource was refused"), "{log}");
    Ok(())
}
