//! TCP connections that stand while access rules change: those that the new rules deny are reset.
//! One whose both sides are served in one pass stands twice, by the rules of either pod.
//!
//! HTTP is asked request by request. What the kernel balances, and what addresses alone decide, is
//! looked after by the datapath (`datapath/sockets`); what is left needs the facts that only the
//! proxy has: the names in a certificate, the name a client asked for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::config::model::listener::Listener;

use super::accept::Caught;
use super::filter_chain::{self, Facts};
use super::stats::count;
use super::worker::Shared;
use super::{ListenerKind, authz};

/// The standing TCP connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Standing {
    connections: RefCell<HashMap<u64, Rc<Connection>>>,
    last: Cell<u64>,
}

/// One of them, and what rules were told of it.
#[derive(Debug)]
struct Connection {
    caught: Caught,
    facts: Facts,
    encrypted: bool,
    peer_names: Option<Arc<[Arc<str>]>>,
    /// Whose rules let it in.
    listener: RefCell<Arc<Listener>>,
    denied: Notify,
}

/// Keeps a connection among the standing ones.
#[derive(Debug)]
pub(super) struct Entry {
    standing: Rc<Standing>,
    number: u64,
    connection: Rc<Connection>,
}

impl Standing {
    /// A connection was let in.
    pub(super) fn enter(
        self: &Rc<Self>,
        caught: &Caught,
        facts: Facts,
        encrypted: bool,
        peer_names: Option<Arc<[Arc<str>]>>,
        listener: &Arc<Listener>,
    ) -> Entry {
        let number = self.last.get() + 1;
        self.last.set(number);
        let connection = Rc::new(Connection {
            caught: caught.clone(),
            facts,
            encrypted,
            peer_names,
            listener: RefCell::new(listener.clone()),
            denied: Notify::new(),
        });
        let mut connections = self.connections.borrow_mut();
        connections.insert(number, connection.clone());
        Entry {
            standing: self.clone(),
            number,
            connection,
        }
    }

    /// Asks the newest rules about all of them; to be called when there are new ones.
    pub(super) fn recheck(&self, shared: &Shared) {
        for connection in self.connections.borrow().values() {
            if !connection.is_allowed(shared) {
                count(&shared.stats.rbac_denied);
                let Caught {
                    peer, destination, ..
                } = &connection.caught;
                tracing::info!(%peer, %destination, "a standing connection is reset: new access rules deny it");
                connection.denied.notify_one();
            }
        }
    }
}

impl Connection {
    fn is_allowed(&self, shared: &Shared) -> bool {
        let Some(view) = shared.view(&self.caught.pod) else {
            return true;
        };
        let inbound = self.caught.kind == ListenerKind::Inbound;
        let listener = if inbound {
            view.inbound.as_ref()
        } else {
            view.outbound.find(self.caught.destination)
        };
        // Without a listener there are no rules.
        let Some(listener) = listener else {
            return true;
        };
        if Arc::ptr_eq(listener, &self.listener.borrow()) {
            return true;
        }
        self.listener.replace(listener.clone());
        let Some(chain) = filter_chain::select(listener, &self.facts) else {
            // Nobody would be let in like this any more.
            return !inbound;
        };
        if inbound && chain.transport.is_plain() == self.encrypted {
            return false;
        }
        let server_name = self.facts.server_name.as_deref().unwrap_or_default();
        authz::allows(chain, &self.caught, server_name, self.peer_names.as_deref()).is_ok()
    }
}

impl Entry {
    /// Notified when rules deny it.
    pub(super) fn denied(&self) -> &Notify {
        &self.connection.denied
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.standing.connections.borrow_mut().remove(&self.number);
    }
}
