//! What the admin pages show.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use envoy_types::pb::envoy::service::status::v3::ClientStatusResponse;
use serde_json::{Value, json};

use crate::agent::certificates::Certificates;
use crate::config::model::Name;
use crate::config::model::endpoint::Health;
use crate::config::model::workload::{AllOr, Capture};
use crate::datapath::Datapath;
use crate::proxy::ProxyStats;
use crate::snapshot::Snapshot;
use crate::snapshot::cluster::Host;
use crate::source::dns::DnsStats;
use crate::source::file::Reloads;
use crate::source::xds::Published;
use crate::store::ResourceSet;
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::AccessLogStats;
use crate::telemetry::requests::RequestMetrics;
use crate::workload::WorkloadStatus;

use super::config_dump::{Sources, config_dump};
use super::{certs, xds};

/// A page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// `LIVE`, once everything is enrolled that can be.
    Ready,
    /// Resources in Envoy's JSON shape.
    ConfigDump {
        /// With the endpoints.
        include_eds: bool,
    },
    /// Clusters and their endpoints.
    Clusters(Format),
    /// Listeners and their addresses.
    Listeners(Format),
    /// Counters in Prometheus' text format.
    Prometheus,
    /// Pods.
    Workloads,
    /// What the kernel does with which address, and why.
    Services,
    /// Version, uptime, state.
    ServerInfo,
    /// The pods' certificates.
    Certs,
    /// Everything `mesh-agent status` shows.
    Status,
}

/// How a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As Envoy's text.
    Text,
    /// As JSON.
    Json,
}

impl Page {
    /// The pages, for people.
    pub const LIST: &'static str = "\
/ready             is the agent ready?
/config_dump       the configuration in force (?include_eds)
/clusters          endpoints and their counters (?format=json)
/listeners         listeners and their addresses (?format=json)
/stats/prometheus  counters
/workloads         the pods of this node
/services          which services run where, and why
/certs             the pods' certificates
/server_info       version and uptime
/status            all that `mesh-agent status` shows
POST /reopen_logs  open access logs anew, as SIGUSR1
POST /quitquitquit drain and stop
";

    /// The page at a path, with the query after it.
    pub fn find(path: &str, query: &str) -> Option<Self> {
        let asks = |wanted: &str| query.split('&').any(|part| part == wanted);
        let format = if asks("format=json") {
            Format::Json
        } else {
            Format::Text
        };
        Some(match path {
            "/ready" => Self::Ready,
            "/config_dump" => Self::ConfigDump {
                include_eds: asks("include_eds") || asks("include_eds=true"),
            },
            "/clusters" => Self::Clusters(format),
            "/listeners" => Self::Listeners(format),
            "/stats/prometheus" | "/metrics" => Self::Prometheus,
            "/workloads" => Self::Workloads,
            "/services" => Self::Services,
            "/server_info" => Self::ServerInfo,
            "/certs" => Self::Certs,
            "/status" => Self::Status,
            _ => return None,
        })
    }
}

/// What there is to show.
#[allow(missing_debug_implementations)]
pub struct State<'a> {
    /// Whether the agent is ready.
    pub ready: bool,
    /// When it started.
    pub started: Instant,
    /// Where the configuration comes from.
    pub config: String,
    /// How reloads went.
    pub reloads: Reloads,
    /// The resources in force.
    pub resources: &'a ResourceSet,
    /// What of them the file says.
    pub file: &'a ResourceSet,
    /// The streams of the management server, by workload.
    pub streams: &'a [(&'a Name, &'a Published)],
    /// How long configurations took to reach the proxy and the kernel.
    pub applied: Applied,
    /// The snapshot in force.
    pub snapshot: &'a Snapshot,
    /// The kernel side.
    pub datapath: &'a Datapath,
    /// The pods.
    pub workloads: Vec<WorkloadStatus>,
    /// The proxy's counters.
    pub proxy: &'a ProxyStats,
    /// Istio's metrics of requests.
    pub requests: &'a RequestMetrics,
    /// What became of lines of access logs.
    pub access_log: &'a AccessLogStats,
    /// What became of connections.
    pub telemetry: &'a Telemetry,
    /// The name source's counters.
    pub dns: &'a DnsStats,
    /// Keeps the pods' certificates, if anybody signs them.
    pub(crate) certificates: &'a Certificates,
}

/// How long configurations took from the source to the proxy and the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Applied {
    /// How many there were.
    pub count: u64,
    /// All together.
    pub total: Duration,
    /// The last one.
    pub last: Duration,
}

/// Labels in braces, and a value.
pub(super) type Sample = (String, u64);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=UTF-8";

impl State<'_> {
    /// The answer of the client status discovery service.
    pub fn client_status(&self) -> ClientStatusResponse {
        xds::client_status(self.streams)
    }

    /// A page's content type and text.
    pub fn render(&self, page: Page) -> (&'static str, String) {
        match page {
            Page::Ready => (
                TEXT,
                if self.ready {
                    "LIVE\n"
                } else {
                    "PRE_INITIALIZING\n"
                }
                .into(),
            ),
            Page::ConfigDump { include_eds } => {
                let sources = Sources {
                    resources: self.resources,
                    file: self.file,
                    streams: self.streams,
                };
                (JSON, pretty(&config_dump(&sources, include_eds)))
            }
            Page::Clusters(Format::Text) => (TEXT, self.clusters_text()),
            Page::Clusters(Format::Json) => (JSON, pretty(&self.clusters())),
            Page::Listeners(Format::Text) => (TEXT, self.listeners_text()),
            Page::Listeners(Format::Json) => (JSON, pretty(&self.listeners())),
            Page::Prometheus => ("text/plain; version=0.0.4", self.prometheus()),
            Page::Workloads => (JSON, pretty(&self.workloads())),
            Page::Services => (JSON, pretty(&json!(self.datapath.services()))),
            Page::ServerInfo => (JSON, pretty(&self.server_info())),
            Page::Certs => (JSON, pretty(&certs::page(self.certificates))),
            Page::Status => (JSON, pretty(&self.status())),
        }
    }

    fn server_info(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": if self.ready { "LIVE" } else { "PRE_INITIALIZING" },
            "uptime_current_epoch": format!("{}s", self.started.elapsed().as_secs()),
            "config": self.config,
            "snapshot_generation": self.snapshot.generation,
        })
    }

    fn status(&self) -> Value {
        json!({
            "server": self.server_info(),
            "reloads": {
                "attempts": self.reloads.attempts,
                "failures": self.reloads.failures,
                "last_success": self.reloads.last_success.map(seconds),
                "last_failure": self.reloads.last_failure.map(seconds),
                "last_error": self.reloads.last_error,
            },
            "xds": xds::report(self.streams),
            "apply_microseconds": self.applied.last.as_micros() as u64,
            "workloads": self.workloads(),
            "services": self.datapath.services(),
            "maps": self.datapath.maps(),
            "programs": self.datapath.programs().into_iter()
                .map(|(name, id)| json!({"name": name, "id": id})).collect::<Vec<_>>(),
            "connections": self.proxy.active_connections(),
        })
    }

    fn workloads(&self) -> Value {
        self.workloads
            .iter()
            .map(|status| {
                let workload = &status.workload;
                json!({
                    "name": workload.name,
                    "namespace": workload.namespace,
                    "service_account": workload.service_account,
                    "labels": workload.labels,
                    "netns": workload.netns.path(),
                    "netns_cookie": status.pod.as_ref().map(|pod| pod.netns.cookie()),
                    "pod_id": status.pod.as_ref().map(|pod| pod.id.0),
                    "view": status.pod.as_ref().map(|pod| pod.view().0),
                    "ips": status.ips,
                    "state": status.state.as_str(),
                    "reason": status.reason,
                    "capture": capture(&workload.capture),
                })
            })
            .collect()
    }

    fn clusters(&self) -> Value {
        let mut clusters = Vec::new();
        for view in self.snapshot.views.values() {
            for (name, cluster) in view.clusters.iter() {
                let hosts: Vec<Value> = cluster
                    .hosts()
                    .map(|host| {
                        json!({
                            "address": {"socket_address": {
                                "address": host.address.ip(), "port_value": host.address.port(),
                            }},
                            "weight": host.weight,
                            "hostname": host.hostname,
                            "stats": host_stats(&host.state).into_iter()
                                .map(|(name, value)| json!({"name": name, "value": value.to_string()}))
                                .collect::<Vec<_>>(),
                        })
                    })
                    .collect();
                clusters
                    .push(json!({"name": name, "added_via_api": !self.file.clusters.contains_key(name), "host_statuses": hosts}));
            }
        }
        json!({"cluster_statuses": clusters})
    }

    fn clusters_text(&self) -> String {
        let mut out = String::new();
        for view in self.snapshot.views.values() {
            let mut names: Vec<_> = view.clusters.iter().collect();
            names.sort_by_key(|(name, _)| (*name).clone());
            for (name, cluster) in names {
                let limits = &cluster.config.circuit_breakers.default;
                let _ = writeln!(
                    out,
                    "{name}::default_priority::max_connections::{}",
                    limits.max_connections
                );
                let _ = writeln!(
                    out,
                    "{name}::default_priority::max_requests::{}",
                    limits.max_requests
                );
                for host in cluster.hosts() {
                    for (stat, value) in host_stats(&host.state) {
                        let _ = writeln!(out, "{name}::{}::{stat}::{value}", host.address);
                    }
                    let transport = match host.transport.is_plain() {
                        true => "raw_buffer",
                        false => "tls",
                    };
                    let _ = writeln!(out, "{name}::{}::transport::{transport}", host.address);
                    let _ = writeln!(out, "{name}::{}::weight::{}", host.address, host.weight);
                    let _ = writeln!(
                        out,
                        "{name}::{}::health_flags::{}",
                        host.address,
                        health_flags(host)
                    );
                    let rate = host.outlier.success_rate().unwrap_or(-1.0);
                    let _ = writeln!(out, "{name}::{}::success_rate::{rate}", host.address);
                }
            }
        }
        out
    }

    fn listeners(&self) -> Value {
        let statuses: Vec<Value> = self
            .resources
            .listeners
            .iter()
            .map(|(name, resource)| {
                let address = resource.value.addresses.first();
                json!({"name": name, "local_address": {"socket_address": {
                    "address": address.map(|address| address.ip),
                    "port_value": address.map(|address| address.port),
                }}})
            })
            .collect();
        json!({"listener_statuses": statuses})
    }

    fn listeners_text(&self) -> String {
        let mut out = String::new();
        for (name, resource) in self.resources.listeners.iter() {
            for address in &resource.value.addresses {
                let _ = writeln!(
                    out,
                    "{name}::{}",
                    std::net::SocketAddr::new(address.ip, address.port)
                );
            }
        }
        out
    }

    fn prometheus(&self) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, samples: Vec<(String, u64)>| {
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let one = |value: u64| vec![(String::new(), value)];
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        family("mesh_build_info", "gauge", vec![(version, 1)]);
        family(
            "mesh_config_reloads_total",
            "counter",
            one(self.reloads.attempts),
        );
        family(
            "mesh_config_reload_failures_total",
            "counter",
            one(self.reloads.failures),
        );
        family(
            "mesh_config_last_success_seconds",
            "gauge",
            one(self.reloads.last_success.map_or(0, seconds)),
        );
        family(
            "mesh_snapshot_generation",
            "gauge",
            one(self.snapshot.generation),
        );
        family(
            "mesh_config_applies_total",
            "counter",
            one(self.applied.count),
        );
        family(
            "mesh_config_apply_microseconds_total",
            "counter",
            one(self.applied.total.as_micros() as u64),
        );
        family(
            "mesh_config_apply_last_microseconds",
            "gauge",
            one(self.applied.last.as_micros() as u64),
        );
        for (name, kind, samples) in certs::families(self.certificates) {
            family(name, kind, samples);
        }
        for (name, kind, samples) in xds::families(self.streams) {
            family(name, kind, samples);
        }
        family(
            "mesh_dns_resolutions_total",
            "counter",
            one(load(&self.dns.attempts)),
        );
        family(
            "mesh_dns_resolution_failures_total",
            "counter",
            one(load(&self.dns.failures)),
        );
        let enrolled = self
            .workloads
            .iter()
            .filter(|status| status.pod.is_some())
            .count();
        family("mesh_workloads_enrolled", "gauge", one(enrolled as u64));
        let counters = self.datapath.counters();
        let counters = counters
            .into_iter()
            .map(|(name, value)| (format!("{{outcome=\"{name}\"}}"), value));
        family(
            "mesh_datapath_connections_total",
            "counter",
            counters.collect(),
        );
        let maps = self.datapath.maps();
        let entries = maps
            .iter()
            .map(|map| (format!("{{map=\"{}\"}}", map.name), map.entries as u64));
        family("mesh_bpf_map_entries", "gauge", entries.collect());
        let capacity = maps
            .iter()
            .map(|map| (format!("{{map=\"{}\"}}", map.name), u64::from(map.capacity)));
        family("mesh_bpf_map_capacity", "gauge", capacity.collect());
        let proxy = self.proxy;
        family(
            "envoy_listener_downstream_cx_total",
            "counter",
            one(load(&proxy.downstream_cx_total)),
        );
        family(
            "envoy_listener_downstream_cx_active",
            "gauge",
            one(load(&proxy.downstream_cx_active)),
        );
        family(
            "envoy_http_downstream_rq_total",
            "counter",
            one(load(&proxy.downstream_rq_total)),
        );
        family(
            "envoy_http_downstream_rq_active",
            "gauge",
            one(load(&proxy.downstream_rq_active)),
        );
        let classes = proxy.downstream_rq_xx.iter().enumerate().skip(1);
        let classes = classes.map(|(class, counter)| {
            (
                format!("{{envoy_response_code_class=\"{class}\"}}"),
                load(counter),
            )
        });
        family("envoy_http_downstream_rq_xx", "counter", classes.collect());
        family("envoy_http_no_route", "counter", one(load(&proxy.no_route)));
        family(
            "envoy_http_no_cluster",
            "counter",
            one(load(&proxy.no_cluster)),
        );
        family(
            "envoy_rbac_denied",
            "counter",
            one(load(&proxy.rbac_denied)),
        );
        for (name, value) in proxy.ssl.all() {
            family(&format!("envoy_listener_{name}"), "counter", one(value));
        }
        for (name, counter) in [
            ("envoy_http_rbac_allowed", &proxy.rbac_http_allowed),
            ("envoy_http_rbac_denied", &proxy.rbac_http_denied),
            ("envoy_http_rbac_shadow_allowed", &proxy.rbac_shadow_allowed),
            ("envoy_http_rbac_shadow_denied", &proxy.rbac_shadow_denied),
        ] {
            family(name, "counter", one(load(counter)));
        }
        family(
            "mesh_trust_withdrawn_total",
            "counter",
            one(load(&proxy.ssl_trust_withdrawn)),
        );
        for (name, gauge, counter) in proxy.hbone.all() {
            let kind = if gauge { "gauge" } else { "counter" };
            family(name, kind, one(load(counter)));
        }
        family(
            "mesh_no_original_dst_total",
            "counter",
            one(load(&proxy.no_original_dst)),
        );
        family(
            "mesh_proxy_panics_total",
            "counter",
            one(load(&proxy.panics)),
        );
        family(
            "mesh_short_circuits_total",
            "counter",
            one(load(&proxy.short_circuits)),
        );
        let written = self.access_log;
        for (name, counter) in [
            ("mesh_access_log_lines_written_total", &written.written),
            ("mesh_access_log_lines_dropped_total", &written.dropped),
            ("mesh_access_log_lines_failed_total", &written.failed),
            ("envoy_filesystem_reopen_failed", &written.reopen_failed),
        ] {
            family(name, "counter", one(load(counter)));
        }
        type Read = fn(&crate::snapshot::cluster::ClusterStats) -> &AtomicU64;
        let per_cluster: [(&str, &str, Read); 31] = [
            ("upstream_cx_total", "counter", |stats| {
                &stats.upstream_cx_total
            }),
            ("upstream_cx_active", "gauge", |stats| {
                &stats.upstream_cx_active
            }),
            ("upstream_cx_connect_fail", "counter", |stats| {
                &stats.upstream_cx_connect_fail
            }),
            ("upstream_cx_connect_timeout", "counter", |stats| {
                &stats.upstream_cx_connect_timeout
            }),
            (
                "upstream_cx_connect_attempts_exceeded",
                "counter",
                |stats| &stats.upstream_cx_connect_attempts_exceeded,
            ),
            ("ssl_handshake", "counter", |stats| &stats.ssl.handshake),
            ("ssl_session_reused", "counter", |stats| {
                &stats.ssl.session_reused
            }),
            ("ssl_connection_error", "counter", |stats| {
                &stats.ssl.connection_error
            }),
            ("ssl_fail_verify_error", "counter", |stats| {
                &stats.ssl.fail_verify_error
            }),
            ("ssl_fail_verify_san", "counter", |stats| {
                &stats.ssl.fail_verify_san
            }),
            ("ssl_connect_timeout", "counter", |stats| {
                &stats.ssl.connect_timeout
            }),
            ("upstream_cx_overflow", "counter", |stats| {
                &stats.upstream_cx_overflow
            }),
            ("upstream_cx_rx_bytes_total", "counter", |stats| {
                &stats.upstream_cx_rx_bytes_total
            }),
            ("upstream_cx_tx_bytes_total", "counter", |stats| {
                &stats.upstream_cx_tx_bytes_total
            }),
            ("upstream_rq_total", "counter", |stats| {
                &stats.upstream_rq_total
            }),
            ("upstream_rq_active", "gauge", |stats| {
                &stats.upstream_rq_active
            }),
            ("upstream_rq_timeout", "counter", |stats| {
                &stats.upstream_rq_timeout
            }),
            ("upstream_rq_per_try_timeout", "counter", |stats| {
                &stats.upstream_rq_per_try_timeout
            }),
            ("upstream_rq_pending_overflow", "counter", |stats| {
                &stats.upstream_rq_pending_overflow
            }),
            ("upstream_rq_retry", "counter", |stats| {
                &stats.upstream_rq_retry
            }),
            ("upstream_rq_retry_success", "counter", |stats| {
                &stats.upstream_rq_retry_success
            }),
            ("upstream_rq_retry_overflow", "counter", |stats| {
                &stats.upstream_rq_retry_overflow
            }),
            (
                "upstream_internal_redirect_succeeded_total",
                "counter",
                |stats| &stats.upstream_internal_redirect_succeeded_total,
            ),
            (
                "upstream_internal_redirect_failed_total",
                "counter",
                |stats| &stats.upstream_internal_redirect_failed_total,
            ),
            ("upstream_rq_retry_limit_exceeded", "counter", |stats| {
                &stats.upstream_rq_retry_limit_exceeded
            }),
            (
                "outlier_detection_ejections_enforced_total",
                "counter",
                |stats| &stats.outlier.ejections_enforced_total,
            ),
            ("outlier_detection_ejections_overflow", "counter", |stats| {
                &stats.outlier.ejections_overflow
            }),
            ("health_check_attempt", "counter", |stats| {
                &stats.health_check_attempt
            }),
            ("health_check_success", "counter", |stats| {
                &stats.health_check_success
            }),
            ("health_check_failure", "counter", |stats| {
                &stats.health_check_failure
            }),
            ("upstream_cx_none_healthy", "counter", |stats| {
                &stats.upstream_cx_none_healthy
            }),
        ];
        for (name, kind, read) in per_cluster {
            let samples = self
                .snapshot
                .views
                .values()
                .flat_map(|view| view.clusters.iter().map(|(name, of)| (view.id, name, of)))
                .map(|(view, cluster, of)| {
                    let kernel = self.datapath.connections(view, of);
                    let kernel = match name {
                        "upstream_cx_total" => kernel.total,
                        "upstream_cx_active" => kernel.active,
                        "upstream_cx_overflow" => kernel.overflow,
                        _ => 0,
                    };
                    (
                        format!("{{envoy_cluster_name=\"{cluster}\"}}"),
                        load(read(&of.state.stats)) + kernel,
                    )
                })
                .collect();
            family(&format!("envoy_cluster_{name}"), kind, samples);
        }
        super::responses::prometheus(self.snapshot, &mut out);
        self.requests.prometheus(&mut out);
        self.telemetry.prometheus(&mut out);
        out
    }
}

/// The capture settings under their names in the file.
fn capture(capture: &Capture) -> Value {
    fn all_or<T: ToString>(setting: &AllOr<T>) -> Value {
        match setting {
            AllOr::All => json!("*"),
            AllOr::Only(values) => list(values),
        }
    }
    fn list<T: ToString>(values: &[T]) -> Value {
        values.iter().map(ToString::to_string).collect()
    }
    json!({
        "include_outbound_cidrs": all_or(&capture.include_outbound_cidrs),
        "exclude_outbound_cidrs": list(&capture.exclude_outbound_cidrs),
        "include_outbound_ports": capture.include_outbound_ports,
        "exclude_outbound_ports": capture.exclude_outbound_ports,
        "include_inbound_ports": all_or(&capture.include_inbound_ports),
        "exclude_inbound_ports": capture.exclude_inbound_ports,
    })
}

/// As Envoy's `/clusters` has them.
fn health_flags(host: &Host) -> String {
    let mut flags = String::new();
    if host.outlier.ejected() {
        flags.push_str("/failed_outlier_check");
    }
    if let Some(checked) = &host.checked {
        match checked.health() {
            Health::Healthy => {}
            Health::Degraded => flags.push_str("/degraded_active_hc"),
            Health::Unhealthy => flags.push_str("/failed_active_hc"),
        }
        if checked.timed_out() {
            flags.push_str("/active_hc_timeout");
        }
        if checked.pending() {
            flags.push_str("/pending_active_hc");
        }
    }
    match host.health {
        Health::Healthy => {}
        Health::Degraded => flags.push_str("/degraded_eds_health"),
        Health::Unhealthy => flags.push_str("/failed_eds_health"),
    }
    if flags.is_empty() {
        flags.push_str("healthy");
    }
    flags
}

fn host_stats(state: &crate::snapshot::cluster::HostState) -> [(&'static str, u64); 5] {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    [
        ("cx_active", load(&state.cx_active)),
        ("cx_connect_fail", load(&state.cx_connect_fail)),
        ("cx_total", load(&state.cx_total)),
        ("rq_error", load(&state.rq_error)),
        ("rq_total", load(&state.rq_total)),
    ]
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
