//! Which listener takes a caught connection.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::model::canonical;
use crate::config::model::listener::Listener;

/// The outbound listeners of a view, by original destination.
///
/// Envoy's order (`ConnectionHandlerImpl::getBalancedHandlerByAddress`): the exact address and
/// port, then the wildcard address with that port, then the listener that set
/// `use_original_dst` (Istio's `virtualOutbound`).
#[derive(Debug, Default)]
pub struct OutboundListeners {
    exact: HashMap<SocketAddr, Arc<Listener>>,
    wildcard_v4: HashMap<u16, Arc<Listener>>,
    wildcard_v6: HashMap<u16, Arc<Listener>>,
    catch_all: Option<Arc<Listener>>,
}

impl OutboundListeners {
    /// Indexes the outbound listeners. Of two for one address the first one stays.
    pub fn new(listeners: impl IntoIterator<Item = Arc<Listener>>) -> Self {
        let mut index = Self::default();
        for listener in listeners {
            if listener.use_original_dst {
                index.catch_all.get_or_insert(listener);
                continue;
            }
            for address in &listener.addresses {
                let ip = canonical(address.ip);
                let port = address.port;
                match ip {
                    IpAddr::V4(ip) if ip.is_unspecified() => {
                        index
                            .wildcard_v4
                            .entry(port)
                            .or_insert_with(|| listener.clone());
                    }
                    IpAddr::V6(ip) if ip.is_unspecified() => {
                        // Like a dual-stack socket, `::` also takes IPv4 unless `0.0.0.0` does.
                        index
                            .wildcard_v6
                            .entry(port)
                            .or_insert_with(|| listener.clone());
                    }
                    ip => {
                        let address = SocketAddr::new(ip, port);
                        index
                            .exact
                            .entry(address)
                            .or_insert_with(|| listener.clone());
                    }
                }
            }
        }
        index
    }

    /// The listener for a connection to `destination`; `None`: no listener wants it.
    pub fn find(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let ip = canonical(destination.ip());
        let port = destination.port();
        self.exact
            .get(&SocketAddr::new(ip, port))
            .or_else(|| self.exact.get(&SocketAddr::new(ip, 0)))
            .or_else(|| match ip {
                IpAddr::V4(_) => self
                    .wildcard_v4
                    .get(&port)
                    .or_else(|| self.wildcard_v6.get(&port)),
                IpAddr::V6(_) => self.wildcard_v6.get(&port),
            })
            .or(self.catch_all.as_ref())
    }

    /// Listeners of exact addresses; port 0 stands for every port.
    pub fn exact(&self) -> impl Iterator<Item = (SocketAddr, &Arc<Listener>)> {
        self.exact
            .iter()
            .map(|(address, listener)| (*address, listener))
    }

    /// Listeners of `0.0.0.0` by port.
    pub fn wildcard_v4(&self) -> impl Iterator<Item = (u16, &Arc<Listener>)> {
        self.wildcard_v4
            .iter()
            .map(|(port, listener)| (*port, listener))
    }

    /// Listeners of `::` by port.
    pub fn wildcard_v6(&self) -> impl Iterator<Item = (u16, &Arc<Listener>)> {
        self.wildcard_v6
            .iter()
            .map(|(port, listener)| (*port, listener))
    }

    /// The `use_original_dst` listener.
    pub fn catch_all(&self) -> Option<&Arc<Listener>> {
        self.catch_all.as_ref()
    }
}
