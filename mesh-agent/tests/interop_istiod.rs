//! Configuration from Istio's own discovery server, from files: routing, subsets, egress, scoping,
//! and a control plane that dies and comes back under load.

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_testbed::{Curl, Istiod, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::metric;
use common::traffic::Traffic;

const PATIENCE: Duration = Duration::from_secs(20);
const REVIEWS: &str = "reviews.default.svc.cluster.local";

/// `client` and `other` call `reviews`, which has two versions in pods of the mesh, and may call
/// `external`, which has none.
struct Scene {
    istiod: Istiod,
    agent: MeshAgent,
    web: SocketAddr,
    tcp: SocketAddr,
    v1: Server,
    v2: Server,
    outside: Server,
    client: Pod,
    other: Pod,
    _pods: Vec<Pod>,
    _ca: tempfile::TempDir,
    _testbed: Testbed,
}

/// An Istio resource of the namespace `default`.
fn resource(api: &str, kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": format!("{api}.istio.io/v1"), "kind": kind,
        "metadata": { "name": name, "namespace": "default" }, "spec": spec })
}

fn networking(kind: &str, name: &str, spec: &Value) -> Value {
    resource("networking", kind, name, spec)
}

/// A service of the mesh: HTTP on one port, plain TCP on another.
fn reviews(web: SocketAddr, tcp: SocketAddr, v1: SocketAddr, v2: SocketAddr) -> Value {
    let endpoint = |at: SocketAddr, version: &str| {
        json!({ "address": at.ip(), "ports": { "http": at.port(), "tcp": at.port() },
            "labels": { "app": "reviews", "version": version } })
    };
    networking(
        "ServiceEntry",
        "reviews",
        &json!({ "hosts": [REVIEWS], "addresses": [web.ip()],
            "location": "MESH_INTERNAL", "resolution": "STATIC",
            "ports": [
                { "number": web.port(), "name": "http", "protocol": "HTTP" },
                { "number": tcp.port(), "name": "tcp", "protocol": "TCP" },
            ],
            "endpoints": [endpoint(v1, "v1"), endpoint(v2, "v2")] }),
    )
}

fn subsets() -> Value {
    networking(
        "DestinationRule",
        "reviews",
        &json!({ "host": REVIEWS,
            "trafficPolicy": { "connectionPool": { "http": { "http2MaxRequests": 1000 } },
                "outlierDetection": { "consecutive5xxErrors": 50, "interval": "1s" } },
            "subsets": [
                { "name": "v1", "labels": { "version": "v1" } },
                { "name": "v2", "labels": { "version": "v2" } },
            ] }),
    )
}

/// A canary by weight, and `end-user: jason` always to the second version.
fn canary(one: u32, two: u32) -> Value {
    let to = |subset: &str| json!({ "host": REVIEWS, "subset": subset });
    networking(
        "VirtualService",
        "reviews",
        &json!({ "hosts": [REVIEWS], "http": [
            { "match": [{ "headers": { "end-user": { "exact": "jason" } } }],
                "route": [{ "destination": to("v2") }] },
            { "route": [
                { "destination": to("v1"), "weight": one },
                { "destination": to("v2"), "weight": two },
            ] },
        ] }),
    )
}

impl Scene {
    fn start(mode: &str, mesh: &Value) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, other) = (testbed.pod("client")?, testbed.pod("other")?);
        let (one, two) = (testbed.pod("reviews-v1")?, testbed.pod("reviews-v2")?);
        let away = testbed.pod("outside")?;
        let v1 = Server::http(&one, "v1", "v1", 0)?;
        let v2 = Server::http(&two, "v2", "v2", 0)?;
        let outside = Server::http(&away, "outside", "v1", 0)?;
        let web = SocketAddr::new(testbed.vip4(1).into(), 80);
        let tcp = SocketAddr::new(testbed.vip4(1).into(), 700);
        let istiod = Istiod::start(
            testbed.pod("istiod")?,
            mesh,
            &[("reviews", &[reviews(web, tcp, v1.addr4(), v2.addr4())])],
        )?;
        let workload = |pod: &Pod, account: &str, labels: Value| {
            json!({ "name": pod.name(), "namespace": "default", "service_account": account,
                "labels": labels, "netns": pod.netns_path() })
        };
        let config = json!({ "workloads": [
            workload(&client, "client", json!({ "app": "client" })),
            workload(&other, "other", json!({ "app": "other" })),
            workload(&one, "reviews", json!({ "app": "reviews", "version": "v1" })),
        ] });
        let ca = tempfile::tempdir()?;
        let agent = MeshAgent::builder(&testbed)?
            .arg("--xds")
            .arg(istiod.xds())
            .arg("--xds-mode")
            .arg(mode)
            .arg("--xds-scope")
            .arg("workload")
            .arg("--ca")
            .arg(format!("dev:{}", ca.path().display()))
            .start(&config.to_string())?;
        let scene = Self {
            istiod,
            agent,
            web,
            tcp,
            v1,
            v2,
            outside,
            client,
            other,
            _pods: vec![one, two, away],
            _ca: ca,
            _testbed: testbed,
        };
        eventually("both versions answer", PATIENCE, || {
            scene.answered_by(&["v1", "v2"])
        })?;
        Ok(scene)
    }

    /// Whether these, and no others, answer the client.
    fn answered_by(&self, names: &[&str]) -> bool {
        self.spread(&self.client, 12, &[])
            .is_ok_and(|seen| seen.keys().eq(names))
    }

    fn eventually_answered_by(&self, names: &[&str]) -> Result<()> {
        eventually(&format!("{names:?} answer"), PATIENCE, || {
            self.answered_by(names)
        })
    }

    /// Nothing istiod sent may have been refused.
    fn nothing_was_refused(&self) -> Result<()> {
        for kind in ["CDS", "EDS", "LDS", "RDS"] {
            let refused = metric(
                &self.agent,
                &format!("mesh_xds_rejected_total{{type=\"{kind}\"}}"),
            )?;
            ensure!(
                refused == 0,
                "{kind}: {refused} responses were refused:\n{}",
                self.agent.log()
            );
        }
        Ok(())
    }

    /// Who answers how many requests to `reviews`.
    fn spread(
        &self,
        from: &Pod,
        requests: usize,
        headers: &[&str],
    ) -> Result<BTreeMap<String, usize>> {
        let url = format!("http://{}/", self.web);
        let mut seen = BTreeMap::new();
        for _ in 0..requests {
            let mut curl = Curl::get(from, &url);
            for header in headers {
                curl = curl.header(header);
            }
            let response = curl.send()?;
            let who = match response.echo() {
                Ok(echo) => echo.name,
                Err(_) => format!("status {}", response.status),
            };
            *seen.entry(who).or_insert(0) += 1;
        }
        Ok(seen)
    }
}

/// Runs in both variants.
fn both(test: impl Fn(&str) -> Result<()>) -> Result<()> {
    if Istiod::program().is_none() {
        mesh_testbed::skipped("needs istiod (MESH_ISTIOD)");
        return Ok(());
    }
    for mode in ["delta", "sotw"] {
        test(mode).with_context(|| format!("in {mode}"))?;
    }
    Ok(())
}

fn mesh() -> Value {
    json!({ "trustDomain": "cluster.local", "rootNamespace": "istio-system" })
}

#[test]
fn virtual_services_and_subsets_route_and_change_under_load() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode, &mesh())?;
        let host = scene.web.ip().to_string();
        let traffic = Traffic::of_host(&scene.client, scene.web, &host)?;
        scene.istiod.put("subsets", &[subsets()])?;
        scene.istiod.put("routes", &[canary(100, 0)])?;
        scene.eventually_answered_by(&["v1"])?;
        let jason = scene.spread(&scene.client, 10, &["end-user: jason"])?;
        ensure!(
            jason.get("v2") == Some(&10),
            "jason is answered by {jason:?}"
        );
        scene.istiod.put("routes", &[canary(0, 100)])?;
        scene.eventually_answered_by(&["v2"])?;
        scene.istiod.put("routes", &[canary(50, 50)])?;
        scene.eventually_answered_by(&["v1", "v2"])?;
        // One endpoint less.
        let (v1, v2) = (scene.v1.addr4(), scene.v2.addr4());
        scene
            .istiod
            .put("reviews", &[reviews(scene.web, scene.tcp, v1, v1)])?;
        scene.istiod.remove("routes")?;
        scene.eventually_answered_by(&["v1"])?;
        scene
            .istiod
            .put("reviews", &[reviews(scene.web, scene.tcp, v1, v2)])?;
        scene.eventually_answered_by(&["v1", "v2"])?;
        traffic.end()?;
        scene.nothing_was_refused()
    })
}

#[test]
fn a_control_plane_that_dies_and_comes_back_loses_no_request() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let mut scene = Scene::start(mode, &mesh())?;
        scene.istiod.put("subsets", &[subsets()])?;
        scene.istiod.put("routes", &[canary(100, 0)])?;
        scene.eventually_answered_by(&["v1"])?;
        let host = scene.web.ip().to_string();
        let traffic = Traffic::of_host(&scene.client, scene.web, &host)?;
        for (one, two, name) in [(0, 100, "v2"), (100, 0, "v1")] {
            scene.istiod.stop();
            eventually("the streams are gone", PATIENCE, || {
                metric(&scene.agent, "mesh_xds_streams_connected").is_ok_and(|n| n == 0)
            })?;
            scene.istiod.put("routes", &[canary(one, two)])?;
            ensure!(!scene.answered_by(&[name]), "{name} answers without a word");
            scene.istiod.resume()?;
            scene.eventually_answered_by(&[name])?;
        }
        traffic.end()?;
        scene.nothing_was_refused()
    })
}

#[test]
fn tcp_services_run_in_the_kernel_and_inbound_traffic_passes_the_agent() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode, &mesh())?;
        let status = scene.agent.command("status")?;
        let listener = format!("{}_{}", scene.tcp.ip(), scene.tcp.port());
        ensure!(
            status
                .lines()
                .any(|line| line.starts_with(&listener) && line.contains("direct")),
            "{listener} does not run in the kernel:\n{status}"
        );
        let mut seen = BTreeMap::new();
        for _ in 0..20 {
            let url = format!("http://{}/", scene.tcp);
            let echo = Curl::get(&scene.client, &url).send()?.echo()?;
            *seen.entry(echo.name).or_insert(0) += 1;
        }
        ensure!(seen.len() == 2, "the kernel balances to {seen:?}");
        // v1's pod is enrolled: Istio's inbound listener serves it, and the application sees
        // Istio's address for that. v2's is not: it sees the client.
        let client = std::net::IpAddr::from(scene.client.ip4());
        let direct = |at: SocketAddr| -> Result<std::net::IpAddr> {
            let response = Curl::get(&scene.client, &format!("http://{at}/")).send()?;
            Ok(response.echo()?.peer.ip())
        };
        assert_eq!(direct(scene.v1.addr4())?.to_string(), "127.0.0.6");
        assert_eq!(direct(scene.v2.addr4())?, client);
        scene.nothing_was_refused()
    })
}

#[test]
fn what_is_not_registered_is_refused_until_it_is() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let mut mesh = mesh();
        mesh["outboundTrafficPolicy"] = json!({ "mode": "REGISTRY_ONLY" });
        let scene = Scene::start(mode, &mesh)?;
        let outside = scene.outside.addr4();
        let reached = || {
            Curl::get(&scene.client, &format!("http://{outside}/"))
                .send()
                .is_ok_and(|response| response.status == 200)
        };
        ensure!(!reached(), "an unregistered address is reached");
        scene.istiod.put(
            "external",
            &[networking(
                "ServiceEntry",
                "external",
                &json!({ "hosts": ["external.example.com"], "addresses": [outside.ip()],
                    "location": "MESH_EXTERNAL", "resolution": "STATIC",
                    "ports": [{ "number": outside.port(), "name": "tcp", "protocol": "TCP" }],
                    "endpoints": [{ "address": outside.ip() }] }),
            )],
        )?;
        eventually("the registered address is reached", PATIENCE, reached)?;
        scene.istiod.remove("external")?;
        eventually("it is refused again", PATIENCE, || !reached())?;
        scene.nothing_was_refused()
    })
}

#[test]
fn a_sidecar_resource_limits_what_one_of_two_pods_sees() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let mut mesh = mesh();
        mesh["outboundTrafficPolicy"] = json!({ "mode": "REGISTRY_ONLY" });
        let scene = Scene::start(mode, &mesh)?;
        let served = |pod: &Pod| {
            scene
                .spread(pod, 3, &[])
                .is_ok_and(|seen| seen.keys().all(|name| name == "v1" || name == "v2"))
        };
        eventually("both are served", PATIENCE, || {
            served(&scene.client) && served(&scene.other)
        })?;
        scene.istiod.put(
            "sidecar",
            &[networking(
                "Sidecar",
                "nothing",
                &json!({ "workloadSelector": { "labels": { "app": "other" } },
                    "egress": [{ "hosts": ["istio-system/*"] }] }),
            )],
        )?;
        eventually("one is not", PATIENCE, || !served(&scene.other))?;
        ensure!(served(&scene.client), "the other pod lost its service, too");
        scene.istiod.remove("sidecar")?;
        eventually("both are again", PATIENCE, || {
            served(&scene.client) && served(&scene.other)
        })?;
        scene.nothing_was_refused()
    })
}

/// `reviews` of version 1 only, whose pod is enrolled and says that it speaks mutual TLS.
fn meshed(scene: &Scene) -> Value {
    let mut entry = reviews(scene.web, scene.tcp, scene.v1.addr4(), scene.v1.addr4());
    let mut endpoint = entry["spec"]["endpoints"][0].clone();
    endpoint["labels"]["security.istio.io/tlsMode"] = json!("istio");
    endpoint["serviceAccount"] = json!("reviews");
    endpoint["ports"] = json!({ "http": scene.v1.port() });
    entry["spec"]["endpoints"] = json!([endpoint]);
    // One port of the pod is one protocol: of two, istiod would take either.
    if let Some(ports) = entry["spec"]["ports"].as_array_mut() {
        ports.truncate(1);
    }
    entry
}

#[test]
fn peer_authentication_is_kept_strict_permissive_and_strict_again() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode, &mesh())?;
        let plain = Curl::get(&scene.client, &format!("http://{}/", scene.v2.addr4())).send()?;
        ensure!(plain.status == 200, "the pod outside the mesh: {plain:?}");
        scene.istiod.put("reviews", &[meshed(&scene)])?;
        let told = |scene: &Scene| -> Option<String> {
            let url = format!("http://{}/", scene.web);
            let echo = Curl::get(&scene.client, &url).send().ok()?.echo().ok()?;
            Some(echo.header("x-forwarded-client-cert")?.to_owned())
        };
        eventually("the client is known by its certificate", PATIENCE, || {
            told(&scene).is_some_and(|told| {
                told.contains("URI=spiffe://cluster.local/ns/default/sa/client")
                    && told.contains("By=spiffe://cluster.local/ns/default/sa/reviews")
            })
        })?;
        let host = scene.web.ip().to_string();
        let traffic = Traffic::of_host(&scene.client, scene.web, &host)?;
        // Somebody without a certificate: the outsider's own namespace is in no mesh.
        let outsider = || -> Result<u16> {
            let url = format!("http://{}/", scene.v1.addr4());
            Ok(Curl::get(&scene._pods[2], &url).send()?.status)
        };
        ensure!(outsider()? == 200, "PERMISSIVE refuses plaintext");
        for (mode, status) in [("STRICT", 0), ("PERMISSIVE", 200), ("STRICT", 0)] {
            scene.istiod.put(
                "peers",
                &[resource(
                    "security",
                    "PeerAuthentication",
                    "default",
                    &json!({ "mtls": { "mode": mode } }),
                )],
            )?;
            eventually(&format!("{mode} holds"), PATIENCE, || {
                outsider().is_ok_and(|now| now == status)
            })?;
        }
        traffic.end()?;
        scene.nothing_was_refused()
    })
}

#[test]
fn authorization_policies_by_principal_hold_over_mutual_tls() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode, &mesh())?;
        scene.istiod.put("reviews", &[meshed(&scene)])?;
        let status = |pod: &Pod| {
            let response = Curl::get(pod, &format!("http://{}/", scene.web)).send();
            response.map_or(0, |response| response.status)
        };
        eventually("both are served", PATIENCE, || {
            status(&scene.client) == 200 && status(&scene.other) == 200
        })?;
        let policy = |account: &str| {
            resource(
                "security",
                "AuthorizationPolicy",
                "reviews",
                &json!({ "selector": { "matchLabels": { "app": "reviews" } }, "action": "ALLOW",
                    "rules": [{ "from": [{ "source": { "principals":
                        [format!("cluster.local/ns/default/sa/{account}")] } }],
                        "to": [{ "operation": { "methods": ["GET"] } }] }] }),
            )
        };
        for (account, client, other) in [("client", 200, 403), ("other", 403, 200)] {
            scene.istiod.put("policy", &[policy(account)])?;
            eventually(&format!("only {account} is served"), PATIENCE, || {
                status(&scene.client) == client && status(&scene.other) == other
            })?;
        }
        scene.istiod.remove("policy")?;
        eventually("both are served again", PATIENCE, || {
            status(&scene.client) == 200 && status(&scene.other) == 200
        })?;
        scene.nothing_was_refused()
    })
}

#[test]
fn request_authentication_and_policies_by_claim_hold() -> Result<()> {
    needs_root!(Ok(()));
    both(|mode| {
        let scene = Scene::start(mode, &mesh())?;
        scene.istiod.put("reviews", &[meshed(&scene)])?;
        let signer = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let point = signer.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k",
            "x": part(&point[1..33]), "y": part(&point[33..]) }] });
        let token = |subject: &str, groups: Value| -> Result<String> {
            let header = json!({ "alg": "ES256", "kid": "k" }).to_string();
            let claims = json!({ "iss": "testing", "sub": subject, "groups": groups }).to_string();
            let signed = format!("{}.{}", part(header.as_bytes()), part(claims.as_bytes()));
            let signature = signer.sign(&SystemRandom::new(), signed.as_bytes())?;
            Ok(format!("{signed}.{}", part(signature.as_ref())))
        };
        let selector = json!({ "matchLabels": { "app": "reviews" } });
        let authentication = resource(
            "security",
            "RequestAuthentication",
            "reviews",
            &json!({ "selector": selector, "jwtRules": [{ "issuer": "testing",
                "jwks": keys.to_string(), "forwardOriginalToken": true }] }),
        );
        let policy = resource(
            "security",
            "AuthorizationPolicy",
            "reviews",
            &json!({ "selector": selector, "action": "ALLOW", "rules": [
                { "from": [{ "source": { "requestPrincipals": ["testing/alice"] } }] },
                { "when": [{ "key": "request.auth.claims[groups]", "values": ["admins"] }] } ] }),
        );
        let alice = token("alice", json!(["users"]))?;
        let (bob, admin) = (
            token("bob", json!("users"))?,
            token("carol", json!(["x", "admins"]))?,
        );
        let forged = format!("{}x", &alice[..alice.len() - 2]);
        let status = |token: &str| {
            let mut curl = Curl::get(&scene.client, &format!("http://{}/", scene.web));
            let header = format!("authorization: Bearer {token}");
            if !token.is_empty() {
                curl = curl.header(&header);
            }
            curl.send().map_or(0, |response| response.status)
        };
        let seen = || {
            [
                status(""),
                status(&alice),
                status(&bob),
                status(&admin),
                status(&forged),
            ]
        };
        eventually("all are served", PATIENCE, || seen() == [200; 5])?;
        scene
            .istiod
            .put("tokens", std::slice::from_ref(&authentication))?;
        eventually("a forged token is refused", PATIENCE, || {
            seen() == [200, 200, 200, 200, 401]
        })?;
        scene.istiod.put("tokens", &[authentication, policy])?;
        eventually(
            "only who is named or of the group is served",
            PATIENCE,
            || seen() == [403, 200, 403, 200, 401],
        )?;
        scene.nothing_was_refused()
    })
}
