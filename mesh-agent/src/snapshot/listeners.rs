//! Which listener takes a caught connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::config::model::listener::{Listener, Terminal};
use crate::config::model::{Name, canonical};

/// Stands for every destination that has no listener.
pub const ANYTHING: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];

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
    /// Whose TCP connections may go to a cluster.
    users: HashMap<Name, Vec<(SocketAddr, Arc<Listener>)>>,
}

impl OutboundListeners {
    /// Indexes the outbound listeners. Of two for one address the first one stays.
    pub fn new(listeners: impl IntoIterator<Item = Arc<Listener>>) -> Self {
        let mut index = Self::default();
        for listener in listeners {
            if !listener.role.is_caught() {
                continue;
            }
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
        index.users = index.index_users();
        index
    }

    fn index_users(&self) -> HashMap<Name, Vec<(SocketAddr, Arc<Listener>)>> {
        let mut users: HashMap<Name, Vec<(SocketAddr, Arc<Listener>)>> = HashMap::new();
        for (address, listener) in self.all() {
            let chains = listener.filter_chains.iter();
            for chain in chains.chain(&listener.default_filter_chain) {
                let Terminal::Tcp(proxy) = &chain.terminal else {
                    continue;
                };
                for weighted in &proxy.clusters {
                    let users = users.entry(weighted.cluster.clone()).or_default();
                    users.push((address, listener.clone()));
                }
            }
        }
        users
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

    /// Every destination that has a listener, with it: exact addresses, where port 0 stands for
    /// every port, then unspecified ones, which stand for every address, then [`ANYTHING`].
    pub fn all(&self) -> impl Iterator<Item = (SocketAddr, &Arc<Listener>)> {
        let exact = self.exact.iter().map(|(at, listener)| (*at, listener));
        // A wildcard without a port takes nothing; see `find`.
        let with_port = |(port, _): &(&u16, _)| **port != 0;
        let v4 = self.wildcard_v4.iter().filter(with_port);
        let v4 = v4.map(|(port, listener)| ((Ipv4Addr::UNSPECIFIED, *port).into(), listener));
        let v6 = self.wildcard_v6.iter().filter(with_port);
        let v6 = v6.flat_map(|(port, listener)| {
            // Like a dual-stack socket, `::` also takes IPv4 unless `0.0.0.0` does.
            let both = !self.wildcard_v4.contains_key(port);
            let v4 = both.then(|| ((Ipv4Addr::UNSPECIFIED, *port).into(), listener));
            v4.into_iter()
                .chain([((Ipv6Addr::UNSPECIFIED, *port).into(), listener)])
        });
        let rest = self.catch_all.iter();
        let rest = rest.flat_map(|listener| ANYTHING.map(|anything| (anything, listener)));
        exact.chain(v4).chain(v6).chain(rest)
    }

    /// Destinations whose TCP connections may go to a cluster, with their listeners.
    pub fn users(&self, cluster: &str) -> &[(SocketAddr, Arc<Listener>)] {
        self.users.get(cluster).map_or(&[], Vec::as_slice)
    }

    /// The `use_original_dst` listener.
    pub fn catch_all(&self) -> Option<&Arc<Listener>> {
        self.catch_all.as_ref()
    }
}
