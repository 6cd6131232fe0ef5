//! A worker's tunnels: many streams share one, and nobody waits for a second handshake.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderValue;
use rustls::ClientConfig;
use tokio::sync::Notify;

use super::STREAMS;

/// How long a tunnel without streams is kept (ztunnel: `pool_unused_release_timeout`).
const UNUSED: Duration = Duration::from_secs(300);

/// Whose tunnel, whereto, and how it is secured: streams with the same share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The client pod's namespace: tunnels leave with its address.
    pub(super) netns: u64,
    /// Where it ends.
    pub(super) gateway: SocketAddr,
    /// The TLS configuration, by address: it stands for the pod's identity, its certificate of
    /// now and who may be at the other end. Tunnels hold on to it, so none is given twice.
    pub(super) tls: usize,
}

/// Tunnels by whose they are.
#[derive(Debug, Clone, Default)]
pub(in crate::proxy) struct Tunnels(Rc<RefCell<HashMap<Key, Slot>>>);

/// The tunnels of one key.
#[derive(Debug)]
struct Slot {
    /// Which certificates and roots they are of.
    generation: u64,
    _tls: Arc<ClientConfig>,
    baggage: HeaderValue,
    made: Vec<Tunnel>,
    dials: Vec<Rc<Dial>>,
}

#[derive(Debug)]
struct Tunnel {
    sender: SendRequest<Bytes>,
    state: Rc<State>,
}

impl Tunnel {
    /// Whether its other side has sent GOAWAY, or it broke.
    fn was_told_to_end(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.sender.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }
}

/// What is known of a tunnel.
#[derive(Debug)]
pub(super) struct State {
    streams: Cell<u32>,
    /// It takes no further stream.
    ended: Cell<bool>,
    used: Cell<Instant>,
}

impl State {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            streams: Cell::new(0),
            ended: Cell::new(false),
            used: Cell::new(Instant::now()),
        })
    }

    /// It takes no further stream; those it has go on.
    pub(super) fn end(&self) {
        self.ended.set(true);
    }
}

/// A stream's place in a tunnel; drop gives it back.
#[derive(Debug)]
pub(super) struct Place(Rc<State>);

impl Place {
    fn new(state: &Rc<State>) -> Self {
        state.streams.set(state.streams.get() + 1);
        Self(state.clone())
    }

    /// Whether the tunnel takes no further stream, so that this one should not be kept, either.
    pub(super) fn is_leaving(&self) -> bool {
        self.0.ended.get()
    }

    /// The tunnel it is in takes no further stream.
    pub(super) fn end_tunnel(&self) {
        self.0.end();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.used.set(Instant::now());
    }
}

/// A tunnel in the making, and who waits for it.
#[derive(Debug, Default)]
struct Dial {
    waiting: Cell<u32>,
    done: Notify,
    result: OnceCell<Result<(), Failed>>,
}

/// Why there is no tunnel; told to all who waited.
#[derive(Debug, Clone)]
struct Failed(io::ErrorKind, Arc<io::Error>);

/// A place in a tunnel, and what its requests say of the client.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) place: Place,
    pub(super) baggage: HeaderValue,
    /// The tunnel was there before.
    pub(super) reused: bool,
}

impl Tunnels {
    /// A place in a tunnel, which is dialled if there is none with room.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) async fn place<F>(
        &self,
        key: &Key,
        slot: impl Fn() -> NewSlot,
        dial: impl Fn() -> F,
    ) -> io::Result<Granted>
    where
        F: Future<Output = io::Result<(SendRequest<Bytes>, Rc<State>)>> + 'static,
    {
        let mut reused = true;
        loop {
            if let Some(granted) = self.find(key, reused) {
                return Ok(granted);
            }
            reused = false;
            let dialled = self.dial(key, &slot, &dial);
            while dialled.result.get().is_none() {
                dialled.done.notified().await;
            }
            if let Some(Err(failed)) = dialled.result.get() {
                let Failed(kind, why) = failed.clone();
                return Err(io::Error::new(kind, Shared(why)));
            }
        }
    }

    fn find(&self, key: &Key, reused: bool) -> Option<Granted> {
        let mut slots = self.0.borrow_mut();
        let slot = slots.get_mut(key)?;
        slot.made.retain(|tunnel| !tunnel.state.ended.get());
        let tunnel = slot.made.iter().find(|tunnel| {
            let most = tunnel.sender.current_max_send_streams();
            let most = STREAMS.min(u32::try_from(most).unwrap_or(STREAMS));
            tunnel.state.streams.get() < most
        })?;
        Some(Granted {
            sender: tunnel.sender.clone(),
            place: Place::new(&tunnel.state),
            baggage: slot.baggage.clone(),
            reused,
        })
    }

    /// The dial to wait for: one that is under way, or another one. It goes on by itself, so
    /// whoever gives up takes it from nobody.
    fn dial<F>(&self, key: &Key, new: impl Fn() -> NewSlot, dial: impl Fn() -> F) -> Rc<Dial>
    where
        F: Future<Output = io::Result<(SendRequest<Bytes>, Rc<State>)>> + 'static,
    {
        let mut slots = self.0.borrow_mut();
        let slot = slots.entry(key.clone()).or_insert_with(|| new().into());
        let under_way = slot.dials.iter().find(|dial| dial.waiting.get() < STREAMS);
        let one = under_way.cloned().unwrap_or_else(|| {
            let one = Rc::new(Dial::default());
            slot.dials.push(one.clone());
            let (tunnels, key, ended) = (self.clone(), key.clone(), one.clone());
            let dialling = dial();
            tokio::task::spawn_local(async move {
                let result = dialling.await;
                tunnels.dialled(&key, &ended, result);
            });
            one
        });
        one.waiting.set(one.waiting.get() + 1);
        one
    }

    fn dialled(
        &self,
        key: &Key,
        dial: &Rc<Dial>,
        result: io::Result<(SendRequest<Bytes>, Rc<State>)>,
    ) {
        let mut slots = self.0.borrow_mut();
        let slot = slots.get_mut(key);
        let result = match (result, slot) {
            (Ok((sender, state)), Some(slot)) => {
                slot.dials.retain(|one| !Rc::ptr_eq(one, dial));
                slot.made.push(Tunnel { sender, state });
                Ok(())
            }
            (Ok(_), None) => {
                // The pod went, or its certificate changed, while it was being made.
                let gone = io::Error::other("the tunnel is not wanted any more");
                Err(Failed(io::ErrorKind::ConnectionAborted, Arc::new(gone)))
            }
            (Err(error), slot) => {
                if let Some(slot) = slot {
                    slot.dials.retain(|one| !Rc::ptr_eq(one, dial));
                }
                Err(Failed(error.kind(), Arc::new(error)))
            }
        };
        // Only the dial's own task sets it.
        let _ = dial.result.set(result);
        dial.done.notify_waiters();
    }

    /// Lets go of tunnels that ended, that nobody used for long, and that are of certificates or
    /// roots that are not those of now. Streams they still have go on; without streams they
    /// close.
    pub(in crate::proxy) fn sweep(&self, generation: u64) {
        self.0.borrow_mut().retain(|_, slot| {
            let current = slot.generation == generation;
            slot.made.retain_mut(|tunnel| {
                if !current || tunnel.was_told_to_end() {
                    tunnel.state.end();
                }
                let state = &tunnel.state;
                let unused = state.streams.get() == 0 && state.used.get().elapsed() > UNUSED;
                !state.ended.get() && !unused
            });
            current && !(slot.made.is_empty() && slot.dials.is_empty())
        });
    }

    /// Lets go of the tunnels of a namespace: its pod is gone.
    pub(in crate::proxy) fn forget_pod(&self, netns: u64) {
        self.0.borrow_mut().retain(|key, _| key.netns != netns);
    }
}

/// What the first tunnel of a key is made with.
#[derive(Debug)]
pub(super) struct NewSlot {
    pub(super) generation: u64,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) baggage: HeaderValue,
}

impl From<NewSlot> for Slot {
    fn from(new: NewSlot) -> Self {
        Self {
            generation: new.generation,
            _tls: new.tls,
            baggage: new.baggage,
            made: Vec::new(),
            dials: Vec::new(),
        }
    }
}

/// An error that several are told.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<io::Error>);
