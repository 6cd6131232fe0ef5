//! What the gauge of the stream says, beside Envoy's of the same name.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use mesh_testbed::{Envoy, MeshAgent, Testbed, eventually, needs_root};

use common::metric;
use common::raw_grpc::RawGrpc;
use common::scene::PATIENCE;

const GAUGE: &str = "control_plane.connected_state";

/// Envoy's bootstrap: clusters from this server.
fn bootstrap(server: SocketAddr) -> String {
    let (ip, port) = (server.ip(), server.port());
    format!(
        "node: {{id: e, cluster: e}}\n\
         dynamic_resources:\n  \
           ads_config: {{api_type: DELTA_GRPC, transport_api_version: V3, \
             grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}\n  \
           cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0.5s}}\n\
         static_resources:\n  \
           clusters:\n  \
           - name: xds\n    \
             type: STATIC\n    \
             connect_timeout: 1s\n    \
             typed_extension_protocol_options: {{envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
               {{'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
               explicit_http_config: {{http2_protocol_options: {{}}}}}}}}\n    \
             load_assignment: {{cluster_name: xds, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
               {{socket_address: {{address: {ip}, port_value: {port}}}}}}}}}]}}]}}\n"
    )
}

#[test]
fn a_stream_counts_as_connected_from_when_it_stands() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let testbed = Testbed::new()?;
    let pod = testbed.pod("envoy")?;
    let server = SocketAddr::new(testbed.node_ips()[0], 15099);
    // It takes streams and says nothing.
    let silent = RawGrpc::start(server, Vec::new())?;
    let envoy = Envoy::start(&pod, &bootstrap(server), 19000)?;
    let agent = MeshAgent::builder(&testbed)?
        .arg("--xds")
        .arg(server)
        .spawn("{}")?;
    eventually("both have a stream", PATIENCE, || silent.calls() >= 2)?;
    let agree = |state: u64| -> Result<()> {
        let envoys = format!("{GAUGE}: {state}");
        eventually(&format!("Envoy says {envoys}"), PATIENCE, || {
            let page = envoy.get(&pod, &format!("/stats?filter={GAUGE}"));
            page.is_ok_and(|page| page.body.contains(&envoys))
        })
        .with_context(|| envoy.log())?;
        eventually(&format!("the agent says {state}"), PATIENCE, || {
            metric(&agent, "envoy_control_plane_connected_state").is_ok_and(|now| now == state)
        })
        .with_context(|| agent.log())
    };
    agree(1)?;
    drop(silent);
    agree(0)
}
