//! Envoy in a pod.

use anyhow::Result;
use mesh_testbed::{Curl, Envoy, Server, Testbed, needs_root};

#[test]
fn envoy_routes_from_a_pod() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
    let reviews = Server::http(&server, "reviews", "v1", 9080)?;
    let to = reviews.addr4();
    let config = format!(
        r#"
static_resources:
  listeners:
  - name: l
    address: {{ socket_address: {{ address: 0.0.0.0, port_value: 10000 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ path: /gone }}
                direct_response: {{ status: 410 }}
              - match: {{ prefix: / }}
                route: {{ cluster: reviews }}
  clusters:
  - name: reviews
    load_assignment:
      cluster_name: reviews
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
"#,
        to.ip(),
        to.port()
    );
    let envoy = Envoy::start(&client, &config, 9901)?;
    let echo = Curl::get(&client, "http://127.0.0.1:10000/a")
        .send()?
        .echo()?;
    assert_eq!((echo.version.as_str(), echo.path.as_str()), ("v1", "/a"));
    assert!(
        echo.header("x-request-id").is_some(),
        "Envoy was in between: {echo:?}"
    );
    assert_eq!(
        Curl::get(&client, "http://127.0.0.1:10000/gone")
            .send()?
            .status,
        410
    );
    let stats = envoy.get(&client, "/stats?filter=cluster.reviews.upstream_rq_total")?;
    assert_eq!(stats.body.trim(), "cluster.reviews.upstream_rq_total: 1");

    let error = Envoy::start(&client, "static_resources: { listeners: 7 }", 9902).unwrap_err();
    assert!(error.to_string().contains("listeners"), "{error:#}");
    Ok(())
}
