//! Certificates signed by istiod's own authority: asked for with a token or a certificate of each
//! workload, used between pods, renewed, and signed by another authority from one day to the next.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{
    Ca, Curl, Istiod, MeshAgent, MeshAgentBuilder, Pod, Python, Server, Testbed, eventually,
    needs_root,
};
use serde_json::{Value, json};

use common::metric;
use common::tls::{self, by_secrets};
use common::tokens::Tokens;
use common::traffic::Traffic;

const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    istiod: Istiod,
    _keys: Python,
    tokens: Tokens,
    ca: Ca,
    server: Server,
    raw: Server,
    client: Pod,
    web: Pod,
    files: tempfile::TempDir,
    testbed: Testbed,
}

impl Scene {
    /// istiod with an authority of ours plugged in.
    fn start() -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, web) = (testbed.pod("client")?, testbed.pod("web")?);
        let control = testbed.pod("istiod")?;
        let tokens = Tokens::new()?;
        let (keys, at) = Python::file_server(&control, &tokens.keys())?;
        let rule = tokens.rule(at);
        let ca = Ca::new("first")?;
        let mesh = json!({ "trustDomain": "cluster.local", "rootNamespace": "istio-system" });
        let istiod = Istiod::builder()
            .env("JWT_RULE", &rule.to_string())
            .authority(ca.pem(), ca.key_pem(), ca.pem())
            .start(control, &mesh, &[])?;
        let files = tempfile::tempdir()?;
        fs::write(files.path().join("root.pem"), ca.pem())?;
        Ok(Self {
            server: Server::http(&web, "web", "v1", 0)?,
            raw: Server::tcp(&web, "raw", 0)?,
            istiod,
            _keys: keys,
            tokens,
            ca,
            client,
            web,
            files,
            testbed,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn agent(
        &self,
        ttl: &str,
        credential: impl FnOnce(MeshAgentBuilder) -> MeshAgentBuilder,
    ) -> Result<MeshAgent> {
        let common = by_secrets("default", "ROOTCA", &Value::Null);
        let mut listeners = tls::outbound(&self.testbed).to_vec();
        listeners.push(tls::inbound(&common));
        let config = json!({ "mesh": { "short_circuit": false }, "workloads": tls::workloads(&[&self.client, &self.web]),
            "static_resources": { "listeners": listeners,
                "clusters": tls::clusters(self.server.addr4(), self.raw.addr4(), &common) } });
        let builder = MeshAgent::builder(&self.testbed)?
            .arg("--ca")
            .arg(format!("istio:{}", self.istiod.secure()))
            .arg("--ca-root")
            .arg(self.path("root.pem").display())
            .arg("--ca-server-name")
            .arg("istiod.istio-system.svc")
            .arg("--cert-ttl")
            .arg(ttl);
        credential(builder).start(&config.to_string())
    }

    /// Who the server is told the client is.
    fn told(&self) -> Option<String> {
        let url = format!("http://{}/", tls::vip(&self.testbed, 80));
        let echo = Curl::get(&self.client, &url).send().ok()?.echo().ok()?;
        let told = echo.header("x-forwarded-client-cert")?;
        Some(told.split_once("URI=")?.1.to_owned())
    }

    fn eventually_served(&self, agent: &MeshAgent) -> Result<()> {
        let served = eventually("the client is known by its certificate", PATIENCE, || {
            self.told().as_deref() == Some("spiffe://cluster.local/ns/shop/sa/client")
        });
        served.with_context(|| {
            let certs = agent.command("certs").unwrap_or_default();
            format!("{certs}\n{}", agent.log())
        })
    }
}

fn certs(agent: &MeshAgent) -> Result<Vec<Value>> {
    let certs: Value = serde_json::from_str(&agent.get("/certs")?.body)?;
    Ok(certs["certificates"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

/// Whether every identity's certificate is signed by this authority.
fn signed_by(agent: &MeshAgent, name: &str) -> bool {
    let issuer = format!("O={name}");
    certs(agent).is_ok_and(|all| all.len() == 2 && all.iter().all(|one| one["issuer"] == *issuer))
}

fn has_istiod() -> bool {
    let has = Istiod::program().is_some();
    if !has {
        mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
    }
    has
}

#[test]
fn tokens_of_workloads_get_certificates_that_are_renewed_and_change_their_authority() -> Result<()>
{
    needs_root!(Ok(()));
    if !has_istiod() {
        return Ok(());
    }
    let mut scene = Scene::start()?;
    scene.tokens.give("web", "web", 3600)?;
    // Another's token, and then one that is over.
    scene.tokens.give("client", "other", 3600)?;
    let template = scene.tokens.template();
    let agent = scene.agent("15s", |builder| builder.arg("--ca-token").arg(&template))?;
    let fails = |why: &str| {
        eventually(&format!("certs says {why}"), PATIENCE, || {
            agent
                .command("certs")
                .is_ok_and(|certs| certs.contains(why))
        })
        .with_context(|| agent.log())
    };
    fails("it is not of spiffe://cluster.local/ns/shop/sa/client but of")?;
    ensure!(scene.told().is_none(), "served without a certificate");
    scene.tokens.give("client", "client", -60)?;
    fails("Unauthenticated")?;
    scene.tokens.give("client", "client", 3600)?;
    scene.eventually_served(&agent)?;
    ensure!(signed_by(&agent, "first"), "{:?}", certs(&agent)?);

    let traffic = Traffic::start(&scene.client, tls::vip(&scene.testbed, 80))?;
    let issued = || metric(&agent, "mesh_certificates_issued_total");
    let before = issued()?;
    eventually("each was renewed", PATIENCE, || {
        issued().is_ok_and(|now| now >= before + 2)
    })?;
    // Another authority signs; for a while both are trusted, as Istio has it done. istiod is away
    // meanwhile, which matters to nobody as long as the old certificates last.
    let second = Ca::new("second")?;
    let both = format!("{}{}", scene.ca.pem(), second.pem());
    scene.istiod.stop();
    scene.istiod.plug(second.pem(), second.key_pem(), &both)?;
    fs::write(scene.path("root.pem"), &both)?;
    scene.istiod.resume()?;
    eventually("the second authority signs", PATIENCE, || {
        signed_by(&agent, "second")
    })
    .with_context(|| format!("{:?}\n{}", certs(&agent), agent.log()))?;
    let page: Value = serde_json::from_str(&agent.get("/certs")?.body)?;
    ensure!(page["roots"] == 2, "roots: {}", page["roots"]);
    scene.eventually_served(&agent)?;
    traffic.end()?;
    Ok(())
}

#[test]
fn certificates_of_workloads_are_a_credential_too() -> Result<()> {
    needs_root!(Ok(()));
    if !has_istiod() {
        return Ok(());
    }
    let scene = Scene::start()?;
    for account in ["client", "web"] {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let issued = scene.ca.issue(&[&id])?;
        fs::write(scene.path(&format!("{account}.crt")), issued.chain)?;
        fs::write(scene.path(&format!("{account}.key")), issued.key)?;
    }
    let file = |name: &str| template(&scene.path(name));
    let agent = scene.agent("1h", |builder| {
        builder
            .arg("--ca-cert")
            .arg(file("crt"))
            .arg("--ca-key")
            .arg(file("key"))
    })?;
    scene.eventually_served(&agent)?;
    let serials: Vec<Value> = certs(&agent)?
        .into_iter()
        .map(|one| one["serial"].clone())
        .collect();
    ensure!(
        serials.len() == 2 && serials[0] != serials[1],
        "{serials:?}"
    );
    // Not the credential itself: a certificate that istiod signed.
    let id = json!("spiffe://cluster.local/ns/shop/sa/client");
    let all = certs(&agent)?;
    let ours = all
        .iter()
        .find(|one| one["identity"] == id)
        .context("none")?;
    ensure!(
        ours["issuer"] == "O=first" && ours["serial"] != "01",
        "{ours}"
    );
    Ok(())
}

/// `FOLDER/{service_account}.EXTENSION`
fn template(path: &Path) -> String {
    let extension = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().unwrap_or(Path::new("/")).display();
    format!("{folder}/{{service_account}}.{extension}")
}
