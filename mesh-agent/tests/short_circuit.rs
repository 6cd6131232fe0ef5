//! Pods of one node speak to each other in one pass: with the decisions, and in front of the same
//! application, as over mutual TLS between nodes.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::http1::RawResponse;
use mesh_testbed::wire::Echo;
use mesh_testbed::{MeshAgent, Pod, Server, Talk, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::metric;

const PATIENCE: Duration = Duration::from_secs(20);
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";
/// A host of the service as Istio names clusters.
const CLUSTER: &str = "outbound|80||web.shop.svc.cluster.local";

/// What istiod sends for both sides.
fn context(side: &str, alpn: &[&str]) -> Value {
    let mut context = json!({
        "@type": format!("{TLS}.{side}TlsContext"),
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{ "name": "default" }],
            "combined_validation_context": {
                "default_validation_context": { "match_subject_alt_names": [{ "prefix": "spiffe://" }] },
                "validation_context_sds_secret_config": { "name": "ROOTCA" },
            },
            "alpn_protocols": alpn,
        },
    });
    if side == "Downstream" {
        context["require_client_certificate"] = json!(true);
    } else {
        context["sni"] = json!("outbound_.80_._.web.shop.svc.cluster.local");
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

/// Policies of every kind, each a permission and a principal.
fn policies() -> Vec<Value> {
    let named = |matcher: Value| json!({ "authenticated": { "principal_name": matcher } });
    let principals = [
        json!({ "any": true }),
        json!({ "authenticated": {} }),
        named(json!({ "exact": "spiffe://cluster.local/ns/shop/sa/client" })),
        named(json!({ "prefix": "spiffe://cluster.local/ns/shop/" })),
        named(json!({ "safe_regex": { "regex": ".*/sa/(other|client)" } })),
        json!({ "not_id": named(json!({ "suffix": "/sa/other" })) }),
        json!({ "direct_remote_ip": { "address_prefix": "0.0.0.0", "prefix_len": 0 } }),
        json!({ "and_ids": { "ids": [named(json!({ "contains": "shop" })),
            { "header": { "name": "x-role", "string_match": { "exact": "admin" } } }] } }),
    ];
    let permissions = [
        json!({ "any": true }),
        json!({ "header": { "name": ":method", "string_match": { "exact": "POST" } } }),
        json!({ "url_path": { "path": { "suffix": "/open" } } }),
        json!({ "requested_server_name": { "prefix": "outbound_" } }),
    ];
    let mut all = Vec::new();
    for action in ["ALLOW", "DENY"] {
        for principal in &principals {
            for permission in &permissions {
                all.push(json!({ "action": action, "policies": { "p": {
                    "permissions": [permission], "principals": [principal] } } }));
            }
        }
    }
    all
}

fn hcm(cluster: &str, routes: Value, filters: Vec<Value>) -> Value {
    let mut filters = filters;
    filters.push(json!({ "name": "envoy.filters.http.router",
        "typed_config": { "@type": format!("{HTTP}.router.v3.Router") } }));
    let mut config = json!({
        "@type": format!("{NETWORK}.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": cluster,
        "route_config": { "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] },
        "http_filters": filters,
    });
    if cluster == "inbound" {
        config["forward_client_cert_details"] = json!("APPEND_FORWARD");
        config["set_current_client_cert_details"] =
            json!({ "subject": true, "dns": true, "uri": true });
        config["server_name"] = json!("istio-envoy");
        config["server_header_transformation"] = json!("PASS_THROUGH");
    }
    json!({ "name": "http", "typed_config": config })
}

fn tcp(cluster: &str) -> Value {
    json!({ "name": "tcp", "typed_config": {
        "@type": format!("{NETWORK}.tcp_proxy.v3.TcpProxy"), "stat_prefix": "t", "cluster": cluster } })
}

fn socket(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip(), "port_value": at.port() } })
}

struct Scene {
    agent: MeshAgent,
    web: SocketAddr,
    raw: SocketAddr,
    server: Server,
    tcp_server: Server,
    pod: Pod,
    /// With their namespaces and service accounts.
    callers: Vec<(Pod, &'static str, &'static str)>,
    _ca: tempfile::TempDir,
    _testbed: Testbed,
}

impl Scene {
    fn start() -> Result<Self> {
        let testbed = Testbed::new()?;
        let pod = testbed.pod("web")?;
        let server = Server::http(&pod, "web", "v1", 0)?;
        let tcp_server = Server::tcp(&pod, "raw", 0)?;
        let callers = vec![
            (testbed.pod("client")?, "shop", "client"),
            (testbed.pod("other")?, "shop", "other"),
            (testbed.pod("far")?, "elsewhere", "client"),
        ];
        let ca = tempfile::tempdir()?;
        let vip = |port| SocketAddr::new(testbed.vip4(1).into(), port);
        let (web, raw) = (vip(80), vip(700));
        let config = config(web, raw, &server, &tcp_server, &pod, &callers, true, false);
        let agent = MeshAgent::builder(&testbed)?
            .arg("--ca")
            .arg(format!("dev:{}", ca.path().join("ca").display()))
            .start(&config.to_string())?;
        Ok(Self {
            agent,
            web,
            raw,
            server,
            tcp_server,
            pod,
            callers,
            _ca: ca,
            _testbed: testbed,
        })
    }

    fn apply(&self, short: bool, denied: bool) -> Result<()> {
        let config = config(
            self.web,
            self.raw,
            &self.server,
            &self.tcp_server,
            &self.pod,
            &self.callers,
            short,
            denied,
        );
        common::apply(&self.agent, &config.to_string())
    }

    fn short_circuits(&self) -> Result<u64> {
        metric(&self.agent, "mesh_short_circuits_total")
    }
}

#[expect(clippy::too_many_arguments, reason = "a scene, piece by piece")]
fn config(
    web: SocketAddr,
    raw: SocketAddr,
    server: &Server,
    tcp_server: &Server,
    pod: &Pod,
    callers: &[(Pod, &str, &str)],
    short: bool,
    denied: bool,
) -> Value {
    let cluster = |name: &str, at: SocketAddr, alpn: &[&str]| {
        json!({ "name": name, "connect_timeout": "2s",
            "transport_socket": context("Upstream", alpn),
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": socket(at) } }] }] } })
    };
    let rbac = |rules: &Value| {
        json!({ "envoy.filters.http.rbac": {
        "@type": format!("{HTTP}.rbac.v3.RBACPerRoute"), "rbac": { "rules": rules } } })
    };
    let mut routes: Vec<Value> = policies()
        .iter()
        .enumerate()
        .map(|(i, rules)| {
            json!({ "match": { "prefix": format!("/p{i}/") }, "route": { "cluster": "inbound" },
                "typed_per_filter_config": rbac(rules) })
        })
        .collect();
    routes.push(json!({ "match": { "prefix": "/" }, "route": { "cluster": "inbound" } }));
    let filter = json!({ "name": "envoy.filters.http.rbac",
        "typed_config": { "@type": format!("{HTTP}.rbac.v3.RBAC") } });
    let only_shop = json!({ "name": "rbac", "typed_config": {
        "@type": format!("{NETWORK}.rbac.v3.RBAC"), "stat_prefix": "r",
        "rules": { "action": "ALLOW", "policies": { "shop": {
            "permissions": [{ "any": true }],
            "principals": [{ "authenticated": { "principal_name": { "prefix": "spiffe://cluster.local/ns/shop/" } } }],
        } } } } });
    let nobody = json!({ "name": "rbac", "typed_config": {
        "@type": format!("{NETWORK}.rbac.v3.RBAC"), "stat_prefix": "r",
        "rules": { "action": "DENY", "policies": { "all": {
            "permissions": [{ "any": true }], "principals": [{ "authenticated": {} }] } } } } });
    let mut http_filters = vec![hcm("inbound", json!(routes), vec![filter])];
    let mut tcp_filters = vec![only_shop, tcp("inbound")];
    if denied {
        http_filters.insert(0, nobody.clone());
        tcp_filters.insert(0, nobody);
    }
    let mut workloads = vec![
        json!({ "name": "web", "namespace": "shop", "service_account": "web",
        "labels": { "app": "web" }, "netns": pod.netns_path() }),
    ];
    for (caller, namespace, account) in callers {
        workloads.push(json!({ "name": caller.name(), "namespace": namespace,
            "service_account": account, "netns": caller.netns_path() }));
    }
    let to_web = json!([{ "match": { "prefix": "/" }, "route": { "cluster": CLUSTER } }]);
    json!({
        "mesh": { "short_circuit": short },
        "workloads": workloads,
        "static_resources": {
            "listeners": [
                { "name": "web", "traffic_direction": "OUTBOUND", "address": socket(web),
                    "filter_chains": [{ "filters": [hcm("outbound", to_web, Vec::new())] }] },
                { "name": "raw", "traffic_direction": "OUTBOUND", "address": socket(raw),
                    "filter_chains": [{ "filters": [tcp("raw")] }] },
                { "name": "virtualInbound", "traffic_direction": "INBOUND",
                    "address": socket(([0, 0, 0, 0], 15006).into()),
                    "listener_filters": [{ "name": "tls", "typed_config": { "@type":
                        "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }],
                    "filter_chains": [
                        { "name": "http",
                            "filter_chain_match": { "transport_protocol": "tls",
                                "application_protocols": ["istio-http/1.1", "istio-h2"] },
                            "filters": http_filters,
                            "transport_socket": context("Downstream", &["h2", "http/1.1"]) },
                        { "name": "tcp",
                            "filter_chain_match": { "transport_protocol": "tls",
                                "application_protocols": ["istio"] },
                            "filters": tcp_filters,
                            "transport_socket": context("Downstream", &["h2"]) },
                    ] },
            ],
            "clusters": [
                cluster(CLUSTER, server.addr4(), &["istio-http/1.1", "istio", "http/1.1"]),
                cluster("raw", tcp_server.addr4(), &["istio"]),
                { "name": "inbound", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
                    "upstream_bind_config": { "source_address": { "address": "127.0.0.6", "port_value": 0 } },
                    "metadata": { "filter_metadata": { "istio": { "services": [
                        { "host": "web.shop.svc.cluster.local", "name": "web", "namespace": "shop" }] } } } },
            ],
        },
    })
}

/// What a caller is told, and what the application is.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    asked: String,
    status: u16,
    body: String,
    headers: Vec<(String, String)>,
}

/// Without what differs by nature.
fn told(asked: String, response: &RawResponse) -> Told {
    let lasting = |headers: &[(String, String)]| {
        let mut lasting: Vec<(String, String)> = headers
            .iter()
            .filter(|(name, _)| {
                !matches!(
                    name.as_str(),
                    "date" | "content-length" | "x-request-id" | "x-envoy-upstream-service-time"
                )
            })
            .cloned()
            .collect();
        lasting.sort();
        lasting
    };
    let body = match serde_json::from_slice::<Echo>(&response.body) {
        Ok(echo) => format!(
            "{} {} {} {:?} from {} at {} {:?}",
            echo.method,
            echo.path,
            echo.protocol,
            echo.authority,
            echo.peer.ip(),
            echo.local,
            lasting(&echo.headers)
        ),
        Err(_) => String::from_utf8_lossy(&response.body).into_owned(),
    };
    Told {
        asked,
        status: response.status,
        body,
        headers: lasting(&response.headers),
    }
}

fn ask_all(scene: &Scene) -> Result<Vec<Told>> {
    let mut all = Vec::new();
    for (pod, namespace, account) in &scene.callers {
        let mut talk = Talk::start(pod)?;
        for i in 0..policies().len() {
            for (line, more) in [
                (format!("GET /p{i}/x"), ""),
                (format!("GET /p{i}/open"), "x-role: admin\r\n"),
                (
                    format!("POST /p{i}/x"),
                    "content-length: 0\r\nx-forwarded-client-cert: forged\r\n",
                ),
            ] {
                let request =
                    format!("{line} HTTP/1.1\r\nHost: web.shop\r\nUser-Agent: t\r\n{more}\r\n");
                let answers = talk.ask(scene.web, request.as_bytes())?;
                let asked = format!("{namespace}/{account} {line}");
                let response = answers
                    .responses
                    .first()
                    .with_context(|| format!("no response to {asked}: {answers:?}"))?;
                all.push(told(asked, response));
            }
        }
    }
    Ok(all)
}

fn ready(scene: &Scene) -> Result<()> {
    eventually("every caller has a certificate", PATIENCE, || {
        scene.callers.iter().all(|(pod, ..)| {
            let mut talk = match Talk::start(pod) {
                Ok(talk) => talk,
                Err(_) => return false,
            };
            let answers = talk.ask(scene.web, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            answers.is_ok_and(|answers| answers.responses.first().is_some_and(|r| r.status == 200))
        })
    })
}

#[test]
fn decisions_and_what_the_application_sees_are_those_of_the_long_way() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    ready(&scene)?;
    let before = scene.short_circuits()?;
    let short = ask_all(&scene)?;
    let taken = scene.short_circuits()? - before;
    ensure!(
        taken == short.len() as u64,
        "{taken} of {} requests took the short way",
        short.len()
    );
    scene.apply(false, false)?;
    let before = scene.short_circuits()?;
    let long = ask_all(&scene)?;
    assert_eq!(
        scene.short_circuits()?,
        before,
        "the short way was taken although it is off"
    );
    for (short, long) in short.iter().zip(&long) {
        assert_eq!(short, long);
    }
    let allowed = short.iter().filter(|told| told.status == 200).count();
    let denied = short.iter().filter(|told| told.status == 403).count();
    ensure!(
        allowed + denied == short.len() && allowed > 100 && denied > 100,
        "{allowed} allowed, {denied} denied of {}",
        short.len()
    );
    let uri = "URI=spiffe://cluster.local/ns/shop/sa/client";
    ensure!(
        short
            .iter()
            .any(|told| told.body.contains(uri) && told.body.contains("from 127.0.0.6")),
        "the application does not learn who called"
    );
    Ok(())
}

#[test]
fn connections_take_the_short_way_and_are_judged_there() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    ready(&scene)?;
    for short in [true, false] {
        scene.apply(short, false)?;
        let before = scene.short_circuits()?;
        for (pod, namespace, _) in &scene.callers {
            let one = mesh_testbed::Connect::to(scene.raw)
                .option("--send", "hello")
                .flag("--until-close")
                .run_one(pod)?;
            if *namespace == "shop" {
                ensure!(one.received.ends_with("hello"), "{one:?}");
                ensure!(
                    one.banner()
                        .is_some_and(|banner| banner.peer.ip().to_string() == "127.0.0.6"),
                    "the application sees another address: {one:?}"
                );
            } else {
                ensure!(one.received.is_empty(), "{one:?}");
            }
        }
        let taken = scene.short_circuits()? - before;
        assert_eq!(taken, if short { 2 } else { 0 });
    }
    Ok(())
}

#[test]
fn connections_that_stand_are_reset_by_rules_that_deny_them_now() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    ready(&scene)?;
    let before = scene.short_circuits()?;
    let mut held = mesh_testbed::Connect::to(scene.raw)
        .times(3)
        .hold(&scene.callers[0].0)?;
    ensure!(held.check()?.alive == 3, "{:?}", held.connections);
    assert_eq!(scene.short_circuits()? - before, 3);
    scene.apply(true, false)?;
    assert_eq!(held.check()?.alive, 3, "the rules allow them as before");
    scene.apply(true, true)?;
    eventually("they are reset", PATIENCE, || {
        held.check().is_ok_and(|held| held.alive == 0)
    })
}

#[test]
fn rules_that_change_hold_for_the_next_request() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    ready(&scene)?;
    let traffic = common::traffic::Traffic::start(&scene.callers[0].0, scene.web)?;
    let before = scene.short_circuits()?;
    eventually("requests take the short way", PATIENCE, || {
        scene.short_circuits().is_ok_and(|now| now > before + 20)
    })?;
    traffic.end()?;
    scene.apply(true, true)?;
    let mut talk = Talk::start(&scene.callers[0].0)?;
    let answers = talk.ask(scene.web, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    let status = answers.responses.first().map(|response| response.status);
    ensure!(status == Some(503), "served against the rules: {answers:?}");
    scene.apply(true, false)?;
    let answers = talk.ask(scene.web, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
    let status = answers.responses.first().map(|response| response.status);
    ensure!(
        status == Some(200),
        "not served although the rules allow: {answers:?}"
    );
    Ok(())
}

#[test]
fn both_sides_report_what_istio_reports() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    ready(&scene)?;
    let count = |scene: &Scene, labels: &[&str]| -> Result<u64> {
        let page = scene.agent.get("/stats/prometheus")?.body;
        let lines = page.lines().filter(|line| {
            line.starts_with("istio_requests_total{")
                && labels.iter().all(|label| line.contains(label))
        });
        let values = lines.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
        Ok(values.sum::<Result<u64, _>>()?)
    };
    let ends = [
        "source_workload=\"client\"",
        "source_workload_namespace=\"shop\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\"",
        "destination_workload=\"web\"",
        "destination_workload_namespace=\"shop\"",
        "destination_canonical_service=\"web\"",
        "destination_service=\"web.shop.svc.cluster.local\"",
        "destination_service_name=\"web\"",
        "destination_service_namespace=\"shop\"",
        "request_protocol=\"http\"",
        "response_code=\"403\"",
        "grpc_response_status=\"\"",
        "response_flags=\"-\"",
    ];
    let source = [
        &ends[..],
        &[
            "reporter=\"source\"",
            "connection_security_policy=\"unknown\"",
        ],
    ]
    .concat();
    let destination = [
        &ends[..],
        &[
            "reporter=\"destination\"",
            "destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
            "connection_security_policy=\"mutual_tls\"",
        ],
    ]
    .concat();
    // A route whose policy denies everybody.
    let denies = policies()
        .iter()
        .position(|policy| policy["action"] == "DENY");
    let path = format!("/p{}/x", denies.context("a policy denies")?);
    let request = format!("GET {path} HTTP/1.1\r\nHost: web.shop\r\n\r\n");
    for short in [true, false] {
        scene.apply(short, false)?;
        let before = [count(&scene, &source)?, count(&scene, &destination)?];
        let mut talk = Talk::start(&scene.callers[0].0)?;
        for _ in 0..5 {
            let answers = talk.ask(scene.web, request.as_bytes())?;
            assert_eq!(
                answers.responses.first().map(|response| response.status),
                Some(403)
            );
        }
        eventually("five more are counted on both sides", PATIENCE, || {
            count(&scene, &source).is_ok_and(|now| now == before[0] + 5)
                && count(&scene, &destination).is_ok_and(|now| now == before[1] + 5)
        })
        .with_context(|| {
            scene
                .agent
                .get("/stats/prometheus")
                .map(|page| page.body)
                .unwrap_or_default()
        })?;
    }
    let page = scene.agent.get("/stats/prometheus")?.body;
    for family in [
        "istio_request_duration_milliseconds_bucket{",
        "istio_request_bytes_sum{",
        "istio_response_bytes_count{",
        "envoy_cluster_upstream_rq_xx{",
        "envoy_cluster_upstream_rq_time_bucket{",
    ] {
        ensure!(page.contains(family), "no {family} on the page");
    }
    Ok(())
}
