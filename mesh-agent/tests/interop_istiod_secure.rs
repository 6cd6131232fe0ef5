//! istiod's port for those who say who they are: its own roots, and for each pod's stream the token
//! or the certificate of the pod's account.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{
    Ca, Curl, Istiod, MeshAgent, MeshAgentBuilder, Pod, Python, Server, Testbed, eventually,
    needs_root,
};
use serde_json::{Value, json};

use common::metric;
use common::tokens::Tokens;
use common::traffic::Traffic;

const PATIENCE: Duration = Duration::from_secs(60);

/// `client` and `other` are of accounts of their own; `web` stands outside the mesh.
struct Scene {
    istiod: Istiod,
    _keys: Python,
    tokens: Tokens,
    ca: Ca,
    one: Server,
    two: Server,
    vip: SocketAddr,
    client: Pod,
    other: Pod,
    _web: Pod,
    files: tempfile::TempDir,
    testbed: Testbed,
}

/// A service with one endpoint.
fn service(vip: SocketAddr, endpoint: SocketAddr) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "hosts": ["web.default.svc.cluster.local"], "addresses": [vip.ip()],
            "location": "MESH_INTERNAL", "resolution": "STATIC",
            "ports": [{ "number": vip.port(), "name": "http", "protocol": "HTTP" }],
            "endpoints": [{ "address": endpoint.ip(), "ports": { "http": endpoint.port() } }] } })
}

impl Scene {
    fn start() -> Result<Option<Self>> {
        if Istiod::program().is_none() {
            mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
            return Ok(None);
        }
        let testbed = Testbed::new()?;
        let (client, other) = (testbed.pod("client")?, testbed.pod("other")?);
        let (web, control) = (testbed.pod("web")?, testbed.pod("istiod")?);
        let one = Server::http(&web, "one", "v1", 0)?;
        let two = Server::http(&web, "two", "v1", 0)?;
        let vip = SocketAddr::new(testbed.vip4(1).into(), 80);
        let tokens = Tokens::new()?;
        let (keys, at) = Python::file_server(&control, &tokens.keys())?;
        let ca = Ca::new("mesh")?;
        let istiod = Istiod::builder()
            .env("JWT_RULE", &tokens.rule(at).to_string())
            .authority(ca.pem(), ca.key_pem(), ca.pem())
            .start(
                control,
                &json!({ "trustDomain": "cluster.local", "rootNamespace": "istio-system" }),
                &[("web", &[service(vip, one.addr4())])],
            )?;
        let files = tempfile::tempdir()?;
        fs::write(files.path().join("root.pem"), ca.pem())?;
        Ok(Some(Self {
            istiod,
            _keys: keys,
            tokens,
            ca,
            one,
            two,
            vip,
            client,
            other,
            _web: web,
            files,
            testbed,
        }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn agent(
        &self,
        mode: &str,
        credential: impl FnOnce(MeshAgentBuilder) -> MeshAgentBuilder,
    ) -> Result<MeshAgent> {
        let workload = |pod: &Pod| {
            json!({ "name": pod.name(), "namespace": "shop", "service_account": pod.name(),
                "labels": { "app": pod.name() }, "netns": pod.netns_path() })
        };
        let config = json!({ "workloads": [workload(&self.client), workload(&self.other)] });
        let builder = MeshAgent::builder(&self.testbed)?
            .arg("--xds")
            .arg(self.istiod.secure())
            .arg("--xds-mode")
            .arg(mode)
            .arg("--xds-scope")
            .arg("workload")
            .arg("--xds-ca")
            .arg(self.path("root.pem").display())
            .arg("--xds-server-name")
            .arg("istiod.istio-system.svc");
        credential(builder).start(&config.to_string())
    }

    fn served_by(&self, pod: &Pod, name: &str) -> bool {
        let answer = Curl::get(pod, &format!("http://{}/", self.vip)).send();
        answer.is_ok_and(|answer| answer.echo().is_ok_and(|echo| echo.name == name))
    }

    fn eventually_served_by(&self, agent: &MeshAgent, name: &str) -> Result<()> {
        for pod in [&self.client, &self.other] {
            let what = format!("{} is served by {name}", pod.name());
            eventually(&what, PATIENCE, || self.served_by(pod, name))
                .with_context(|| agent.log())?;
        }
        Ok(())
    }

    /// Configuration goes on coming, also from an istiod that was away.
    fn lives_on(&mut self, agent: &MeshAgent) -> Result<()> {
        let host = self.vip.ip().to_string();
        let traffic = Traffic::of_host(&self.client, self.vip, &host)?;
        self.istiod
            .put("web", &[service(self.vip, self.two.addr4())])?;
        self.eventually_served_by(agent, "two")?;
        self.istiod.stop();
        eventually("the streams are gone", PATIENCE, || {
            metric(agent, "mesh_xds_streams_connected").is_ok_and(|streams| streams == 0)
        })?;
        self.istiod
            .put("web", &[service(self.vip, self.one.addr4())])?;
        self.istiod.resume()?;
        self.eventually_served_by(agent, "one")?;
        traffic.end()?;
        for kind in ["CDS", "EDS", "LDS", "RDS"] {
            let refused = format!("mesh_xds_rejected_total{{type=\"{kind}\"}}");
            ensure!(metric(agent, &refused)? == 0, "{}", agent.log());
        }
        Ok(())
    }
}

#[test]
fn each_pods_stream_shows_the_token_of_its_account() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let Some(mut scene) = Scene::start()? else {
            return Ok(());
        };
        // Another's token; and one that is over.
        scene.tokens.give("client", "other", 3600)?;
        scene.tokens.give("other", "other", -60)?;
        let template = scene.tokens.template();
        let agent = scene.agent(mode, |builder| builder.arg("--xds-token").arg(&template))?;
        for (account, why) in [("client", "PermissionDenied"), ("other", "Unauthenticated")] {
            let file = template
                .replace("{namespace}", "shop")
                .replace("{service_account}", account);
            let told = || {
                let log = agent.log();
                let mut lines = log.lines();
                lines.any(|line| line.contains(why) && line.contains(&file))
            };
            eventually(&format!("{account} is refused: {why}"), PATIENCE, told)
                .with_context(|| agent.log())?;
        }
        scene.tokens.give("client", "client", 3600)?;
        scene.tokens.give("other", "other", 3600)?;
        scene.eventually_served_by(&agent, "one")?;
        scene.lives_on(&agent)?;
    }
    Ok(())
}

#[test]
fn each_pods_stream_shows_the_certificate_of_its_account() -> Result<()> {
    needs_root!(Ok(()));
    let Some(mut scene) = Scene::start()? else {
        return Ok(());
    };
    for account in ["client", "other"] {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let issued = scene.ca.issue(&[&id])?;
        fs::write(scene.path(&format!("{account}.crt")), issued.chain)?;
        fs::write(scene.path(&format!("{account}.key")), issued.key)?;
    }
    let template = |extension: &str| {
        let folder = scene.files.path().display();
        format!("{folder}/{{service_account}}.{extension}")
    };
    let (certificate, key) = (template("crt"), template("key"));
    let agent = scene.agent("delta", |builder| {
        builder
            .arg("--xds-cert")
            .arg(&certificate)
            .arg("--xds-key")
            .arg(&key)
    })?;
    scene.eventually_served_by(&agent, "one")?;
    scene.lives_on(&agent)
}

#[test]
fn who_shows_nothing_or_trusts_another_is_told_what_is_missing() -> Result<()> {
    needs_root!(Ok(()));
    let Some(scene) = Scene::start()? else {
        return Ok(());
    };
    let told = |agent: &MeshAgent, what: &str| {
        eventually(&format!("it says {what}"), PATIENCE, || {
            agent.log().contains(what)
        })
        .with_context(|| agent.log())
    };
    {
        let agent = scene.agent("delta", |builder| builder)?;
        told(&agent, "it wants to know who asks: --xds-token FILE")?;
        ensure!(
            !scene.served_by(&scene.client, "one"),
            "served all the same"
        );
    }
    fs::write(scene.path("root.pem"), Ca::new("another")?.pem())?;
    let agent = scene.agent("delta", |builder| builder)?;
    told(&agent, "does not descend from the roots")
}
