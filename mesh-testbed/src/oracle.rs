//! The same HTTP through Envoy and through the agent, and what is not the same.
//!
//! One configuration of a connection manager and clusters is given to both. A request goes
//! through each from the same pod; compared are the connection's end, the responses and what the
//! upstream was asked.

use std::fmt;
use std::io::Read as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::http1::RawResponse;
use crate::wire::{Echo, End};
use crate::{Answers, Envoy, MeshAgent, Pod, Server, Talk, Testbed};

const HCM: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const ENVOY_PORT: u16 = 10_000;
const ENVOY_ADMIN: u16 = 9901;

/// Envoy and the agent with one configuration, in front of the same upstreams.
#[derive(Debug)]
pub struct Oracle {
    envoy_at: SocketAddr,
    agent_at: SocketAddr,
    talk: Talk,
    /// The agent, for its pages and log.
    pub agent: MeshAgent,
    /// Envoy, for its pages and log.
    pub envoy: Envoy,
    /// Where the clients are.
    pub client: Pod,
    envoy_pod: Pod,
    upstreams: Vec<Server>,
    /// Clusters of the upstreams.
    names: Vec<String>,
    _server: Pod,
    _testbed: Testbed,
}

/// What is configured.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Fields of the connection manager; `stat_prefix` and the router filter are added if they
    /// are not there.
    pub hcm: Value,
    /// Clusters: name and further fields. Each gets an endpoint that answers under its name,
    /// unless the fields say something of endpoints; `raw-http` if it is called `raw`, and
    /// `filter-peer` if its name begins with `peer`.
    pub clusters: Vec<(String, Value)>,
}

impl Setup {
    /// A connection manager with this route configuration and one cluster for each name.
    pub fn routes(route_config: Value, clusters: &[&str]) -> Self {
        Self {
            hcm: json!({ "route_config": route_config }),
            clusters: clusters
                .iter()
                .map(|name| ((*name).to_owned(), json!({})))
                .collect(),
        }
    }

    /// With a field of the connection manager.
    #[must_use]
    pub fn hcm(mut self, field: &str, value: Value) -> Self {
        self.hcm[field] = value;
        self
    }

    fn listener(&self, at: SocketAddr) -> Value {
        let mut hcm = self.hcm.clone();
        let defaults = json!({
            "@type": HCM,
            "stat_prefix": "oracle",
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": { "@type": ROUTER } }],
        });
        for (field, value) in defaults.as_object().into_iter().flatten() {
            if hcm.get(field).is_none() {
                hcm[field] = value.clone();
            }
        }
        json!({
            "name": "oracle",
            "traffic_direction": "OUTBOUND",
            "address": address(at),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": hcm,
            }] }],
        })
    }

    fn resources(&self, at: SocketAddr, upstreams: &[Server]) -> Value {
        let clusters: Vec<Value> = self
            .clusters
            .iter()
            .enumerate()
            .map(|(i, (name, fields))| {
                let mut cluster = fields.clone();
                cluster["name"] = json!(name);
                if cluster.get("load_assignment").is_none() && cluster.get("type").is_none() {
                    cluster["load_assignment"] = json!({
                        "cluster_name": name,
                        "endpoints": [{ "lb_endpoints": [{ "endpoint": {
                            "hostname": format!("{name}.upstream"),
                            "address": upstreams.get(i).map(|upstream| address(upstream.addr4())),
                        } }] }],
                    });
                }
                cluster
            })
            .collect();
        json!({ "listeners": [self.listener(at)], "clusters": clusters })
    }
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}

impl Oracle {
    /// Starts both and the upstreams.
    ///
    /// # Errors
    /// One of them refuses the configuration, or the testbed cannot be made.
    pub fn start(setup: &Setup) -> Result<Self> {
        let testbed = Testbed::new()?;
        let client = testbed.pod("client")?;
        let envoy_pod = testbed.pod("envoy")?;
        let server = testbed.pod("server")?;
        let upstreams = setup
            .clusters
            .iter()
            .map(|(name, _)| match name.as_str() {
                "raw" => Server::with_args(&server, &["raw-http"]),
                name if name.starts_with("peer") => Server::with_args(&server, &["filter-peer"]),
                name => Server::http(&server, name, "v1", 0),
            })
            .collect::<Result<Vec<_>>>()?;
        let agent_at = SocketAddr::new(testbed.vip4(1).into(), 80);
        let envoy_at = SocketAddr::new(envoy_pod.ip4().into(), ENVOY_PORT);
        let agent = MeshAgent::start(
            &testbed,
            &agent_config(setup, agent_at, &client, &upstreams),
        )
        .context("the agent does not start")?;
        let envoy = Envoy::start(&envoy_pod, &envoy_config(setup, &upstreams), ENVOY_ADMIN)?;
        Ok(Self {
            envoy_at,
            agent_at,
            talk: Talk::start(&client)?,
            agent,
            envoy,
            client,
            envoy_pod,
            upstreams,
            names: setup
                .clusters
                .iter()
                .map(|(name, _)| name.clone())
                .collect(),
            _server: server,
            _testbed: testbed,
        })
    }

    /// Both go on with another configuration. Clusters there were not must say where their
    /// endpoints are.
    ///
    /// # Errors
    /// One of them refuses it.
    pub fn reconfigure(&mut self, setup: &Setup) -> Result<()> {
        let generation = |agent: &MeshAgent| -> Result<String> {
            let page = agent.get("/config_dump")?;
            Ok(page.body)
        };
        let before = generation(&self.agent)?;
        let config = agent_config(setup, self.agent_at, &self.client, &self.upstreams);
        self.agent.reconfigure(&config)?;
        // Envoy has no reload of a file: a new one takes over the port.
        self.envoy.stop();
        self.envoy = Envoy::start(
            &self.envoy_pod,
            &envoy_config(setup, &self.upstreams),
            ENVOY_ADMIN,
        )?;
        let patience = std::time::Duration::from_secs(10);
        crate::eventually("the agent has the new configuration", patience, || {
            generation(&self.agent).is_ok_and(|now| now != before)
        })
    }

    /// A page of Envoy's administration.
    ///
    /// # Errors
    /// Envoy does not answer.
    pub fn envoys_page(&self, path: &str) -> Result<crate::Page> {
        self.envoy.get(&self.envoy_pod, path)
    }

    /// Where the upstream of a cluster listens.
    pub fn upstream(&self, cluster: &str) -> Option<SocketAddr> {
        let at = self.names.iter().position(|name| name == cluster)?;
        self.upstreams.get(at).map(Server::addr4)
    }

    /// How long to wait for bytes that do not come.
    pub fn set_patience(&mut self, patience: std::time::Duration) {
        self.talk.set_patience(patience);
    }

    /// One request through both.
    ///
    /// # Errors
    /// The client ended.
    pub fn ask(&mut self, request: &[u8]) -> Result<Compared> {
        Ok(Compared {
            request: request.to_vec(),
            envoy: Seen::of(self.talk.ask(self.envoy_at, request)?),
            agent: Seen::of(self.talk.ask(self.agent_at, request)?),
        })
    }

    /// Bytes in parts through both; see [`Talk::say`].
    ///
    /// # Errors
    /// The client ended.
    pub fn say(&mut self, parts: &[&[u8]], methods: &[&str]) -> Result<Compared> {
        Ok(Compared {
            request: parts.concat(),
            envoy: Seen::of(self.talk.say(self.envoy_at, parts, methods)?),
            agent: Seen::of(self.talk.say(self.agent_at, parts, methods)?),
        })
    }

    /// Where Envoy and the agent take requests, from the client's pod.
    pub fn ends(&self) -> [SocketAddr; 2] {
        [self.envoy_at, self.agent_at]
    }
}

fn agent_config(setup: &Setup, at: SocketAddr, client: &Pod, upstreams: &[Server]) -> String {
    json!({
        "workloads": [{ "name": "client", "netns": client.netns_path() }],
        "static_resources": setup.resources(at, upstreams),
    })
    .to_string()
}

fn envoy_config(setup: &Setup, upstreams: &[Server]) -> String {
    let at = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), ENVOY_PORT);
    let resources = setup.resources(at, upstreams);
    format!("static_resources: {resources}\n")
}

/// What a client and the upstream saw, without what differs by nature: times, random ids and the
/// addresses of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How the connection ended.
    pub end: End,
    /// The responses.
    pub responses: Vec<SeenResponse>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenResponse {
    /// The status code.
    pub status: u16,
    /// Sorted by name; the order of one name's values stays.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: SeenBody,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
    /// Whether the body ended as announced.
    pub whole: bool,
}

/// A body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenBody {
    /// What the upstream was asked.
    Echo(Box<Asked>),
    /// Anything else.
    Text(String),
}

/// What an upstream was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The upstream's name.
    pub name: String,
    /// Method, path and protocol.
    pub line: String,
    /// The authority.
    pub authority: Option<String>,
    /// Sorted as the response's.
    pub headers: Vec<(String, String)>,
    /// Length of the request's body.
    pub body_length: u64,
}

impl Seen {
    fn of(answers: Answers) -> Self {
        Self {
            end: answers.end,
            responses: answers
                .responses
                .into_iter()
                .map(SeenResponse::of)
                .collect(),
        }
    }

    /// A line for each thing seen.
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("connection {:?}", self.end)];
        for response in &self.responses {
            lines.push(format!(
                "status {} whole {}",
                response.status, response.whole
            ));
            let told = |(name, value): &(String, String)| format!("{name}: {value:?}");
            lines.extend(response.headers.iter().map(told));
            let trailers = response.trailers.iter().map(told);
            lines.extend(trailers.map(|line| format!("trailer {line}")));
            match &response.body {
                SeenBody::Text(text) => lines.push(format!("body {text:?}")),
                SeenBody::Echo(asked) => {
                    lines.push(format!("upstream {}: {}", asked.name, asked.line));
                    lines.push(format!("upstream authority {:?}", asked.authority));
                    lines.push(format!("upstream body of {}", asked.body_length));
                    let told = asked.headers.iter().map(told);
                    lines.extend(told.map(|line| format!("upstream {line}")));
                }
            }
        }
        lines
    }
}

impl SeenResponse {
    fn of(response: RawResponse) -> Self {
        // What is compressed is compared by what it holds; two libraries make different bytes.
        let (plain, compressed) = plain(&response);
        let body = match serde_json::from_slice::<Echo>(&plain) {
            Ok(echo) => SeenBody::Echo(Box::new(Asked {
                line: format!("{} {} {}", echo.method, echo.path, echo.protocol),
                name: echo.name,
                authority: echo.authority,
                headers: normal(echo.headers, false),
                body_length: echo.body_length,
            })),
            Err(_) => SeenBody::Text(String::from_utf8_lossy(&plain).into_owned()),
        };
        let echoed = compressed || matches!(body, SeenBody::Echo(_));
        Self {
            status: response.status,
            headers: normal(response.headers, echoed),
            body,
            trailers: response.trailers,
            whole: response.whole,
        }
    }
}

/// A response's body, decoded, and whether it was compressed.
fn plain(response: &RawResponse) -> (Vec<u8>, bool) {
    let encoding = response.headers.iter();
    let encoding = encoding.filter(|(name, _)| name == "content-encoding");
    let mut encoding = encoding.map(|(_, value)| value.as_str());
    let mut decoded = Vec::new();
    let bytes = response.body.as_slice();
    let read = match encoding.next() {
        Some("gzip") => flate2::read::GzDecoder::new(bytes).read_to_end(&mut decoded),
        Some("br") => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut decoded),
        Some("zstd") => zstd::stream::copy_decode(bytes, &mut decoded).map(|()| 0),
        _ => return (response.body.clone(), false),
    };
    match read {
        Ok(_) => (decoded, true),
        Err(_) => (response.body.clone(), false),
    }
}

/// `echoed`: the body tells ports, and its length differs with them.
fn normal(headers: Vec<(String, String)>, echoed: bool) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = headers
        .into_iter()
        .filter(|(name, _)| name != "date" && !(echoed && name == "content-length"))
        .map(|(name, value)| {
            let value = match name.as_str() {
                "x-request-id" if is_uuid(&value) => "(uuid)".to_owned(),
                "x-envoy-upstream-service-time" => "(ms)".to_owned(),
                _ => value,
            };
            (name, value)
        })
        .collect();
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    headers
}

fn is_uuid(value: &str) -> bool {
    value.len() == 36
        && value.char_indices().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == '-',
            // Istio's and Envoy's trace bits stand in the version digit.
            _ => c.is_ascii_hexdigit(),
        })
}

/// What both made of one request.
#[derive(Debug, Clone)]
pub struct Compared {
    /// The bytes sent.
    pub request: Vec<u8>,
    /// Through Envoy.
    pub envoy: Seen,
    /// Through the agent.
    pub agent: Seen,
}

impl Compared {
    /// Whether both made the same of it.
    pub fn same(&self) -> bool {
        self.envoy == self.agent
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.request[..self.request.len().min(600)];
        writeln!(f, "request: {}", shown.escape_ascii())?;
        let (envoy, agent) = (self.envoy.lines(), self.agent.lines());
        let sorted = |lines: &[String]| {
            let mut lines = lines.to_vec();
            lines.sort();
            lines
        };
        if sorted(&envoy) == sorted(&agent) {
            writeln!(
                f,
                "  in another order, envoy: {envoy:#?}\n  agent: {agent:#?}"
            )?;
        }
        for line in &envoy {
            if !agent.contains(line) {
                writeln!(f, "  envoy: {line}")?;
            }
        }
        for line in &agent {
            if !envoy.contains(line) {
                writeln!(f, "  agent: {line}")?;
            }
        }
        if envoy.iter().all(|line| agent.contains(line))
            && agent.iter().all(|line| envoy.contains(line))
            && envoy.len() != agent.len()
        {
            writeln!(
                f,
                "  another number, envoy: {envoy:#?}\n  agent: {agent:#?}"
            )?;
        }
        Ok(())
    }
}
