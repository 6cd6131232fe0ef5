//! Certificates and trust that come as secrets: in the configuration, in files that are replaced
//! while they are used, on the aggregated stream, and from a discovery server on a Unix socket.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::ads::{Ads, CLUSTER, LISTENER, SECRET};
use mesh_testbed::{
    Ca, Connect, Curl, Issued, MeshAgent, Pod, Python, Server, Testbed, eventually, needs_root,
};
use serde_json::{Value, json};

use common::metric;
use common::tls::{self, by_secrets};

const PATIENCE: Duration = Duration::from_secs(20);

struct Pods {
    server: Server,
    raw: Server,
    client: Pod,
    web: Pod,
    testbed: Testbed,
}

impl Pods {
    fn start() -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, web) = (testbed.pod("client")?, testbed.pod("web")?);
        Ok(Self {
            server: Server::http(&web, "web", "v1", 0)?,
            raw: Server::tcp(&web, "raw", 0)?,
            client,
            web,
            testbed,
        })
    }

    fn workloads(&self) -> Value {
        tls::workloads(&[&self.client, &self.web])
    }

    fn clusters(&self, common: &Value) -> Vec<Value> {
        tls::clusters(self.server.addr4(), self.raw.addr4(), common).to_vec()
    }

    fn at(&self, port: u16) -> SocketAddr {
        tls::vip(&self.testbed, port)
    }

    /// The status, and who the server is told the client is.
    fn ask(&self) -> (u16, String) {
        let Ok(response) = Curl::get(&self.client, &format!("http://{}/", self.at(80))).send()
        else {
            return (0, String::new());
        };
        let told = response.echo().ok().and_then(|echo| {
            let told = echo.header("x-forwarded-client-cert")?;
            Some(told.split_once("URI=")?.1.to_owned())
        });
        (response.status, told.unwrap_or_default())
    }

    fn eventually_known_as(&self, id: &str) -> Result<()> {
        eventually(&format!("the client is known as {id}"), PATIENCE, || {
            self.ask() == (200, id.to_owned())
        })
    }
}

/// Contexts that find everything in `static_resources.secrets`.
fn fixed(pods: &Pods, secrets: &Value) -> Value {
    let none = Value::Null;
    let mut listeners = tls::outbound(&pods.testbed).to_vec();
    listeners.push(tls::inbound(&by_secrets("web", "bundle", &none)));
    json!({ "mesh": { "short_circuit": false }, "workloads": pods.workloads(), "static_resources": {
        "listeners": listeners,
        "clusters": pods.clusters(&by_secrets("client", "bundle", &none)),
        "secrets": secrets } })
}

fn pair(name: &str, issued: &Issued) -> Value {
    json!({ "name": name, "tls_certificate": {
        "certificate_chain": { "inline_string": issued.chain },
        "private_key": { "inline_string": issued.key } } })
}

fn roots(name: &str, pem: &str) -> Value {
    json!({ "name": name, "validation_context": { "trusted_ca": { "inline_string": pem } } })
}

/// Files as Kubernetes mounts them: behind a link that is swapped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("data").join(name)
    }

    fn put(&self, version: &str, files: &[(&str, &str)]) -> Result<()> {
        let folder = self.0.path().join(version);
        fs::create_dir(&folder)?;
        for (name, text) in files {
            fs::write(folder.join(name), text)?;
        }
        let new = self.0.path().join("new");
        std::os::unix::fs::symlink(version, &new)?;
        fs::rename(new, self.0.path().join("data")).context("cannot swap the link")
    }
}

#[test]
fn files_are_replaced_while_they_are_used_and_bad_ones_change_nothing() -> Result<()> {
    needs_root!(Ok(()));
    let pods = Pods::start()?;
    let (ca, other) = (Ca::new("one")?, Ca::new("other")?);
    let id = |n: u8| format!("spiffe://cluster.local/ns/shop/sa/client-{n}");
    let issue = |n: u8| ca.issue(&[&id(n)]);
    let (one, two) = (issue(1)?, issue(2)?);
    let web = ca.issue(&["spiffe://cluster.local/ns/shop/sa/web"])?;
    let files = Mounted::new()?;
    let both = format!("{}{}", ca.pem(), other.pem());
    let nobody = ca.revoke(&[])?;
    let put = |version: &str, client: &Issued, key: &str, roots: &str, crl: &str| {
        files.put(
            version,
            &[
                ("tls.crt", &client.chain),
                ("tls.key", key),
                ("roots.pem", roots),
                ("crl.pem", crl),
            ],
        )
    };
    put("1", &one, &one.key, ca.pem(), &nobody)?;
    let file = |name: &str| json!({ "filename": files.path(name) });
    let secrets = json!([
        { "name": "client", "tls_certificate": {
            "certificate_chain": file("tls.crt"), "private_key": file("tls.key") } },
        pair("web", &web),
        { "name": "bundle", "validation_context": {
            "trusted_ca": file("roots.pem"), "crl": file("crl.pem") } },
    ]);
    let agent = MeshAgent::start(&pods.testbed, &fixed(&pods, &secrets).to_string())?;
    pods.eventually_known_as(&id(1))?;
    put("2", &two, &two.key, ca.pem(), &nobody)?;
    pods.eventually_known_as(&id(2))?;
    // A certificate without its key, roots that are none.
    put("3", &one, &two.key, "not PEM", &nobody)?;
    eventually("both are refused", PATIENCE, || {
        metric(&agent, "mesh_certificate_file_failures_total").is_ok_and(|n| n >= 2)
    })?;
    assert_eq!(pods.ask(), (200, id(2)));
    let certs = agent.command("certs")?;
    ensure!(
        certs.contains("FAILING: ") && certs.contains("does not fit") && certs.contains("tls.crt"),
        "{certs}"
    );
    // A second root, and then only that: who stands is looked at again.
    put("4", &two, &two.key, &both, &nobody)?;
    eventually("the files are right again", PATIENCE, || {
        agent
            .command("certs")
            .is_ok_and(|certs| !certs.contains("FAILING"))
    })?;
    let mut standing = Connect::to(pods.at(700)).hold(&pods.client)?;
    ensure!(standing.check()?.alive == 1, "{:?}", standing.connections);
    put("5", &two, &two.key, other.pem(), &nobody)?;
    eventually("nobody is trusted any more", PATIENCE, || {
        pods.ask().0 == 503
    })?;
    eventually("a connection that stood is broken off", PATIENCE, || {
        standing.check().is_ok_and(|held| held.alive == 0)
    })?;
    ensure!(
        metric(&agent, "mesh_trust_withdrawn_total")? >= 1,
        "not counted"
    );
    ensure!(
        common::cluster_stat(&agent, "web", "ssl_fail_verify_error")? >= 1,
        "not counted as untrusted"
    );
    put("6", &two, &two.key, ca.pem(), &nobody)?;
    pods.eventually_known_as(&id(2))?;
    // Revoked, and replaced.
    put("7", &two, &two.key, ca.pem(), &ca.revoke(&[&two])?)?;
    eventually("the revoked certificate is refused", PATIENCE, || {
        pods.ask().0 == 503
    })?;
    eventually("the log says so", PATIENCE, || {
        let log = agent.log();
        log.contains("Revoked") && log.contains(&id(2))
    })?;
    put("8", &one, &one.key, ca.pem(), &ca.revoke(&[&two])?)?;
    pods.eventually_known_as(&id(1))
}

#[test]
fn trust_domains_are_told_apart_by_the_spiffe_validator() -> Result<()> {
    needs_root!(Ok(()));
    let pods = Pods::start()?;
    let (east, west) = (Ca::new("east")?, Ca::new("west")?);
    let web = west.issue(&["spiffe://west/ns/shop/sa/web"])?;
    let validator =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
    let domain = |name: &str, ca: &Ca| json!({ "name": name, "trust_bundle": { "inline_string": ca.pem() } });
    let bundle = json!({ "name": "bundle", "validation_context": { "custom_validator_config": {
        "name": "envoy.tls.cert_validator.spiffe",
        "typed_config": { "@type": validator,
            "trust_domains": [domain("east", &east), domain("west", &west)] } } } });
    let config = |client: &Issued| {
        fixed(
            &pods,
            &json!([pair("client", client), pair("web", &web), bundle]),
        )
        .to_string()
    };
    let client = east.issue(&["spiffe://east/ns/shop/sa/client"])?;
    let agent = MeshAgent::start(&pods.testbed, &config(&client))?;
    pods.eventually_known_as("spiffe://east/ns/shop/sa/client")?;
    let refused = [
        // Of one domain, signed by the other's authority.
        east.issue(&["spiffe://west/ns/shop/sa/client"])?,
        east.issue(&["spiffe://north/ns/shop/sa/client"])?,
        east.issue(&["spiffe://east/ns/a/sa/b", "spiffe://east/ns/a/sa/c"])?,
        east.issue(&["client.east"])?,
        east.issue(&[])?,
        east.issue_expired(&["spiffe://east/ns/shop/sa/client"])?,
        Ca::new("nobody")?.issue(&["spiffe://east/ns/shop/sa/client"])?,
    ];
    for (i, wrong) in refused.iter().enumerate() {
        let before = metric(&agent, "envoy_listener_ssl_fail_verify_error")?;
        common::apply(&agent, &config(wrong))?;
        eventually(&format!("certificate {i} is refused"), PATIENCE, || {
            pods.ask().0 == 503
        })?;
        ensure!(
            metric(&agent, "envoy_listener_ssl_fail_verify_error")? > before,
            "certificate {i} is refused for another reason:\n{}",
            agent.log()
        );
        common::apply(&agent, &config(&client))?;
        pods.eventually_known_as("spiffe://east/ns/shop/sa/client")?;
    }
    Ok(())
}

#[test]
fn secrets_of_the_aggregated_stream_are_waited_for_updated_and_never_half_right() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        aggregated(mode).with_context(|| format!("in {mode}"))?;
    }
    Ok(())
}

fn aggregated(mode: &str) -> Result<()> {
    let pods = Pods::start()?;
    let ca = Ca::new("one")?;
    let id = |n: u8| format!("spiffe://cluster.local/ns/shop/sa/client-{n}");
    let stream = json!({ "ads": {}, "resource_api_version": "V3" });
    let server = Ads::start()?;
    server.change(|state| {
        for listener in tls::outbound(&pods.testbed) {
            state.set(
                LISTENER,
                listener["name"].as_str().unwrap_or_default(),
                &listener,
            );
        }
        let inbound = tls::inbound(&by_secrets("web", "bundle", &stream));
        state.set(LISTENER, "virtualInbound", &inbound);
        for cluster in pods.clusters(&by_secrets("client", "bundle", &stream)) {
            state.set(
                CLUSTER,
                cluster["name"].as_str().unwrap_or_default(),
                &cluster,
            );
        }
        state.set(SECRET, "bundle", &roots("bundle", ca.pem()));
    });
    let issue = |n: u8| -> Result<Value> { Ok(pair("client", &ca.issue(&[&id(n)])?)) };
    let (one, two, three) = (issue(1)?, issue(2)?, issue(3)?);
    let web = pair(
        "web",
        &ca.issue(&["spiffe://cluster.local/ns/shop/sa/web"])?,
    );
    server.change(|state| {
        state.set(SECRET, "client", &one);
        state.set(SECRET, "web", &web);
    });
    let agent = MeshAgent::builder(&pods.testbed)?
        .arg("--xds")
        .arg(server.address())
        .arg("--xds-mode")
        .arg(mode)
        .start(
            &json!({ "mesh": { "short_circuit": false }, "workloads": pods.workloads() })
                .to_string(),
        )?;
    pods.eventually_known_as(&id(1))?;
    server.change(|state| state.set(SECRET, "client", &two));
    pods.eventually_known_as(&id(2))?;
    // One half of one, one half of another.
    let mut bad = one.clone();
    bad["tls_certificate"]["private_key"] = two["tls_certificate"]["private_key"].clone();
    server.change(|state| state.set(SECRET, "client", &bad));
    server.wait("the secret is refused", |asked| {
        let error = asked.error.as_deref().unwrap_or_default();
        asked.type_url == SECRET && error.contains("client") && error.contains("does not fit")
    })?;
    assert_eq!(pods.ask(), (200, id(2)));
    let dump = agent.get("/config_dump")?.body;
    ensure!(
        dump.contains("[redacted]") && !dump.contains("PRIVATE KEY"),
        "the dump shows keys, or no secrets"
    );
    // The cluster asks for another secret, which is late: what was before goes on.
    server.change(|state| {
        state.withhold(&format!("{SECRET}#late"));
        for cluster in pods.clusters(&by_secrets("late", "bundle", &stream)) {
            state.set(
                CLUSTER,
                cluster["name"].as_str().unwrap_or_default(),
                &cluster,
            );
        }
    });
    server.wait("the late secret is asked for", |asked| {
        asked.type_url == SECRET && asked.names.iter().any(|name| name == "late")
    })?;
    assert_eq!(pods.ask(), (200, id(2)));
    let mut late = three.clone();
    late["name"] = json!("late");
    server.change(|state| {
        state.set(SECRET, "late", &late);
        state.release(&format!("{SECRET}#late"));
    });
    pods.eventually_known_as(&id(3))?;
    // The server says that there is none any more: nobody is spoken to without.
    if mode == "delta" {
        server.change(|state| state.remove(SECRET, "late"));
        eventually("there is no certificate", PATIENCE, || pods.ask().0 == 503)?;
    }
    Ok(())
}

/// What a discovery server has for an identity.
fn served(version: u8, issued: &Issued) -> Value {
    json!({ "version": version.to_string(), "chain": issued.chain, "key": issued.key })
}

#[test]
fn a_discovery_server_on_a_unix_socket_gives_pods_their_identities() -> Result<()> {
    needs_root!(Ok(()));
    if Python::libraries().is_none() {
        mesh_testbed::skipped("needs Python's gRPC (MESH_PYTHON)");
        return Ok(());
    }
    let pods = Pods::start()?;
    let ca = Ca::new("one")?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("agent.sock");
    let mut server = Python::sds_server(&socket)?;
    let id = |name: &str| format!("spiffe://example.org/ns/shop/sa/{name}");
    let issue = |name: &str| ca.issue(&[&id(name)]);
    let mut secrets = json!({
        "spiffe://example.org": { "version": "1", "roots": ca.pem() },
        id("web"): served(1, &issue("web")?),
        "spiffe://example.org/extra": served(1, &ca.issue(&["spiffe://example.org/extra"])?),
    });
    server.serve_secrets(&secrets)?;
    let agent = MeshAgent::builder(&pods.testbed)?
        .arg("--sds")
        .arg(format!("unix:{}", socket.display()))
        .arg("--trust-domain")
        .arg("example.org")
        .start(&identities(&pods, &socket, None).to_string())?;
    // The client is not registered there yet.
    eventually("the refusal is told", PATIENCE, || {
        agent
            .command("certs")
            .is_ok_and(|certs| certs.contains("not authorized"))
    })?;
    ensure!(
        pods.ask().0 == 503,
        "somebody without a certificate is served"
    );
    secrets[id("client")] = served(1, &issue("client")?);
    server.serve_secrets(&secrets)?;
    pods.eventually_known_as(&id("client"))?;
    // Pushed, and used at once.
    let serial = |agent: &MeshAgent| -> Result<String> {
        let certs: Value = serde_json::from_str(&agent.get("/certs")?.body)?;
        let all = certs["certificates"].as_array().context("no list")?;
        let ours = all.iter().find(|one| one["identity"] == id("client"));
        Ok(ours.context("not there")?["serial"].to_string())
    };
    let before = serial(&agent)?;
    secrets[id("client")] = served(2, &issue("client")?);
    server.serve_secrets(&secrets)?;
    eventually("the new certificate is taken", PATIENCE, || {
        serial(&agent).is_ok_and(|now| now != before)
    })?;
    assert_eq!(pods.ask(), (200, id("client")));
    // One that is of somebody else, and one that is broken: the last good one stays.
    let before = serial(&agent)?;
    secrets[id("client")] = served(3, &issue("other")?);
    server.serve_secrets(&secrets)?;
    eventually("another's certificate is not taken", PATIENCE, || {
        agent
            .command("certs")
            .is_ok_and(|certs| certs.contains("it is not of"))
    })?;
    let mut broken = served(4, &issue("client")?);
    broken["key"] = json!("not a key");
    secrets[id("client")] = broken;
    server.serve_secrets(&secrets)?;
    eventually("the broken one is refused", PATIENCE, || {
        let asked = server.serve_secrets(&secrets).unwrap_or_default();
        asked.iter().any(|one| {
            let error = one["error"].as_str().unwrap_or_default();
            error.contains("private key") && one["version"] == "3"
        })
    })?;
    assert_eq!(serial(&agent)?, before);
    assert_eq!(pods.ask(), (200, id("client")));
    // A secret of a context, from the same server by the name of a cluster.
    let extra = identities(&pods, &socket, Some("spiffe://example.org/extra"));
    common::apply(&agent, &extra.to_string())?;
    pods.eventually_known_as("spiffe://example.org/extra")?;
    let certs = agent.command("certs")?;
    ensure!(certs.contains("sds:cluster spire"), "{certs}");
    // The server ends: what it delivered stays in use.
    drop(server);
    assert_eq!(pods.ask(), (200, "spiffe://example.org/extra".to_owned()));
    Ok(())
}

/// Contexts as istiod writes them; the client's certificate may be another secret.
fn identities(pods: &Pods, socket: &Path, client: Option<&str>) -> Value {
    let none = Value::Null;
    let own = by_secrets("default", "ROOTCA", &none);
    let mut common = own.clone();
    if let Some(name) = client {
        let source = json!({ "resource_api_version": "V3", "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "spire" } }] } });
        common = by_secrets(name, "spiffe://example.org", &source);
    }
    let mut listeners = tls::outbound(&pods.testbed).to_vec();
    listeners.push(tls::inbound(&own));
    let mut clusters = pods.clusters(&common);
    clusters.push(
        json!({ "name": "spire", "load_assignment": { "cluster_name": "spire",
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
            "pipe": { "path": socket } } } }] }] } }),
    );
    json!({ "mesh": { "short_circuit": false }, "workloads": pods.workloads(), "static_resources": {
        "listeners": listeners, "clusters": clusters } })
}
