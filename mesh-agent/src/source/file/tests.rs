//! Whole files: good ones load, bad ones say where, why and what to do.

use std::fs;

use super::*;
use crate::config::model::listener::Terminal;

const GOOD: &str = include_str!("testdata/reviews.yaml");

fn load_text(text: &str) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    fs::write(&file, text).unwrap();
    load(&file, None)
}

/// The errors, without the folder's name.
fn errors(text: &str) -> Vec<String> {
    let errors = load_text(text).expect_err("the file is wrong");
    errors
        .0
        .iter()
        .map(|error| {
            let line = error.to_string();
            line[line.find("mesh.yaml").unwrap()..].to_owned()
        })
        .collect()
}

/// `GOOD` with one piece replaced; the piece must be there.
fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn a_good_file_loads() {
    let loaded = load_text(GOOD).unwrap();
    let listener = &loaded.resources.listeners["reviews"].value;
    assert!(matches!(
        listener.filter_chains[0].terminal,
        Terminal::Http(_)
    ));
    assert_eq!(loaded.resources.clusters.len(), 2);
    assert_eq!(&*loaded.node.workloads[0].key(), "default/client");
}

#[test]
fn unparsable_yaml() {
    let errors = errors("static_resources:\n  listeners: [\n");
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("not valid YAML"), "{errors:?}");
    assert!(errors[0].starts_with("mesh.yaml:"), "{errors:?}");
}

#[test]
fn balancing_settings_out_of_range_are_refused() {
    let cluster =
        |fields: &str| format!("static_resources:\n  clusters:\n  - {{name: c, {fields}}}\n");
    for (fields, expected) in [
        (
            "common_lb_config: {healthy_panic_threshold: {value: 101}}",
            "healthy_panic_threshold: is a percentage from 0 to 100, not 101",
        ),
        (
            "common_lb_config: {healthy_panic_threshold: {value: -1}}",
            "healthy_panic_threshold: is a percentage from 0 to 100, not -1",
        ),
        (
            "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 1}",
            "least_request_lb_config.choice_count: must be 2 at least",
        ),
        (
            "lb_policy: LEAST_REQUEST, least_request_lb_config: \
             {active_request_bias: {default_value: -0.5, runtime_key: k}}",
            "active_request_bias.default_value: must not be negative",
        ),
        (
            "load_assignment: {cluster_name: c, policy: {overprovisioning_factor: 0}}",
            "overprovisioning_factor: must be 1 at least",
        ),
    ] {
        let errors = errors(&cluster(fields));
        assert!(
            errors.iter().any(|error| error.contains(expected)),
            "{errors:?}"
        );
    }
}

#[test]
fn an_unknown_field_is_placed_and_the_right_one_suggested() {
    let errors = errors(&with("route_config:", "route_confg:"));
    let first = &errors[0];
    assert!(
        first.starts_with(
            "mesh.yaml:15:17: static_resources.listeners[0].filter_chains[0].filters[0].\
             typed_config.route_confg: unknown field of"
        ),
        "{first}"
    );
    assert!(first.ends_with("did you mean route_config?"), "{first}");
}

#[test]
fn a_missing_cluster_is_placed_at_the_route() {
    let errors = errors(&with(
        "route: {cluster: reviews-v2}",
        "route: {cluster: reviews-v3}",
    ));
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("mesh.yaml:22:35: "), "{errors:?}");
    assert!(
        errors[0].contains("cluster reviews-v3 does not exist; did you mean"),
        "{errors:?}"
    );
}

#[test]
fn duplicate_names() {
    let errors = errors(&with("- name: reviews-v2\n", "- name: reviews-v1\n"));
    assert!(
        errors[0].contains("reviews-v1 is defined already, in "),
        "{errors:?}"
    );
}

#[test]
fn a_bad_regex() {
    let errors = errors(&with(
        "match: {prefix: /}",
        "match: {safe_regex: {regex: '/(a'}}",
    ));
    assert!(
        errors[0].contains("routes[1].match.safe_regex.regex: not a valid regex"),
        "{errors:?}"
    );
}

#[test]
fn impossible_addresses() {
    let bad = errors(&with("10.96.0.10", "10.96.0.256"));
    assert!(
        bad[0].contains("\"10.96.0.256\" is not an IP address"),
        "{bad:?}"
    );
    let bad = errors(&with("port_value: 80", "port_value: 80800"));
    assert!(bad[0].contains("80800 is not a port"), "{bad:?}");
}

#[test]
fn a_wrong_type() {
    let bad = errors(&with(
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.http.router.v2.Router",
    ));
    assert!(
        bad[0].contains("@type: envoy.extensions.filters.http.router.v2.Router"),
        "{bad:?}"
    );
    assert!(bad[0].contains("did you mean envoy.extensions.filters.http.router.v3.Router?"));
}

#[test]
fn what_would_be_without_effect_is_refused() {
    let bad = errors(&with(
        "route: {cluster: reviews-v2}",
        "route: {cluster: reviews-v2, hedge_policy: {initial_requests: 3}}",
    ));
    assert!(
        bad[0].contains("hedge_policy is not supported yet"),
        "{bad:?}"
    );
    assert!(bad[0].starts_with("mesh.yaml:22:"), "{bad:?}");
}

#[test]
fn every_wrong_resource_of_a_file_is_told_at_once() {
    let text = with("10.96.0.10", "nowhere")
        .replace("address: 10.0.0.2", "adress: 10.0.0.2")
        .replace("name: client", "nam: client");
    let errors = errors(&text);
    let lines: Vec<&str> = errors
        .iter()
        .filter_map(|error| error.split(':').nth(1))
        .collect();
    // The workload lost its name besides having a field that does not exist.
    assert_eq!(lines, ["4", "4", "8", "32"], "{errors:#?}");
}

#[test]
fn a_folder_is_one_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let clusters = GOOD.find("  clusters:\n    - name: reviews-v1").unwrap();
    fs::write(folder.path().join("a.yaml"), &GOOD[..clusters]).unwrap();
    let rest = format!("static_resources:\n{}", &GOOD[clusters..]);
    fs::write(folder.path().join("b.yml"), &rest).unwrap();
    fs::write(folder.path().join(".hidden.yaml"), "nonsense: [").unwrap();
    let loaded = load(folder.path(), None).unwrap();
    assert_eq!(loaded.resources.clusters.len(), 2);
    fs::write(folder.path().join("c.yaml"), rest).unwrap();
    let errors = load(folder.path(), None).unwrap_err().to_string();
    assert!(
        errors.contains("c.yaml:3:7: static_resources.clusters[0].name"),
        "{errors}"
    );
}

#[test]
fn unchanged_resources_are_shared_with_the_version_before() {
    let first = load_text(GOOD).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    fs::write(&file, with("weight: 90", "weight: 80")).unwrap();
    let second = load(&file, Some(&first)).unwrap();
    let same = |name: &str| {
        std::sync::Arc::ptr_eq(
            &first.resources.clusters[name].value,
            &second.resources.clusters[name].value,
        )
    };
    assert!(same("reviews-v1") && same("reviews-v2"));
    assert!(!std::sync::Arc::ptr_eq(
        &first.resources.listeners["reviews"].value,
        &second.resources.listeners["reviews"].value
    ));
}

#[tokio::test]
async fn a_bad_reload_keeps_the_last_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.yaml");
    fs::write(&file, GOOD).unwrap();
    let initial = std::sync::Arc::new(load(&file, None).unwrap());
    let (mut loaded, status) = watch(file.clone(), initial).unwrap();
    fs::write(&file, with("10.96.0.10", "nowhere")).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while status.get().failures == 0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the bad file was not noticed"
        );
        tokio::task::yield_now().await;
    }
    assert!(!loaded.has_changed().unwrap());
    assert!(status.get().last_error.unwrap().contains("nowhere"));

    // kubectl's way: the file is a link through `..data`, which is swapped.
    fs::write(folder.path().join("next"), with("10.96.0.10", "10.96.0.11")).unwrap();
    fs::rename(folder.path().join("next"), &file).unwrap();
    loaded.changed().await.unwrap();
    let address = loaded.borrow().resources.listeners["reviews"]
        .value
        .addresses[0];
    assert_eq!(address.ip.to_string(), "10.96.0.11");
    assert!(status.get().last_error.is_none());
}

#[tokio::test]
async fn a_swapped_link_is_noticed() {
    use std::os::unix::fs::symlink;

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (version, text) in [
        ("..1", GOOD.to_owned()),
        ("..2", with("10.96.0.10", "10.96.0.12")),
    ] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("mesh.yaml"), text).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/mesh.yaml", path("mesh.yaml")).unwrap();
    let initial = std::sync::Arc::new(load(folder.path(), None).unwrap());
    let (mut loaded, _status) = watch(folder.path().to_owned(), initial).unwrap();
    symlink("..2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    loaded.changed().await.unwrap();
    let address = loaded.borrow().resources.listeners["reviews"]
        .value
        .addresses[0];
    assert_eq!(address.ip.to_string(), "10.96.0.12");
}

#[test]
fn a_filter_is_what_its_type_says_whatever_its_name() {
    for name in ["envoy.filters.http.router", "istio.stats"] {
        let text = with(
            "                http_filters:\n",
            &format!(
                "                http_filters:\n                  - name: {name}\n                    \
                 typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz}}\n"
            ),
        );
        let bad = errors(&text);
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(bad[0].contains("a service is missing"), "{bad:?}");
    }
}

#[test]
fn only_original_destinations_provide_their_own_balancing() {
    for piece in ["lb_policy: CLUSTER_PROVIDED\n", "type: ORIGINAL_DST\n"] {
        let text = format!("{GOOD}    - name: other\n      {piece}");
        let bad = errors(&text);
        assert!(bad[0].contains("CLUSTER_PROVIDED goes with"), "{bad:?}");
    }
    load_text(&format!(
        "{GOOD}    - {{name: other, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}}\n"
    ))
    .unwrap();
}

#[test]
fn one_address_has_one_listener_however_it_is_written() {
    let listener = &GOOD[GOOD.find("    - name: reviews\n").unwrap()
        ..GOOD.find("  clusters:\n    - name").unwrap()];
    let second = listener
        .replacen("name: reviews", "name: second", 1)
        .replacen("10.96.0.10", "'::ffff:10.96.0.10'", 1);
    let bad = errors(&with(
        "  clusters:\n    - name",
        &format!("{second}  clusters:\n    - name"),
    ));
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(
        bad[0].contains("10.96.0.10:80 belongs to listener reviews"),
        "{bad:?}"
    );
}

#[test]
fn a_named_route_without_its_cluster_is_wrong_unless_it_says_so() {
    let egress = include_str!("../../../../examples/egress.yaml");
    let wrong = egress.replacen("route: { cluster: original", "route: { cluster: orginal", 1);
    let bad = errors(&wrong);
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(
        bad[0].contains(
            "static_resources.routes[0].virtual_hosts[0].routes[0].route.cluster: cluster \
             orginal-destination does not exist; did you mean original-destination?"
        ),
        "{bad:?}"
    );
    let late = wrong.replacen(
        "- name: egress\n",
        "- name: egress\n    validate_clusters: false\n",
        1,
    );
    load_text(&late).unwrap();
}

#[test]
fn filter_chains_may_not_claim_the_same_connections() {
    let inbound = include_str!("../../../../examples/inbound.yaml");
    let chain = |matcher: &str| {
        let chain = format!(
            "    filter_chains:\n    - filter_chain_match: {{{matcher}}}\n      filters: [{{name: tcp, typed_config: \
             {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: application}}}}]\n"
        );
        inbound.replacen("    filter_chains:\n", &chain, 1)
    };
    let ports = "destination_port: 8080";
    let bad = errors(&chain(ports));
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert!(
        bad[0].contains("filter_chains[1].filter_chain_match: matches some"),
        "{bad:?}"
    );
    for apart in [
        "destination_port: 8081",
        "destination_port: 8080, source_type: EXTERNAL",
        "destination_port: 8080, server_names: [a.example]",
    ] {
        load_text(&chain(apart)).unwrap();
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Every line of a good file lost, cut or moved: loaded or refused with a place.
    #[test]
    fn a_damaged_file_never_panics(line in 0_usize..40, cut in 0_usize..120, shift in 0_usize..6) {
        let mut lines: Vec<String> = GOOD.lines().map(str::to_owned).collect();
        let line = line % lines.len();
        let kept: String = lines[line].chars().take(cut).collect();
        lines[line] = format!("{}{kept}", " ".repeat(shift));
        if let Err(errors) = load_text(&lines.join("\n")) {
            proptest::prop_assert!(!errors.0.is_empty());
            proptest::prop_assert!(errors.0.iter().all(|error| error.at.is_some()));
        }
    }
}

#[test]
fn resources_are_read_from_the_files_that_a_configuration_refers_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    file(
        "mesh.yaml",
        "dynamic_resources:\n  cds_config: { path_config_source: { path: more/clusters.json } }\n  lds_config: { path_config_source: { path: more/listeners.yaml } }\n",
    );
    fs::create_dir(folder.path().join("more")).unwrap();
    file(
        "more/clusters.json",
        r#"{ "version_info": "7", "resources": [{ "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": "one", "type": "EDS",
            "eds_cluster_config": { "eds_config": { "path_config_source": { "path": "one.yaml" } } } }] }"#,
    );
    file(
        "more/one.yaml",
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment\n  cluster_name: one\n",
    );
    file(
        "more/listeners.yaml",
        "resources:\n- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener\n  name: api\n  api_listener:\n    api_listener:\n      \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n      stat_prefix: h\n      route_config: { name: r, virtual_hosts: [{ name: v, domains: [\"*\"], routes: [{ match: { prefix: / }, route: { cluster: one } }] }] }\n      http_filters: [{ name: router, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router } }]\n",
    );
    let path = folder.path().join("mesh.yaml");
    let loaded = load(&path, None).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(&*loaded.resources.clusters["one"].version, "7");
    assert_eq!(loaded.resources.endpoints.len(), 1);
    assert!(loaded.resources.listeners["api"].value.addresses.is_empty());
    assert_eq!(loaded.files.len(), 4);
    assert_eq!(loaded.bootstrap, None);
    // Errors name the file they are in.
    file("more/one.yaml", "resources:\n- cluster_name: one\n");
    let errors = load(&path, None).unwrap_err().to_string();
    assert!(errors.contains("one.yaml:2"), "{errors}");
    fs::remove_file(folder.path().join("more/one.yaml")).unwrap();
    let errors = load(&path, None).unwrap_err().to_string();
    assert!(
        errors.contains("clusters.json") && errors.contains("one.yaml"),
        "{errors}"
    );
}

#[test]
fn a_management_server_is_named_as_in_envoys_bootstrap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.yaml");
    let text = |cluster: &str| {
        format!(
            "node: {{ id: me, cluster: mine }}\ndynamic_resources:\n  lds_config: {{ ads: {{}} }}\n  cds_config: {{ ads: {{}} }}\n  ads_config:\n    api_type: DELTA_GRPC\n    grpc_services: [{{ envoy_grpc: {{ cluster_name: {cluster} }} }}]\nstatic_resources:\n  clusters:\n  - name: xds\n    load_assignment: {{ cluster_name: xds, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 192.0.2.9, port_value: 15010 }} }} }} }}] }}] }}\n"
        )
    };
    fs::write(&path, text("xds")).unwrap();
    let loaded = load(&path, None).unwrap_or_else(|errors| panic!("{errors}"));
    let bootstrap = loaded.bootstrap.expect("a server");
    assert_eq!(bootstrap.address, "192.0.2.9:15010");
    assert!(bootstrap.delta);
    assert_eq!(bootstrap.node.expect("a node").id, "me");
    fs::write(&path, text("nowhere")).unwrap();
    let errors = load(&path, None).unwrap_err().to_string();
    assert!(
        errors.contains("dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name"),
        "{errors}"
    );
}
