//! Endpoints that are pods of this node: their side of a connection is served in the same pass.
//!
//! What would happen at the server's pod is worked out without its sockets: the filter chain that
//! would take the connection, who the client would be to it, and whether it would let the client
//! in. The client's identity is that of its namespace, which the kernel told when it redirected
//! the connection. Whatever is out of the ordinary, a refusal included, goes the long way, which
//! answers for itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::model::listener::{FilterChain, Listener, Terminal};
use crate::config::model::tls::{DownstreamTransport, UpstreamTransport};
use crate::config::model::workload::ShortCircuit;
use crate::snapshot::ClusterView;
use crate::workload::{Pod, PodId};

use super::accept::Caught;
use super::filter_chain::{self, Facts};
use super::lb::Target;
use super::tls::{self, Offer, Peer};
use super::worker::Context;
use super::{ListenerKind, authz};

/// For how long an introduction holds: certificates end.
const FRESH: Duration = Duration::from_secs(10);

/// The pods of this node by address.
#[derive(Debug, Default)]
pub(super) struct LocalPods(RefCell<HashMap<IpAddr, Arc<Pod>>>);

impl LocalPods {
    /// A pod came.
    pub(super) fn add(&self, pod: &Arc<Pod>) {
        let mut pods = self.0.borrow_mut();
        pods.extend(pod.ips.iter().map(|ip| (*ip, pod.clone())));
    }

    /// A pod went.
    pub(super) fn remove(&self, id: PodId) {
        self.0.borrow_mut().retain(|_, pod| pod.id != id);
    }

    fn at(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        self.0.borrow().get(&ip).cloned()
    }
}

/// What is spoken to the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Nobody knows what.
    Tcp,
    /// HTTP/1.1
    Http1,
    /// HTTP/2
    Http2,
}

impl Speaks {
    /// What an HTTP inspector would see of plain bytes.
    fn sniffed(self) -> Option<&'static str> {
        match self {
            Self::Tcp => None,
            Self::Http1 => Some("http/1.1"),
            Self::Http2 => Some("h2c"),
        }
    }
}

/// A connection that has come to the server's pod.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// As the server's pod would have caught it.
    pub(super) caught: Caught,
    /// The listener that takes it.
    pub(super) listener: Arc<Listener>,
    /// The name of its filter chain.
    pub(super) chain: crate::config::model::Name,
    /// Its [`key`](crate::config::model::listener::FilterChain::key).
    pub(super) key: u64,
    /// What serves it.
    pub(super) terminal: Terminal,
    /// Who the client is.
    pub(super) peer: Peer,
    /// What its filter chain was chosen by.
    pub(super) facts: Facts,
    made: Made,
}

/// What an arrival was worked out from.
#[derive(Debug, Clone)]
struct Made {
    at: Instant,
    generation: u64,
    transport: usize,
    offer: usize,
    speaks: Speaks,
}

/// A way to an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) caught: &'a Caught,
    pub(super) cluster: &'a ClusterView,
    pub(super) target: &'a Target,
    pub(super) offer: Option<&'a Offer>,
    pub(super) speaks: Speaks,
}

impl Way<'_> {
    /// Whether the endpoint is a pod of this node whose connections to that port are caught.
    fn pod(&self, context: &Context) -> Option<Arc<Pod>> {
        if self.caught.kind != ListenerKind::Outbound
            || context.shared.snapshots.load().node.short_circuit == ShortCircuit::Off
        {
            return None;
        }
        let to = self.target.address();
        let pod = context.locals.at(to.ip())?;
        // A pod speaks to itself without its sidecar's inbound side, too.
        let itself = pod.id == self.caught.pod.id;
        (!itself && pod.workload.capture.takes_inbound(to.port())).then_some(pod)
    }

    fn transport(&self) -> usize {
        match self.target.transport(self.cluster) {
            UpstreamTransport::Tls(tls) => Arc::as_ptr(tls).addr(),
            _ => 0,
        }
    }

    /// The server's side of the connection; `None`: it goes the long way. `known` is what it was
    /// before, which holds as long as everything that decided is the same.
    pub(super) fn arrive(&self, context: &Rc<Context>, known: Option<&Arrival>) -> Option<Arrived> {
        let pod = self.pod(context)?;
        let listener = context.shared.view(&pod)?.inbound.clone()?;
        let offer = self.offer.map_or(0, |offer| Arc::as_ptr(offer).addr());
        let made = Made {
            at: Instant::now(),
            generation: context.tls.generation(),
            transport: self.transport(),
            offer,
            speaks: self.speaks,
        };
        if let Some(known) = known
            && known.holds(&pod, &listener, self.target.address(), &made)
        {
            return Some(Arrived::AsBefore);
        }
        let mut facts = Facts {
            destination: self.target.address(),
            source: self.caught.peer,
            local: false,
            transport_protocol: "raw_buffer",
            server_name: None,
            application_protocols: Vec::new(),
        };
        let port = facts.destination.port();
        let upstream = self.target.transport(self.cluster);
        match upstream {
            UpstreamTransport::Tls(tls) if listener.inspect.tls.looks_at(port) => {
                facts.transport_protocol = "tls";
                facts.server_name = tls.sni.as_deref().map(str::to_ascii_lowercase);
                facts.application_protocols = tls::offers(tls, self.offer);
            }
            UpstreamTransport::Plain => match self.speaks.sniffed() {
                Some(protocol) if listener.inspect.http.looks_at(port) => {
                    facts.application_protocols.push(protocol.to_owned());
                }
                // Only the bytes would tell.
                None if filter_chain::needs_sniffing(&listener, &facts) => return None,
                _ => {}
            },
            _ => return None,
        }
        let chain = filter_chain::select(&listener, &facts)?;
        let peer = self.introduced(context, &pod, chain)?;
        let caught = Caught {
            pod,
            kind: ListenerKind::Inbound,
            peer: self.caught.peer,
            destination: facts.destination,
            id: self.caught.id,
        };
        let server_name = facts.server_name.as_deref().unwrap_or_default();
        authz::allows(chain, &caught, server_name, peer.names.as_deref()).ok()?;
        Some(Arrived::Anew(Box::new(Arrival {
            caught,
            chain: chain.name.clone(),
            key: chain.key,
            terminal: chain.terminal.clone(),
            listener,
            peer,
            facts,
            made,
        })))
    }

    /// Who the client is to the chain.
    fn introduced(&self, context: &Context, pod: &Pod, chain: &FilterChain) -> Option<Peer> {
        match (self.target.transport(self.cluster), &chain.transport) {
            (UpstreamTransport::Plain, DownstreamTransport::Plain) => Some(Peer::default()),
            (UpstreamTransport::Tls(client), DownstreamTransport::Tls(server)) => {
                let client_id = context.tls.identity(&self.caught.pod.workload);
                let server_id = context.tls.identity(&pod.workload);
                context
                    .tls
                    .introduce((client, &client_id), (server, &server_id))
            }
            _ => None,
        }
    }
}

/// What became of a connection.
#[derive(Debug)]
pub(super) enum Arrived {
    /// What is known of it holds.
    AsBefore,
    /// It was worked out anew.
    Anew(Box<Arrival>),
}

impl Arrival {
    /// Whether it is to this address.
    pub(super) fn is_to(&self, to: SocketAddr) -> bool {
        self.caught.destination == to
    }

    /// What is spoken.
    pub(super) fn speaks(&self) -> Speaks {
        self.made.speaks
    }

    fn holds(&self, pod: &Arc<Pod>, listener: &Arc<Listener>, to: SocketAddr, made: &Made) -> bool {
        let was = &self.made;
        Arc::ptr_eq(&self.caught.pod, pod)
            && Arc::ptr_eq(&self.listener, listener)
            && self.caught.destination == to
            && (was.generation, was.transport, was.offer, was.speaks)
                == (made.generation, made.transport, made.offer, made.speaks)
            && made.at.duration_since(was.at) < FRESH
    }
}
