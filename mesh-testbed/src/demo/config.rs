//! The mesh's configuration: Envoy's YAML and the workloads of this node.

use super::scene::Scene;

/// Shares of 100 of the requests to `reviews`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub(super) v1: u32,
    pub(super) v2: u32,
}

/// Only the client is enrolled. `reviews` is HTTP and goes through the agent; `ledger` is plain
/// TCP and needs nothing that the kernel cannot do.
pub(super) fn yaml(scene: &Scene, weights: Weights) -> String {
    let cluster = |name: &str, addresses: &[std::net::SocketAddr]| {
        let mut text = format!(
            "  - name: {name}\n    type: STATIC\n    load_assignment:\n      \
             cluster_name: {name}\n      endpoints:\n      - lb_endpoints:\n"
        );
        for address in addresses {
            text += &format!(
                "        - endpoint: {{ address: {{ socket_address: \
                 {{ address: {}, port_value: {} }} }} }}\n",
                address.ip(),
                address.port()
            );
        }
        text
    };
    let clusters = cluster("reviews-v1", &[scene.reviews_v1.addr4()])
        + &cluster("reviews-v2", &[scene.reviews_v2.addr4()])
        + &cluster("ledger", &[scene.ledger_a.addr4(), scene.ledger_b.addr4()]);
    let Weights { v1, v2 } = weights;
    let (reviews, ledger) = (scene.reviews_vip(), scene.ledger_vip());
    format!(
        r#"workloads:
- name: client
  namespace: demo
  service_account: client
  labels: {{ app: client }}
  netns: {netns}
  cgroup: {cgroup}
static_resources:
  listeners:
  - name: reviews
    address: {{ socket_address: {{ address: {reviews_ip}, port_value: {reviews_port} }} }}
    bind_to_port: false
    traffic_direction: OUTBOUND
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: reviews
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: reviews
            virtual_hosts:
            - name: reviews
              domains: ["*"]
              routes:
              - match:
                  prefix: /
                  headers:
                  - name: end-user
                    string_match: {{ exact: jason }}
                route: {{ cluster: reviews-v2 }}
              - match: {{ prefix: / }}
                route:
                  weighted_clusters:
                    clusters:
                    - {{ name: reviews-v1, weight: {v1} }}
                    - {{ name: reviews-v2, weight: {v2} }}
  - name: ledger
    address: {{ socket_address: {{ address: {ledger_ip}, port_value: {ledger_port} }} }}
    bind_to_port: false
    traffic_direction: OUTBOUND
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: ledger
          cluster: ledger
  clusters:
{clusters}"#,
        netns = scene.client.netns_path().display(),
        cgroup = scene.client.cgroup().display(),
        reviews_ip = reviews.ip(),
        reviews_port = reviews.port(),
        ledger_ip = ledger.ip(),
        ledger_port = ledger.port(),
    )
}
