//! Istio's labels.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::peer::Peer;

const UNKNOWN: &str = "unknown";

/// A label's value as Prometheus' text format has it.
pub(crate) fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    let value = value.replace('\\', "\\\\");
    value.replace('"', "\\\"").replace('\n', "\\n").into()
}

/// Both ends of a connection that the agent did not carry.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) reporter: Reporter,
    pub(super) source: Peer,
    pub(super) destination: Peer,
    pub(super) service: Service,
}

/// Which end tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reporter {
    /// The client's side.
    Source,
    /// The server's.
    Destination,
}

/// What a cluster's name says of the service behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Service {
    /// `reviews.default.svc.cluster.local`
    pub(super) host: Option<String>,
    /// `reviews`
    pub(super) name: Option<String>,
    /// `default`
    pub(super) namespace: Option<String>,
}

impl Service {
    /// Istio: `outbound|PORT|SUBSET|HOST`; any other cluster stands for itself.
    pub(super) fn of_cluster(cluster: &str) -> Self {
        let parts: Vec<&str> = cluster.split('|').collect();
        // `inbound|PORT||` says nothing.
        if let [_, _, _, ""] = parts[..] {
            return Self::default();
        }
        let [_, _, _, host] = parts[..] else {
            return Self {
                host: Some(cluster.to_owned()),
                name: Some(cluster.to_owned()),
                namespace: None,
            };
        };
        let labels: Vec<&str> = host.split('.').collect();
        let (name, namespace) = match labels[..] {
            [name, namespace, "svc", ..] => (name, Some(namespace.to_owned())),
            _ => (host, None),
        };
        Self {
            host: Some(host.to_owned()),
            name: Some(name.to_owned()),
            namespace,
        }
    }
}

/// `{reporter="source",...}`, in the order of Istio's documentation.
pub(super) fn render(ends: &Ends) -> String {
    let mut out = Rendering::new();
    let (reporter, security) = match ends.reporter {
        // Istio: the client's side does not know.
        Reporter::Source => ("source", None),
        Reporter::Destination => ("destination", Some("none")),
    };
    out.add("reporter", Some(reporter));
    // Nobody proved who they are: the connection is plain.
    out.peer("source", &ends.source, None);
    out.peer("destination", &ends.destination, None);
    let service = &ends.service;
    out.add("destination_service", service.host.as_deref());
    out.add("destination_service_name", service.name.as_deref());
    out.add(
        "destination_service_namespace",
        service.namespace.as_deref(),
    );
    out.add("request_protocol", Some("tcp"));
    out.add("response_flags", Some("-"));
    out.add("connection_security_policy", security);
    out.finish()
}

/// Labels on their way to text.
#[derive(Debug)]
pub(super) struct Rendering {
    text: String,
}

impl Rendering {
    pub(super) fn new() -> Self {
        Self { text: "{".into() }
    }

    /// Adds a label; one without a value is `unknown`.
    pub(super) fn add(&mut self, name: &str, value: Option<&str>) {
        let separator = if self.text.len() > 1 { "," } else { "" };
        let _ = write!(self.text, "{separator}{name}=\"");
        self.text.push_str(&escaped(value.unwrap_or(UNKNOWN)));
        self.text.push('"');
    }

    /// Adds what is known of one end.
    pub(super) fn peer(&mut self, side: &str, peer: &Peer, principal: Option<&str>) {
        for (what, value) in [
            ("workload", peer.workload.as_deref()),
            ("workload_namespace", peer.namespace.as_deref()),
            ("principal", principal),
            ("app", peer.app.as_deref()),
            ("version", peer.version.as_deref()),
            ("canonical_service", peer.service.as_deref()),
            ("canonical_revision", peer.revision.as_deref()),
            ("cluster", peer.cluster.as_deref()),
        ] {
            self.add(&format!("{side}_{what}"), value);
        }
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clusters_name_tells_the_service() {
        let istio = Service::of_cluster("outbound|9000|v1|db.prod.svc.cluster.local");
        assert_eq!(istio.host.as_deref(), Some("db.prod.svc.cluster.local"));
        assert_eq!(istio.name.as_deref(), Some("db"));
        assert_eq!(istio.namespace.as_deref(), Some("prod"));
        let entry = Service::of_cluster("outbound|443||api.example.com");
        assert_eq!(entry.name.as_deref(), Some("api.example.com"));
        assert_eq!(entry.namespace, None);
        assert_eq!(Service::of_cluster("inbound|80||"), Service::default());
        let plain = Service::of_cluster("backend");
        assert_eq!(plain.host.as_deref(), Some("backend"));
    }

    #[test]
    fn values_are_escaped_and_missing_ones_unknown() {
        let mut labels = Rendering::new();
        labels.add("a", Some("x\"y\\z\n"));
        labels.add("b", None);
        assert_eq!(labels.finish(), "{a=\"x\\\"y\\\\z\\n\",b=\"unknown\"}");
    }
}
