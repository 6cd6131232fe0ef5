//! An entry written as a line, for `cargo xtask bench micro`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method};

use crate::config::model::access_log::AccessLogs;
use crate::config::model::listener::Terminal;
use crate::config::model::response_flag::ResponseFlags;
use crate::snapshot::View;

use super::entry::{Addresses, Entry, Fields, Kind, RequestHead, Spans};

/// The access logs of a listener.
#[derive(Debug)]
pub struct Lines(Arc<AccessLogs>);

impl Lines {
    /// Those of the first HTTP filter chain of a view's listener.
    pub fn of(view: &View, destination: SocketAddr) -> Option<Self> {
        let listener = view.outbound.find(destination)?;
        let mut chains = listener.filter_chains.iter();
        chains.find_map(|chain| match &chain.terminal {
            Terminal::Http(hcm) => Some(Self(hcm.access_logs.clone())),
            Terminal::Tcp(_) => None,
        })
    }

    /// Writes a request's entry as every log has it; returns how many bytes that were.
    pub fn write(&self, started: SystemTime, out: &mut Vec<u8>) -> usize {
        let nowhere = SocketAddr::from(([10, 0, 0, 1], 4711));
        let headers = [
            ("user-agent", "curl/8.14.1"),
            ("x-request-id", "7b6ef9ab-6a4e-4e37-9f13-6f3bb6a8d7f0"),
            ("x-forwarded-for", "10.1.2.3"),
        ];
        let request = RequestHead {
            method: Method::GET,
            path: HeaderValue::from_static("/items/7?x=1"),
            authority: HeaderValue::from_static("a.test"),
            scheme: "http",
            headers: headers
                .map(|(name, value)| {
                    let name = HeaderName::from_static(name);
                    (name, HeaderValue::from_static(value))
                })
                .into_iter()
                .collect(),
        };
        let entry = Entry {
            kind: Kind::Request,
            started,
            spans: Spans {
                whole: Duration::from_millis(12),
                request: Some(Duration::from_millis(3)),
                response: Some(Duration::from_millis(9)),
                complete: true,
            },
            bytes_received: 5,
            bytes_sent: 1234,
            protocol: Some("HTTP/1.1"),
            status: Some(200),
            details: "via_upstream",
            termination: "",
            flags: ResponseFlags::default(),
            attempts: 1,
            route: "default",
            chain: "",
            cluster: Some("outbound|80||a.test"),
            transport_failure: None,
            addresses: Addresses {
                remote: nowhere,
                direct_remote: nowhere,
                local: nowhere,
                upstream: Some(nowhere),
                upstream_local: Some(nowhere),
            },
            request: Some(request.head()),
            response: Fields::NONE,
            trailers: Fields::NONE,
            local_reply: &[],
            grpc_status: None,
            metadata: &BTreeMap::new(),
            server_name: None,
            certificate: None,
            local_identity: None,
            connection_id: 9,
            peers: [None, None],
        };
        let before = out.len();
        for log in &self.0.logs {
            if log
                .filter
                .as_ref()
                .is_none_or(|filter| filter.holds(&entry))
            {
                log.format.write(&entry, out);
            }
        }
        out.len() - before
    }
}
