//! The protocol, message by message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::decode::Interner;
use super::publish::HOLD;
use super::session::{Mode, Outgoing, PATIENCE, Request, Response, Session};
use super::types::ResourceType::{
    self, Cluster as Cds, Endpoint as Eds, Listener as Lds, Route as Rds,
};

fn any(kind: ResourceType, message: &impl Message) -> Any {
    Any {
        type_url: kind.url().into(),
        value: message.encode_to_vec(),
    }
}

fn eds(name: &str) -> Any {
    let cluster = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig::default()),
        ..Cluster::default()
    };
    any(Cds, &cluster)
}

fn endpoints(name: &str, policy: bool) -> Any {
    use envoy_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
    let assignment = ClusterLoadAssignment {
        cluster_name: name.into(),
        policy: policy.then(Policy::default),
        ..ClusterLoadAssignment::default()
    };
    any(Eds, &assignment)
}

/// A listener and routes from JSON, through the same descriptors as the file source.
fn json(kind: ResourceType, text: &str) -> Any {
    let name = kind.url().rsplit('/').next().unwrap();
    let descriptor = crate::config::descriptors::pool()
        .get_message_by_name(name)
        .unwrap();
    let mut json = serde_json::Deserializer::from_str(text);
    let message = prost_reflect::DynamicMessage::deserialize(descriptor, &mut json).unwrap();
    Any {
        type_url: kind.url().into(),
        value: prost_reflect::prost::Message::encode_to_vec(&message),
    }
}

fn http_listener(name: &str, routes: &str) -> Any {
    let text = format!(
        r#"{{"name": "{name}", "traffic_direction": "OUTBOUND",
        "address": {{"socket_address": {{"address": "10.1.0.1", "port_value": 80}}}},
        "filter_chains": [{{"filters": [{{"name": "http", "typed_config": {{
          "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
          "stat_prefix": "x", "rds": {{"route_config_name": "{routes}", "config_source": {{"ads": {{}}}}}},
          "http_filters": [{{"name": "router", "typed_config": {{
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]}}}}]}}]}}"#
    );
    json(Lds, &text)
}

fn routes(name: &str, cluster: &str) -> Any {
    let text = format!(
        r#"{{"name": "{name}", "virtual_hosts": [{{"name": "v", "domains": ["*"],
        "routes": [{{"match": {{"prefix": "/"}}, "route": {{"cluster": "{cluster}"}}}}]}}]}}"#
    );
    json(Rds, &text)
}

/// A session and a clock.
struct Side {
    session: Session,
    now: Instant,
    nonce: u32,
    /// The connection takes no requests.
    blocked: bool,
}

impl Side {
    fn new(mode: Mode) -> Self {
        Self {
            session: Session::new(mode, Node::default(), "test".into(), Arc::default()),
            now: Instant::now(),
            nonce: 0,
            blocked: false,
        }
    }

    fn open(&mut self) -> Vec<Outgoing> {
        let requests = self.session.opened();
        self.send(requests)
    }

    fn send(&mut self, requests: Vec<Outgoing>) -> Vec<Outgoing> {
        if !self.blocked {
            for request in &requests {
                self.session.sent(&request.expects, self.now);
            }
        }
        requests
    }

    fn deltas(requests: Vec<Outgoing>) -> Vec<DeltaDiscoveryRequest> {
        let delta = |outgoing: Outgoing| match outgoing.request {
            Request::Delta(request) => request,
            Request::Sotw(request) => panic!("not delta: {request:?}"),
        };
        requests.into_iter().map(delta).collect()
    }

    fn sotws(requests: Vec<Outgoing>) -> Vec<DiscoveryRequest> {
        let sotw = |outgoing: Outgoing| match outgoing.request {
            Request::Sotw(request) => request,
            Request::Delta(request) => panic!("not state of the world: {request:?}"),
        };
        requests.into_iter().map(sotw).collect()
    }

    fn response(
        &mut self,
        kind: ResourceType,
        resources: &[(&str, &str, Any)],
    ) -> DeltaDiscoveryResponse {
        self.nonce += 1;
        DeltaDiscoveryResponse {
            type_url: kind.url().into(),
            nonce: self.nonce.to_string(),
            resources: resources
                .iter()
                .map(|(name, version, any)| Resource {
                    name: (*name).into(),
                    version: (*version).into(),
                    resource: Some(any.clone()),
                    ..Resource::default()
                })
                .collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    fn delta(
        &mut self,
        kind: ResourceType,
        resources: &[(&str, &str, Any)],
        removed: &[&str],
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut response = self.response(kind, resources);
        response.removed_resources = removed.iter().map(|name| (*name).into()).collect();
        let requests = self.session.received(Response::Delta(response));
        let requests = self.send(requests);
        self.session.publish(self.now);
        Self::deltas(requests)
    }

    fn sotw(
        &mut self,
        kind: ResourceType,
        version: &str,
        resources: &[Any],
    ) -> Vec<DiscoveryRequest> {
        self.nonce += 1;
        let response = DiscoveryResponse {
            type_url: kind.url().into(),
            nonce: self.nonce.to_string(),
            version_info: version.into(),
            resources: resources.to_vec(),
            ..DiscoveryResponse::default()
        };
        let requests = self.session.received(Response::Sotw(response));
        let requests = self.send(requests);
        self.session.publish(self.now);
        Self::sotws(requests)
    }

    fn clusters(&mut self) -> Vec<String> {
        let published = self.session.publish(self.now);
        published.clusters.keys().map(ToString::to_string).collect()
    }

    fn route_cluster(&mut self) -> Option<String> {
        let published = self.session.publish(self.now);
        let routes = published.routes.values().next()?;
        let mut clusters = routes.value.clusters();
        clusters.next().map(|(_, name)| name.to_string())
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.session.expire(self.now);
    }
}

#[test]
fn a_delta_stream_begins_with_clusters_and_listeners() {
    let mut side = Side::new(Mode::Delta);
    let first = Side::deltas(side.open());
    let kinds: Vec<&str> = first
        .iter()
        .map(|request| request.type_url.as_str())
        .collect();
    assert_eq!(kinds, [Cds.url(), Lds.url()]);
    assert!(first[0].node.is_some() && first[1].node.is_none());
    assert!(
        first
            .iter()
            .all(|request| request.resource_names_subscribe.is_empty())
    );
}

#[test]
fn names_are_asked_for_once_and_given_up_when_nobody_refers_to_them() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    let sent = side.delta(Cds, &[("a", "1", eds("a")), ("b", "1", eds("b"))], &[]);
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(
        (sent[0].response_nonce.as_str(), &sent[0].error_detail),
        ("1", &None)
    );
    assert_eq!(sent[1].resource_names_subscribe, ["a", "b"]);
    let sent = side.delta(Cds, &[("c", "1", eds("c"))], &["a"]);
    assert_eq!(sent[1].resource_names_subscribe, ["c"]);
    assert_eq!(sent[1].resource_names_unsubscribe, ["a"]);
    let sent = side.delta(Cds, &[("c", "2", eds("c"))], &[]);
    assert_eq!(sent.len(), 1, "nothing new to ask for: {sent:?}");
}

#[test]
fn what_is_right_of_a_response_is_taken_and_what_is_wrong_is_named() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut side = Side::new(mode);
        side.open();
        let wrong = any(
            Cds,
            &Cluster {
                name: "wrong".into(),
                lb_policy: 99,
                ..Cluster::default()
            },
        );
        let right = any(
            Cds,
            &Cluster {
                name: "right".into(),
                ..Cluster::default()
            },
        );
        let (error, version) = match mode {
            Mode::Delta => {
                let sent = side.delta(Cds, &[("wrong", "1", wrong), ("right", "1", right)], &[]);
                (sent[0].error_detail.clone(), String::new())
            }
            Mode::Sotw => {
                let sent = side.sotw(Cds, "1", &[wrong, right]);
                (sent[0].error_detail.clone(), sent[0].version_info.clone())
            }
        };
        let error = error.expect("a rejection").message;
        assert!(
            error.contains("wrong: lb_policy") && !error.contains("right"),
            "{error}"
        );
        assert_eq!(version, "", "nothing was accepted whole yet");
        assert_eq!(side.clusters(), ["right"]);
        assert_eq!(side.session.status().types.get(Cds).rejected, 1);
    }
}

#[test]
fn a_refused_version_leaves_the_one_before_in_use() {
    let mut side = Side::new(Mode::Sotw);
    side.open();
    let good = any(
        Cds,
        &Cluster {
            name: "a".into(),
            ..Cluster::default()
        },
    );
    let sent = side.sotw(Cds, "1", &[good]);
    assert_eq!(sent[0].version_info, "1");
    let bad = any(
        Cds,
        &Cluster {
            name: "a".into(),
            lb_policy: 99,
            ..Cluster::default()
        },
    );
    let sent = side.sotw(Cds, "2", &[bad]);
    assert_eq!(
        (
            sent[0].version_info.as_str(),
            sent[0].response_nonce.as_str()
        ),
        ("1", "2")
    );
    assert!(sent[0].error_detail.is_some());
    assert_eq!(side.clusters(), ["a"]);
    // What has no name cannot be told from what is missing, so nothing is removed.
    let garbage = Any {
        type_url: Cds.url().into(),
        value: vec![0xff, 0xff],
    };
    let sent = side.sotw(Cds, "3", &[garbage]);
    assert!(sent[0].error_detail.is_some());
    assert_eq!(side.clusters(), ["a"]);
    side.sotw(Cds, "4", &[]);
    assert!(side.clusters().is_empty());
}

#[test]
fn a_new_stream_tells_what_is_held_and_keeps_it_in_use() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    side.delta(Cds, &[("a", "7", eds("a"))], &[]);
    side.delta(Eds, &[("a", "8", endpoints("a", false))], &[]);
    side.session.closed("test".into());
    assert_eq!(side.clusters(), ["a"]);
    let first = Side::deltas(side.open());
    let of = |kind: ResourceType| first.iter().find(|r| r.type_url == kind.url()).unwrap();
    assert_eq!(of(Cds).initial_resource_versions["a"], "7");
    assert_eq!(of(Eds).initial_resource_versions["a"], "8");
    assert_eq!(of(Eds).resource_names_subscribe, ["a"]);

    let mut side = Side::new(Mode::Sotw);
    side.open();
    side.sotw(Cds, "7", &[eds("a")]);
    side.session.closed("test".into());
    let first = Side::sotws(side.open());
    assert_eq!(
        (
            first[0].version_info.as_str(),
            first[0].response_nonce.as_str()
        ),
        ("7", "")
    );
}

#[test]
fn a_cluster_waits_for_its_endpoints_but_not_for_ever() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    side.delta(Lds, &[], &[]);
    side.delta(Cds, &[("a", "1", eds("a")), ("b", "1", eds("b"))], &[]);
    assert!(side.clusters().is_empty() && !side.session.complete());
    side.delta(Eds, &[("a", "1", endpoints("a", false))], &[]);
    assert_eq!(side.clusters(), ["a"]);
    side.wait(PATIENCE - Duration::from_millis(1));
    assert_eq!(side.clusters(), ["a"]);
    side.wait(Duration::from_millis(2));
    assert_eq!(
        side.clusters(),
        ["a", "b"],
        "endpoints that never come do not exist"
    );
    assert!(side.session.complete());
}

#[test]
fn the_wait_begins_when_the_request_can_be_sent() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    side.delta(Cds, &[("a", "1", eds("a"))], &[]);
    side.session.closed("test".into());
    assert_eq!(
        side.session.next_timer(side.now).map(|t| t - side.now),
        Some(HOLD)
    );
    side.wait(Duration::from_secs(1));
    side.open();
    side.wait(PATIENCE - Duration::from_secs(1));
    assert!(side.session.cache_says_absent("a").is_none());
    side.wait(Duration::from_secs(2));
    assert_eq!(side.session.cache_says_absent("a"), Some(true));
}

#[test]
fn each_resource_is_given_its_time_from_when_it_was_really_asked_for() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    side.delta(Lds, &[], &[]);
    side.delta(Cds, &[("a", "1", eds("a"))], &[]);
    side.wait(Duration::from_secs(10));
    // The connection is full: the request for `b` waits for ten seconds.
    side.blocked = true;
    let response = side.response(Cds, &[("b", "1", eds("b"))]);
    let requests = side.session.received(Response::Delta(response));
    side.wait(Duration::from_secs(6));
    assert_eq!(side.session.cache_says_absent("a"), Some(true));
    assert_eq!(side.session.cache_says_absent("b"), None);
    side.wait(Duration::from_secs(4));
    side.blocked = false;
    side.send(requests);
    side.wait(PATIENCE - Duration::from_millis(1));
    assert_eq!(side.session.cache_says_absent("b"), None);
    side.wait(Duration::from_millis(1));
    assert_eq!(side.session.cache_says_absent("b"), Some(true));
    // What comes late is taken all the same.
    side.delta(Eds, &[("b", "1", endpoints("b", false))], &[]);
    assert_eq!(side.session.cache_says_absent("b"), Some(false));
    assert!(
        side.session
            .status()
            .trouble
            .absent
            .contains(&(Eds, "a".into()))
    );
}

#[test]
fn subscriptions_that_cross_a_response_carry_its_nonce() {
    let mut side = Side::new(Mode::Sotw);
    side.open();
    side.sotw(Cds, "1", &[eds("a")]);
    let sent = side.sotw(Eds, "1", &[endpoints("a", false)]);
    let nonce = sent[0].response_nonce.clone();
    // Another name is asked for: with the nonce of the last answer of that kind, not of clusters.
    let sent = side.sotw(Cds, "2", &[eds("a"), eds("b")]);
    assert_eq!(sent[1].type_url, Eds.url());
    assert_eq!(sent[1].response_nonce, nonce);
    assert_eq!(sent[1].resource_names, ["a", "b"]);
    assert_eq!(sent[1].version_info, "1");
    // The server had answered the older request meanwhile. It is acknowledged with the names of
    // now, so that a server that dropped the request as stale learns of them.
    let sent = side.sotw(Eds, "2", &[endpoints("a", true)]);
    assert_eq!(sent[0].resource_names, ["a", "b"]);
    assert_ne!(sent[0].response_nonce, nonce);
}

#[test]
fn an_answer_in_the_other_variant_is_refused_and_named() {
    // What a state-of-the-world response looks like to whoever expects changes.
    let response = DiscoveryResponse {
        version_info: "1".into(),
        resources: vec![any(Cds, &Cluster::default())],
        type_url: Cds.url().into(),
        nonce: "1".into(),
        ..DiscoveryResponse::default()
    };
    let seen = DeltaDiscoveryResponse::decode(response.encode_to_vec().as_slice()).unwrap();
    let mut side = Side::new(Mode::Delta);
    side.open();
    let sent = Side::deltas(side.session.received(Response::Delta(seen)));
    let error = sent[0].error_detail.clone().expect("a rejection").message;
    assert!(error.contains("--xds-mode sotw"), "{error}");
}

#[test]
fn routes_wait_for_clusters_and_removed_clusters_for_routes() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    let plain = |name: &str| {
        any(
            Cds,
            &Cluster {
                name: name.into(),
                ..Cluster::default()
            },
        )
    };
    side.delta(Cds, &[("a", "1", plain("a"))], &[]);
    side.delta(Lds, &[("l", "1", http_listener("l", "r"))], &[]);
    assert!(
        side.session.publish(side.now).listeners.is_empty(),
        "its routes are not here"
    );
    side.delta(Rds, &[("r", "1", routes("r", "a"))], &[]);
    assert_eq!(side.session.publish(side.now).listeners.len(), 1);
    // The new route comes before the cluster it needs.
    side.delta(Rds, &[("r", "2", routes("r", "b"))], &[]);
    assert_eq!(side.route_cluster().as_deref(), Some("a"));
    side.delta(Cds, &[("b", "1", plain("b"))], &["a"]);
    assert_eq!(side.route_cluster().as_deref(), Some("b"));
    assert_eq!(side.clusters(), ["b"]);
    // A cluster is removed before the route that still needs it.
    side.delta(Cds, &[], &["b"]);
    assert_eq!(side.clusters(), ["b"]);
    side.wait(HOLD + Duration::from_secs(1));
    assert!(side.clusters().is_empty());
    assert_eq!(side.route_cluster().as_deref(), Some("b"));
}

#[test]
fn equal_resources_are_one() {
    let interner = Arc::<Interner>::default();
    let value = |session: &mut Session, now| {
        session
            .publish(now)
            .endpoints
            .values()
            .next()
            .unwrap()
            .value
            .clone()
    };
    let mut values = Vec::new();
    for _ in 0..2 {
        let mut side = Side::new(Mode::Delta);
        side.session = Session::new(
            Mode::Delta,
            Node::default(),
            "test".into(),
            interner.clone(),
        );
        side.open();
        side.delta(Cds, &[("a", "1", eds("a"))], &[]);
        side.delta(Eds, &[("a", "1", endpoints("a", true))], &[]);
        values.push(value(&mut side.session, side.now));
    }
    assert!(Arc::ptr_eq(&values[0], &values[1]));
}

#[test]
fn streams_that_were_sent_the_same_have_nothing_of_their_own() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let interner = Arc::new(Interner::of_many());
        let side = || {
            let mut side = Side::new(mode);
            let (node, interner) = (Node::default(), interner.clone());
            side.session = Session::new(mode, node, "test".into(), interner);
            side.open();
            side
        };
        let send = |side: &mut Side, kind, resources: &[(&str, &str, Any)]| match mode {
            Mode::Delta => drop(side.delta(kind, resources, &[])),
            Mode::Sotw => {
                let all: Vec<Any> = resources.iter().map(|(_, _, any)| any.clone()).collect();
                side.sotw(kind, resources[0].1, &all);
            }
        };
        let (mut one, mut other) = (side(), side());
        // The other gets there on another way.
        send(&mut other, Cds, &[("b", "0", eds("b"))]);
        for side in [&mut one, &mut other] {
            send(side, Cds, &[("a", "1", eds("a")), ("b", "1", eds("b"))]);
            send(
                side,
                Eds,
                &[
                    ("a", "1", endpoints("a", false)),
                    ("b", "1", endpoints("b", false)),
                ],
            );
            send(side, Lds, &[("l", "1", http_listener("l", "r"))]);
            send(side, Rds, &[("r", "1", routes("r", "a"))]);
        }
        assert_eq!(one.session.shared_with(&other.session), 10);
        let maps = |side: &mut Side| (*side.session.publish(side.now)).clone();
        let (first, second) = (maps(&mut one), maps(&mut other));
        assert!(
            Arc::ptr_eq(&first.clusters, &second.clusters)
                && Arc::ptr_eq(&first.endpoints, &second.endpoints)
                && Arc::ptr_eq(&first.listeners, &second.listeners)
                && Arc::ptr_eq(&first.routes, &second.routes)
        );
        assert_eq!(one.session.fingerprint(), other.session.fingerprint());
        // What one of them is sent is not the other's.
        send(
            &mut one,
            Eds,
            &[
                ("a", "2", endpoints("a", true)),
                ("b", "2", endpoints("b", false)),
            ],
        );
        let (first, second) = (maps(&mut one), maps(&mut other));
        assert!(!Arc::ptr_eq(&first.endpoints, &second.endpoints));
        assert!(Arc::ptr_eq(&first.clusters, &second.clusters));
        assert_eq!(second.endpoints["a"].version.as_ref(), "1");
        assert_ne!(one.session.fingerprint(), other.session.fingerprint());
        send(
            &mut other,
            Eds,
            &[
                ("a", "2", endpoints("a", true)),
                ("b", "2", endpoints("b", false)),
            ],
        );
        assert_eq!(one.session.fingerprint(), other.session.fingerprint());
        assert_eq!(one.session.shared_with(&other.session), 10);
    }
}

#[test]
fn what_is_pushed_again_unchanged_changes_nothing() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    let push = |side: &mut Side| {
        side.delta(Cds, &[("a", "1", eds("a"))], &[]);
        side.delta(Eds, &[("a", "1", endpoints("a", false))], &[]);
        side.session.publish(side.now)
    };
    let (before, after) = (push(&mut side), push(&mut side));
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn what_nobody_uses_is_forgotten() {
    let interner = Arc::<Interner>::default();
    let mut side = Side::new(Mode::Delta);
    side.session = Session::new(
        Mode::Delta,
        Node::default(),
        "test".into(),
        interner.clone(),
    );
    side.open();
    side.delta(Cds, &[("a", "1", eds("a"))], &[]);
    side.delta(Eds, &[("a", "1", endpoints("a", true))], &[]);
    side.delta(Eds, &[("a", "2", endpoints("a", false))], &[]);
    assert_eq!(interner.len(), 3);
    side.session.tidy();
    assert_eq!(interner.len(), 2);
    assert_eq!(side.clusters(), ["a"]);
}

#[test]
fn a_resource_under_another_name_is_refused() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    let sent = side.delta(Cds, &[("other", "1", eds("a"))], &[]);
    let error = sent[0].error_detail.clone().unwrap().message;
    assert!(error.contains("its name inside is \"a\""), "{error}");
    let sent = side.delta(Lds, &[("a", "1", eds("a"))], &[]);
    assert!(sent[0].error_detail.is_some());
}

#[test]
fn what_nobody_asked_for_is_not_acknowledged() {
    let mut side = Side::new(Mode::Delta);
    side.open();
    assert!(
        side.delta(Rds, &[("r", "1", routes("r", "a"))], &[])
            .is_empty()
    );
}

#[test]
fn resources_nobody_asked_for_are_passed_over() {
    for mode in [Mode::Delta, Mode::Sotw] {
        let mut side = Side::new(mode);
        side.open();
        // Wrong or right, of a kind that was asked for and under a name that was not.
        let malformed = Any {
            type_url: Eds.url().into(),
            value: Vec::new(),
        };
        match mode {
            Mode::Delta => {
                side.delta(Cds, &[("a", "1", eds("a"))], &[]);
                let stranger = endpoints("stranger", false);
                let all = [
                    ("stranger", "1", stranger),
                    ("malformed", "1", malformed),
                    ("a", "1", endpoints("a", false)),
                ];
                let sent = side.delta(Eds, &all, &["never-there"]);
                assert_eq!(sent.len(), 1);
                assert_eq!(sent[0].error_detail, None);
            }
            Mode::Sotw => {
                side.sotw(Cds, "1", &[eds("a")]);
                let all = [endpoints("stranger", false), endpoints("a", false)];
                let sent = side.sotw(Eds, "1", &all);
                assert_eq!(sent[0].error_detail, None);
                assert_eq!(sent[0].resource_names, ["a"]);
            }
        }
        let published = side.session.publish(side.now);
        assert!(published.endpoints.keys().map(|name| &**name).eq(["a"]));
        assert_eq!(side.session.cache_says_absent("stranger"), None);
        assert_eq!(side.session.cache_says_absent("never-there"), None);
        assert!(side.session.status().trouble.rejected.is_empty());
    }
}
