//! A stream of a client's tunnel: from its CONNECT request to the filter chain that serves it.
//!
//! The stream enters the filter chains that caught connections do, as Istio leads it: where the
//! configuration has a listener of its own for tunnels (`main_internal`) as plain bytes, else as a
//! connection whose mutual TLS has ended. What decides without the client's first bytes decides
//! before the request is granted, so that a client learns why it is not: 401 by access rules, 503
//! where the application cannot be reached.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};

use crate::config::model::Name;
use crate::config::model::listener::{FilterChain, Listener, Role, Terminal};
use crate::config::model::tls::DownstreamTransport;
use crate::proxy::accept::{Caught, next_id};
use crate::proxy::filter_chain::{self, Facts};
use crate::proxy::record::ConnectionRecord;
use crate::proxy::sniff::{Looking, Prefixed, sniff};
use crate::proxy::stats::{Gauge, ProxyStats, count};
use crate::proxy::stream::Stream;
use crate::proxy::upstream::{self, Options};
use crate::proxy::{ListenerKind, authz, http as proxy_http, tcp};
use crate::snapshot::View;

use super::request::{self, Told};
use super::server::Tunnel;
use super::{Changes, Tunnelled};

/// A request that is neither granted nor refused yet.
struct Asked {
    respond: SendResponse<Bytes>,
    receive: RecvStream,
}

impl Asked {
    /// `None`: the client gave it up.
    fn grant(mut self, stats: &ProxyStats) -> Option<Prefixed<Stream>> {
        let send = self.respond.send_response(Response::new(()), false).ok()?;
        count(&stats.hbone.granted);
        let stream = Tunnelled::new(send, self.receive, None);
        Some(Prefixed::new(Stream::Tunnelled(Box::new(stream))))
    }

    fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        let _ = self.respond.send_response(response, true);
    }

    /// Ends when the client gave it up.
    async fn given_up(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

/// Serves a stream to its end.
pub(super) async fn serve(
    tunnel: Rc<Tunnel>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let stats = tunnel.context.shared.stats.clone();
    count(&stats.hbone.streams);
    let _counted = Gauge::new(Open(stats.clone()));
    // From here on no change is missed.
    let mut changes = tunnel.context.hbone.changes.clone();
    changes.mark_unchanged();
    let (head, receive) = request.into_parts();
    let asked = Asked { respond, receive };
    let connect = match request::parse(&head, &tunnel.pod.ips) {
        Ok(connect) => connect,
        Err(refusal) => {
            tracing::debug!(from = %tunnel.from, uri = %head.uri, %refusal, "a stream is refused");
            let counter = match refusal.status() {
                StatusCode::BAD_REQUEST => &stats.hbone.bad_request,
                _ => &stats.hbone.unavailable,
            };
            count(counter);
            return asked.refuse(refusal.status());
        }
    };
    let told = Told::of(&head.headers);
    tracing::debug!(
        from = %tunnel.from,
        destination = %connect.destination,
        names = ?tunnel.peer.names,
        namespace = told.namespace,
        workload = told.workload,
        host = told.host,
        trace = told.trace,
        "a stream"
    );
    let stream = Connection {
        caught: Caught {
            pod: tunnel.pod.clone(),
            kind: ListenerKind::Hbone,
            peer: tunnel.from,
            destination: connect.destination,
            id: next_id(),
        },
        tunnel,
        stats,
    };
    Box::pin(stream.serve(asked, changes)).await;
}

/// Counts streams.
struct Open(Arc<ProxyStats>);

impl AsRef<std::sync::atomic::AtomicU64> for Open {
    fn as_ref(&self) -> &std::sync::atomic::AtomicU64 {
        &self.0.hbone.streams_active
    }
}

/// The configuration that a stream is served by.
#[derive(Clone, Copy)]
struct On<'a> {
    view: &'a Arc<View>,
    listener: &'a Arc<Listener>,
}

/// A connection that a stream carries.
struct Connection {
    tunnel: Rc<Tunnel>,
    caught: Caught,
    stats: Arc<ProxyStats>,
}

impl Connection {
    async fn serve(&self, asked: Asked, changes: Changes) {
        let Some(view) = self.tunnel.context.shared.view(&self.caught.pod) else {
            count(&self.stats.hbone.unavailable);
            return asked.refuse(StatusCode::SERVICE_UNAVAILABLE);
        };
        let mut facts = self.facts("raw_buffer");
        let mut record = ConnectionRecord::begin(&self.tunnel.context, &self.caught);
        record.peer(&self.tunnel.peer);
        let serving = async {
            match view.behind_tunnels() {
                Some(listener) => {
                    record.tell(&listener.access_logs);
                    let on = On {
                        view: &view,
                        listener,
                    };
                    self.listened(on, &mut facts, asked, &mut record).await;
                }
                None => self.passed(asked).await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = self.revoked(changes) => {
                count(&self.stats.hbone.revoked);
                tracing::debug!(caught = ?self.caught, "new rules end a stream");
            }
        }
    }

    fn facts(&self, transport_protocol: &'static str) -> Facts {
        Facts {
            destination: self.caught.destination,
            source: self.caught.peer,
            local: self.caught.pod.ips.contains(&self.caught.peer.ip()),
            transport_protocol,
            server_name: None,
            application_protocols: Vec::new(),
        }
    }

    /// No listener says anything of inbound connections.
    async fn passed(&self, mut asked: Asked) {
        let options = Options::default();
        let connected = tokio::select! {
            connected = upstream::connect(&self.caught.pod, self.caught.destination, &options) => connected,
            () = asked.given_up() => return,
        };
        match connected {
            Ok(upstream) => {
                let Some(stream) = asked.grant(&self.stats) else {
                    return;
                };
                let upstream = Stream::Plain(upstream);
                tcp::copy(&self.tunnel.context, stream, upstream, None).await;
            }
            Err(_) => {
                count(&self.stats.hbone.unavailable);
                asked.refuse(StatusCode::SERVICE_UNAVAILABLE);
            }
        }
    }

    async fn listened(
        &self,
        on: On<'_>,
        facts: &mut Facts,
        asked: Asked,
        record: &mut ConnectionRecord,
    ) {
        let candidates = self.candidates(on.listener, facts);
        if candidates.iter().any(|chain| asks_for_http(chain)) {
            if let Some(policy) = self.all_deny(candidates.iter().copied()) {
                return self.deny(asked, &policy, record);
            }
            let Some(mut stream) = asked.grant(&self.stats) else {
                return;
            };
            if self.sniff(on.listener, facts, &mut stream).await.is_err() {
                return stream.get_mut().reset();
            }
            let Some(chain) = filter_chain::select(on.listener, facts) else {
                count(&self.stats.no_filter_chain_match);
                record.unmatched();
                return stream.get_mut().reset();
            };
            if let Err(policy) = self.allows(chain) {
                count(&self.stats.rbac_denied);
                record.denied(&policy);
                return stream.get_mut().reset();
            }
            return self.serve_granted(on, chain, stream, record).await;
        }
        let Some(chain) = filter_chain::select(on.listener, facts) else {
            count(&self.stats.no_filter_chain_match);
            count(&self.stats.hbone.unavailable);
            record.unmatched();
            return asked.refuse(StatusCode::SERVICE_UNAVAILABLE);
        };
        if let Err(policy) = self.allows(chain) {
            return self.deny(asked, &policy, record);
        }
        self.serve_asked(on, chain, asked, record).await;
    }

    /// The chains that may take it, and what it is to them.
    fn candidates<'a>(&self, listener: &'a Listener, facts: &mut Facts) -> Vec<&'a FilterChain> {
        if !matches!(listener.role, Role::Internal) {
            facts.transport_protocol = "tls";
            // Istio's protocol for bytes without a protocol of their own.
            facts.application_protocols = tcp_protocols();
            let candidates = filter_chain::candidates(listener, facts);
            if !candidates.is_empty() {
                return candidates;
            }
            // Mutual TLS is not asked for here, and does no harm.
            facts.transport_protocol = "raw_buffer";
            facts.application_protocols = Vec::new();
        }
        filter_chain::candidates(listener, facts)
    }

    /// Whether the chain's names and access rules let the client in; `Err`: what denies it.
    fn allows(&self, chain: &FilterChain) -> Result<(), Name> {
        let names = self.tunnel.peer.names.as_deref();
        if let DownstreamTransport::Tls(tls) = &chain.transport {
            let wanted = tls.common.validation.as_ref();
            let wanted = wanted.map_or(&[][..], |validation| &validation.names);
            let known = self.tunnel.peer.certificate.iter();
            let mut known = known.flat_map(|certificate| &certificate.names);
            let does = known.any(|(kind, name)| wanted.iter().any(|one| one.matches(*kind, name)));
            if !wanted.is_empty() && !does {
                return Err("match_subject_alt_names".into());
            }
        }
        authz::allows(chain, &self.caught, "", names)
    }

    /// What denies it, if every one of these chains does.
    fn all_deny<'a>(&self, chains: impl Iterator<Item = &'a FilterChain>) -> Option<Name> {
        let mut denied = Name::from("");
        for chain in chains {
            denied = self.allows(chain).err()?;
        }
        Some(denied)
    }

    fn deny(&self, asked: Asked, policy: &str, record: &mut ConnectionRecord) {
        count(&self.stats.rbac_denied);
        count(&self.stats.hbone.denied);
        record.denied(policy);
        asked.refuse(StatusCode::UNAUTHORIZED);
    }

    /// Learns the protocol from the first bytes.
    async fn sniff(
        &self,
        listener: &Listener,
        facts: &mut Facts,
        stream: &mut Prefixed<Stream>,
    ) -> std::io::Result<()> {
        let port = self.caught.destination.port();
        let mutual = facts.transport_protocol == "tls";
        let looking = Looking {
            tls: !mutual && listener.inspect.tls.looks_at(port),
            http: mutual || listener.inspect.http.looks_at(port),
        };
        let sniffed = sniff(stream, listener, looking).await?;
        if !mutual {
            facts.learn(sniffed);
            return Ok(());
        }
        facts.application_protocols = match sniffed.application_protocols.first() {
            Some(http) if http == "h2c" => vec!["istio-h2".to_owned()],
            Some(http) => vec![format!("istio-{http}")],
            None => tcp_protocols(),
        };
        Ok(())
    }

    async fn serve_asked(
        &self,
        on: On<'_>,
        chain: &FilterChain,
        mut asked: Asked,
        record: &mut ConnectionRecord,
    ) {
        let context = &self.tunnel.context;
        let Terminal::Tcp(proxy) = &chain.terminal else {
            let Some(stream) = asked.grant(&self.stats) else {
                return;
            };
            return self.serve_granted(on, chain, stream, record).await;
        };
        record.chain(&chain.name);
        record.tell(&proxy.access_logs);
        let connected = tokio::select! {
            connected = tcp::connect_upstream(context, &self.caught, on.view, proxy, record) => connected,
            () = asked.given_up() => return,
        };
        let Some(upstream) = connected else {
            count(&self.stats.hbone.unavailable);
            return asked.refuse(StatusCode::SERVICE_UNAVAILABLE);
        };
        if let Some(stream) = asked.grant(&self.stats) {
            tcp::carry(context, proxy, stream, upstream, None, record).await;
        }
    }

    async fn serve_granted(
        &self,
        on: On<'_>,
        chain: &FilterChain,
        stream: Prefixed<Stream>,
        record: &mut ConnectionRecord,
    ) {
        let context = &self.tunnel.context;
        record.chain(&chain.name);
        match &chain.terminal {
            Terminal::Tcp(proxy) => {
                record.tell(&proxy.access_logs);
                tcp::serve(context, &self.caught, on.view, proxy, stream, None, record).await;
            }
            Terminal::Http(hcm) => {
                let place = proxy_http::Place {
                    listener: on.listener.name.clone(),
                    chain: chain.name.clone(),
                    key: chain.key,
                    peer: self.tunnel.peer.clone(),
                };
                let (caught, hcm) = (self.caught.clone(), hcm.clone());
                let serving = proxy_http::serve(context.clone(), caught, hcm, place, stream);
                Box::pin(serving).await;
            }
        }
    }

    /// Ends when the client would not be let in any more.
    async fn revoked(&self, mut changes: Changes) {
        loop {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let Some(view) = self.tunnel.context.shared.view(&self.caught.pod) else {
                continue;
            };
            let Some(listener) = view.behind_tunnels() else {
                continue;
            };
            let mut facts = self.facts("raw_buffer");
            let candidates = self.candidates(listener, &mut facts);
            let default = listener.default_filter_chain.as_ref();
            if self
                .all_deny(candidates.into_iter().chain(default))
                .is_some()
            {
                return;
            }
        }
    }
}

/// What an Istio client offers for bytes that are not HTTP.
fn tcp_protocols() -> Vec<String> {
    vec!["istio-peer-exchange".to_owned(), "istio".to_owned()]
}

/// Whether only the first bytes tell whether a chain takes a connection.
fn asks_for_http(chain: &FilterChain) -> bool {
    chain
        .matcher
        .application_protocols
        .iter()
        .any(|protocol| protocol.contains("http") || protocol.contains("h2"))
}
