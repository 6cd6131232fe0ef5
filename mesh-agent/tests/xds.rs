//! Configuration by xDS, on the whole agent: a management server that is steered by the test, and
//! real traffic that must not notice.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use envoy_types::pb::google::protobuf::Any;
use mesh_testbed::ads::{Ads, CLUSTER, ENDPOINTS, LISTENER, ROUTES, State};
use mesh_testbed::{Curl, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::resources::{cluster, endpoints, http_listener, routes, tcp_listener};
use common::scene::Scene;
use common::traffic::Traffic;

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn every_kind_comes_changes_and_goes_in_both_variants() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let scene = Scene::start(mode)?;
        assert_eq!(scene.served_by()?, "one", "{mode}");
        let first = scene.ads.asked();
        assert_eq!(first[0].node.as_deref(), Some("node-1"));
        assert!(first[0].error.is_none());
        // Endpoints alone.
        scene.ads.change(|state| {
            state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
        });
        scene.eventually_served_by("two")?;
        scene.ads.change(|state| {
            state.set(ENDPOINTS, "one", &endpoints("one", &[scene.one.addr4()]));
        });
        scene.eventually_served_by("one")?;
        // A cluster and the routes to it.
        scene.add_two();
        scene
            .ads
            .change(|state| state.set(ROUTES, "web", &routes("web", "two")));
        scene.eventually_served_by("two")?;
        // A TCP listener, which the kernel serves; and its end.
        let tcp = SocketAddr::new(scene.testbed.vip4(2).into(), 700);
        scene
            .ads
            .change(|state| state.set(LISTENER, "tcp", &tcp_listener("tcp", tcp, "one")));
        let url = format!("http://{tcp}/");
        eventually("the kernel serves the new listener", PATIENCE, || {
            let response = Curl::get(&scene.client, &url).send();
            response.is_ok_and(|response| response.echo().is_ok_and(|echo| echo.name == "one"))
        })?;
        scene.ads.change(|state| state.remove(LISTENER, "tcp"));
        eventually("the listener is gone", PATIENCE, || {
            Curl::get(&scene.client, &url)
                .send()
                .is_ok_and(|response| response.exit == 7)
        })?;
        scene.ads.change(|state| state.remove(LISTENER, "web"));
        eventually("the other one, too", PATIENCE, || {
            scene.served_by().is_ok_and(|served| served == "status 0")
        })?;
        assert!(scene.ads.asked().iter().all(|asked| asked.error.is_none()));
        let answered = scene
            .ads
            .asked()
            .iter()
            .filter(|asked| !asked.nonce.is_empty())
            .count();
        assert!(answered >= 8, "{mode}: {answered} answers");
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_refused_by_name_and_the_rest_is_taken() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let scene = Scene::start(mode)?;
        let traffic = scene.traffic()?;
        scene.ads.change(|state| {
            state.set(CLUSTER, "wrong", &json!({ "name": "wrong", "lb_policy": "MAGLEV", "maglev_lb_config": { "table_size": 4 } }));
            state.set(CLUSTER, "two", &cluster("two"));
            state.set(ENDPOINTS, "two", &endpoints("two", &[scene.two.addr4()]));
            state.set(ROUTES, "web", &routes("web", "two"));
        });
        let refused = scene
            .ads
            .wait("a rejection", |asked| asked.error.is_some())?;
        let error = refused.error.unwrap_or_default();
        ensure!(
            error.contains("wrong: ") && !error.contains("two"),
            "{error}"
        );
        scene.eventually_served_by("two")?;
        // Not even protobuf.
        scene.ads.change(|state| {
            let garbage = Any {
                type_url: ROUTES.into(),
                value: vec![0xff; 20],
            };
            state.set_any(ROUTES, "web", garbage);
        });
        scene.ads.wait("a rejection of routes", |asked| {
            asked.error.is_some() && asked.type_url == ROUTES
        })?;
        assert_eq!(scene.served_by()?, "two");
        // And right again.
        scene.ads.change(|state| {
            state.remove(CLUSTER, "wrong");
            state.set(ROUTES, "web", &routes("web", "one"));
        });
        scene.eventually_served_by("one")?;
        traffic.end()?;
        // What was accepted serves before the server hears of it.
        eventually("the recovery is accepted", PATIENCE, || {
            let mut newest = scene.ads.asked().into_iter().rev();
            newest
                .find(|asked| asked.type_url == ROUTES)
                .is_some_and(|asked| asked.error.is_none())
        })?;
    }
    Ok(())
}

#[test]
fn nothing_is_broken_before_what_replaces_it_is_made() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let scene = Scene::start(mode)?;
        let traffic = scene.traffic()?;
        // The route comes first, then its cluster, then the endpoints.
        let before = scene.ads.asked().len();
        scene.ads.change(|state| {
            state.withhold(CLUSTER);
            state.withhold(ENDPOINTS);
            state.set(ROUTES, "web", &routes("web", "two"));
        });
        eventually("the route was answered", PATIENCE, || {
            let asked = scene.ads.asked().split_off(before);
            asked
                .iter()
                .any(|asked| asked.type_url == ROUTES && !asked.nonce.is_empty())
        })?;
        scene.add_two();
        assert_eq!(scene.served_by()?, "one");
        scene.ads.change(|state| state.release(CLUSTER));
        scene.ads.wait("endpoints of the new cluster", |asked| {
            asked.type_url == ENDPOINTS && asked.names.iter().any(|name| name == "two")
        })?;
        assert_eq!(scene.served_by()?, "one");
        scene.ads.change(|state| state.release(ENDPOINTS));
        scene.eventually_served_by("two")?;
        // The cluster in use goes first, the route that leaves it comes last.
        let before = scene.ads.asked().len();
        scene.ads.change(|state| {
            state.remove(CLUSTER, "two");
            state.remove(ENDPOINTS, "two");
        });
        eventually("the removal was answered", PATIENCE, || {
            scene.ads.asked()[before..]
                .iter()
                .any(|asked| asked.type_url == CLUSTER)
        })?;
        assert_eq!(scene.served_by()?, "two");
        scene
            .ads
            .change(|state| state.set(ROUTES, "web", &routes("web", "one")));
        scene.eventually_served_by("one")?;
        traffic.end()?;
    }
    Ok(())
}

#[test]
fn a_server_that_is_gone_changes_nothing_and_is_found_again() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let mut scene = Scene::start(mode)?;
        let traffic = scene.traffic()?;
        scene.ads.stop();
        eventually("the agent notices", PATIENCE, || {
            scene.agent.log().contains("the xDS stream ended")
        })?;
        assert_eq!(scene.served_by()?, "one");
        let before = scene.ads.asked().len();
        scene.ads.change(|state| {
            state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
        });
        scene.ads.resume()?;
        scene.eventually_served_by("two")?;
        let again = scene.ads.asked().split_off(before);
        ensure!(
            again[0].node.is_some(),
            "the new stream does not tell who it is: {again:#?}"
        );
        if mode == "delta" {
            let held = again.iter().find(|asked| asked.type_url == LISTENER);
            ensure!(
                held.is_some_and(|asked| asked.held.contains_key("web")),
                "{again:#?}"
            );
        } else {
            ensure!(
                again[0].nonce.is_empty() && !again[0].version.is_empty(),
                "{again:#?}"
            );
        }
        // A stream that ends in order is opened again, too.
        let streams = scene.ads.asked().iter().map(|asked| asked.stream).max();
        scene.ads.change(State::close_streams);
        scene
            .ads
            .wait("another stream", |asked| Some(asked.stream) > streams)?;
        assert_eq!(scene.served_by()?, "two");
        traffic.end()?;
    }
    Ok(())
}

#[test]
fn pods_stay_plain_until_the_first_configuration_has_come_whole() -> Result<()> {
    needs_root!(Ok(()));
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let one = Server::http(&server, "one", "v1", 0)?;
    let vip = SocketAddr::new(testbed.vip4(1).into(), 80);
    let ads = Ads::start()?;
    ads.change(|state| {
        state.set(CLUSTER, "one", &cluster("one"));
        state.set(LISTENER, "web", &http_listener("web", vip, "web"));
        state.set(ROUTES, "web", &routes("web", "one"));
        state.set(ENDPOINTS, "one", &endpoints("one", &[one.addr4()]));
        state.withhold(ENDPOINTS);
    });
    let config = json!({ "mesh": { "outbound_traffic_policy": "REGISTRY_ONLY" },
        "workloads": [{ "name": "client", "netns": client.netns_path() }] });
    let agent = MeshAgent::builder(&testbed)?
        .arg("--xds")
        .arg(ads.address())
        .spawn(&config.to_string())?;
    ads.wait("endpoints", |asked| asked.type_url == ENDPOINTS)?;
    eventually("the pages are there", PATIENCE, || {
        agent.get("/ready").is_ok()
    })?;
    ensure!(
        agent.get("/ready")?.status == 503,
        "ready without endpoints"
    );
    let direct = Curl::get(&client, &format!("http://{}/", one.addr4())).send()?;
    ensure!(
        direct.status == 200,
        "a pod is cut off before there is a configuration"
    );
    ads.change(|state| state.release(ENDPOINTS));
    eventually("it is ready", PATIENCE, || {
        agent.get("/ready").is_ok_and(|page| page.status == 200)
    })?;
    let through = Curl::get(&client, &format!("http://{vip}/")).send()?;
    ensure!(through.echo()?.name == "one", "{through:?}");
    let direct = Curl::get(&client, &format!("http://{}/", one.addr4())).send()?;
    ensure!(direct.exit == 7, "REGISTRY_ONLY does not hold: {direct:?}");
    Ok(())
}

/// `/workloads`: the view of each pod, by name.
fn views(agent: &MeshAgent) -> Result<std::collections::BTreeMap<String, Option<u64>>> {
    let page: Value = serde_json::from_str(&agent.get("/workloads")?.body)?;
    let all = page.as_array().cloned().unwrap_or_default();
    Ok(all
        .iter()
        .map(|one| {
            let name = one["name"].as_str().unwrap_or_default().to_owned();
            (name, one["view"].as_u64())
        })
        .collect())
}

#[test]
fn each_pod_has_a_stream_as_a_sidecar_and_equal_pods_share_a_view() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let testbed = Testbed::new()?;
        let (a, b, server) = (testbed.pod("a")?, testbed.pod("b")?, testbed.pod("server")?);
        let one = Server::http(&server, "one", "v1", 0)?;
        let vip = SocketAddr::new(testbed.vip4(1).into(), 80);
        let ads = Ads::start()?;
        ads.change(|state| {
            state.set(CLUSTER, "one", &cluster("one"));
            state.set(ENDPOINTS, "one", &endpoints("one", &[one.addr4()]));
            state.set(LISTENER, "web", &http_listener("web", vip, "web"));
            state.set(ROUTES, "web", &routes("web", "one"));
        });
        let config = |pods: &[&Pod]| {
            let pods: Vec<Value> = pods
                .iter()
                .map(|pod| json!({ "name": pod.name(), "namespace": "shop", "labels": { "app": "web" }, "netns": pod.netns_path() }))
                .collect();
            json!({ "workloads": pods }).to_string()
        };
        let agent = MeshAgent::builder(&testbed)?
            .arg("--xds")
            .arg(ads.address())
            .arg("--xds-mode")
            .arg(mode)
            .arg("--xds-scope")
            .arg("workload")
            .start(&config(&[&a, &b]))?;
        let url = format!("http://{vip}/");
        let serves = |pod: &Pod| {
            Curl::get(pod, &url)
                .send()
                .is_ok_and(|response| response.status == 200)
        };
        eventually("both are served", PATIENCE, || serves(&a) && serves(&b))?;
        let seen = views(&agent)?;
        ensure!(
            seen["a"].is_some() && seen["a"] == seen["b"],
            "equal pods see {seen:?}"
        );
        let id = format!("sidecar~{}~a.shop~shop.svc.cluster.local", a.ip4());
        ads.wait("the stream of a sidecar", |asked| {
            asked.node.as_deref() == Some(&id)
        })?;
        assert_eq!(ads.open_streams(), 2);
        // What only one of them may see.
        let traffic = Traffic::start(&a, vip)?;
        ads.change(|state| state.only_for(LISTENER, "web", "~a.shop~"));
        eventually("b sees it no more", PATIENCE, || !serves(&b))?;
        ensure!(serves(&a), "a lost what b may not see");
        let seen = views(&agent)?;
        ensure!(seen["a"] != seen["b"], "different pods see {seen:?}");
        ads.change(|state| state.for_all(LISTENER, "web"));
        eventually("b sees it again", PATIENCE, || serves(&b))?;
        eventually("one view for both again", PATIENCE, || {
            views(&agent).is_ok_and(|seen| seen["a"] == seen["b"])
        })?;
        // A pod goes, and its stream with it; and comes again.
        agent.reconfigure(&config(&[&a]))?;
        eventually("the stream of b is closed", PATIENCE, || {
            ads.open_streams() == 1
        })?;
        eventually("b is plain", PATIENCE, || !serves(&b))?;
        agent.reconfigure(&config(&[&a, &b]))?;
        eventually("b is back", PATIENCE, || serves(&b))?;
        traffic.end()?;
    }
    Ok(())
}

#[test]
fn a_removed_cluster_lives_until_its_last_request_has_left() -> Result<()> {
    needs_root!(Ok(()));
    for mode in ["delta", "sotw"] {
        let scene = Scene::start(mode)?;
        let url = format!("http://{}/", scene.vip);
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| {
                Curl::get(&scene.client, &url)
                    .header("x-echo-delay-ms: 3000")
                    .send()
            });
            let active = "envoy_cluster_upstream_rq_active{envoy_cluster_name=\"one\"}";
            eventually("the request is in flight", PATIENCE, || {
                common::metric(&scene.agent, active).is_ok_and(|active| active == 1)
            })?;
            scene.add_two();
            scene.ads.change(|state| {
                state.set(ROUTES, "web", &routes("web", "two"));
                state.remove(CLUSTER, "one");
                state.remove(ENDPOINTS, "one");
            });
            scene.eventually_served_by("two")?;
            eventually("the cluster is gone", PATIENCE, || {
                let dump = scene.agent.get("/config_dump?include_eds");
                dump.is_ok_and(|page| {
                    !page.body.contains("\"name\": \"one\"")
                        && !page.body.contains("\"name\":\"one\"")
                })
            })?;
            ensure!(!slow.is_finished(), "the request ended too early to tell");
            let response = slow
                .join()
                .map_err(|_| anyhow::anyhow!("curl panicked"))??;
            assert_eq!(response.echo()?.name, "one", "{mode}: {response:?}");
            Ok(())
        })?;
    }
    Ok(())
}
