//! Access logs and metrics as Istio's mesh configuration and Telemetry API ask for them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::{Curl, Istiod, MeshAgent, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
const WEB: &str = "web.default.svc.cluster.local";

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn access_logs_and_metrics_are_those_that_istio_asks_for() -> Result<()> {
    needs_root!(Ok(()));
    if Istiod::program().is_none() {
        mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, pod) = (testbed.pod("client")?, testbed.pod("web")?);
    let server = Server::http(&pod, "web", "v1", 0)?;
    let web = SocketAddr::new(testbed.vip4(1).into(), 80);
    let (folder, ca) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (mesh_log, api_log) = (folder.path().join("mesh"), folder.path().join("api"));
    let service = json!({ "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "hosts": [WEB], "addresses": [web.ip()], "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }],
            "endpoints": [{ "address": server.addr4().ip(), "ports": { "http": server.port() },
                "labels": { "app": "web", "version": "v1" } }] } });
    let istiod = Istiod::start(
        testbed.pod("istiod")?,
        &json!({
            "accessLogFile": mesh_log,
            "extensionProviders": [{ "name": "elsewhere", "envoyFileAccessLog": {
                "path": api_log,
                "logFormat": { "labels": { "code": "%RESPONSE_CODE%", "path": "%REQ(:PATH)%",
                    "cluster": "%UPSTREAM_CLUSTER%" } } } }],
        }),
        &[("web", &[service])],
    )?;
    let workload = |name: &str, netns: &Path, account: &str| {
        json!({ "name": name, "namespace": "default", "service_account": account,
            "labels": { "app": account, "version": "v1" }, "netns": netns })
    };
    let config = json!({ "workloads": [
        workload(client.name(), &client.netns_path(), "client"),
        workload(pod.name(), &pod.netns_path(), "web"),
    ] });
    let agent = MeshAgent::builder(&testbed)?
        .arg("--xds")
        .arg(istiod.xds())
        .arg("--xds-scope")
        .arg("workload")
        .arg("--ca")
        .arg(format!("dev:{}", ca.path().display()))
        .start(&config.to_string())?;
    let get = |path: &str| Curl::get(&client, &format!("http://{web}{path}")).send();
    eventually("the client is served", PATIENCE, || {
        get("/warm").is_ok_and(|response| response.status == 200)
    })?;
    // Istio's own format, on both sides.
    get("/seen?by=both")?;
    let told = |line: &&String, cluster: &str| {
        line.contains("\"GET /seen?by=both HTTP/1.1\" 200 - via_upstream") && line.contains(cluster)
    };
    eventually("both sides are in the mesh's access log", PATIENCE, || {
        let lines = lines(&mesh_log);
        lines
            .iter()
            .any(|line| told(&line, &format!("outbound|80||{WEB}")))
            && lines
                .iter()
                .any(|line| told(&line, &format!("inbound|{}||", server.port())))
    })?;
    let page = agent.get("/stats/prometheus")?.body;
    for reporter in ["source", "destination"] {
        let wanted = [
            format!("reporter=\"{reporter}\""),
            "source_canonical_service=\"client\"".into(),
            "destination_canonical_service=\"web\"".into(),
            format!("destination_service=\"{WEB}\""),
            // What istiod calls a service of a ServiceEntry.
            format!("destination_service_name=\"{WEB}\""),
            "response_code=\"200\"".into(),
        ];
        let found = page.lines().any(|line| {
            line.starts_with("istio_requests_total{")
                && wanted.iter().all(|label| line.contains(label))
        });
        ensure!(found, "nothing with {wanted:?} on the page:\n{page}");
    }
    // The Telemetry API names another provider.
    let telemetry = json!({ "apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": { "name": "logs", "namespace": "istio-system" },
        "spec": { "accessLogging": [{ "providers": [{ "name": "elsewhere" }] }] } });
    istiod.put("telemetry", &[telemetry])?;
    let wanted = |line: &String, cluster: &str| {
        serde_json::from_str::<Value>(line).is_ok_and(|line| {
            line["code"] == 200 && line["path"] == "/moved" && line["cluster"] == cluster
        })
    };
    eventually("both sides are in the other access log", PATIENCE, || {
        let _ = get("/moved");
        let lines = lines(&api_log);
        let inbound = format!("inbound|{}||", server.port());
        let outbound = format!("outbound|80||{WEB}");
        lines.iter().any(|line| wanted(line, &outbound))
            && lines.iter().any(|line| wanted(line, &inbound))
    })?;
    Ok(())
}
