//! The xDS source: a management server's configuration over aggregated discovery.
//!
//! [`session`] is the protocol without I/O; this file moves bytes and time.

mod background;
mod cache;
mod decode;
mod delta;
mod diagnose;
mod publish;
mod secrets;
mod session;
mod shared;
mod sotw;
mod status;
mod transport;
mod types;
mod views;
mod wire;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::store::ResourceSet;

use session::Session;
use wire::{Inbox, Outbox};

pub use cache::{Key, Rejected, Trouble};
pub use decode::Interner;
pub use secrets::SecretDiscovery;
pub use session::Mode;
pub use status::{TypeStatus, XdsStatus};
pub use transport::Server;
pub use types::{PerType, ResourceType};
pub use views::{Scope, Sight, Views};

/// The first wait after a stream that brought nothing; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Responses taken before what they changed is published.
const BATCH: usize = 64;
/// How long after the last response the interner forgets what nobody uses any more: by then what
/// replaced it is compiled.
const TIDY: Duration = Duration::from_secs(2);

/// What to ask whom for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub server: Server,
    /// The protocol variant.
    pub mode: Mode,
    /// Who asks.
    pub node: Node,
    /// The largest response taken.
    pub max_message_bytes: usize,
}

/// What a view may use, and how its stream fares.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Resources.
    pub resources: Arc<ResourceSet>,
    /// The same for streams whose resources are equal; 0 where there is but one stream.
    pub fingerprint: u128,
    /// Whether the first configuration has come whole.
    pub complete: bool,
    /// The stream.
    pub status: Arc<XdsStatus>,
}

/// Publishes, and tells that it did.
#[derive(Debug)]
struct Publisher {
    published: watch::Sender<Published>,
    changed: Arc<Notify>,
}

/// Follows a server until the receiver is dropped.
fn follow(
    runtime: &Handle,
    options: Options,
    interner: Arc<Interner>,
    changed: Arc<Notify>,
) -> watch::Receiver<Published> {
    let (sender, published) = watch::channel(Published::default());
    let publisher = Publisher {
        published: sender,
        changed,
    };
    runtime.spawn(async move {
        let server = options.server.address.clone();
        let session = Session::new(options.mode, options.node.clone(), server, interner);
        let mut follower = Follower {
            options,
            session,
            publisher,
        };
        follower.run().await;
    });
    published
}

struct Follower {
    options: Options,
    session: Session,
    publisher: Publisher,
}

/// How a stream ended.
#[derive(Debug)]
struct Ended {
    reason: String,
    /// It brought a response: the server is well, and may be asked again at once.
    fruitful: bool,
}

impl Ended {
    fn barren(reason: String) -> Self {
        Self {
            reason,
            fruitful: false,
        }
    }
}

impl Follower {
    async fn run(&mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let began = now();
            let ended = tokio::select! {
                ended = stream(&self.options, &mut self.session, &self.publisher) => ended,
                () = self.publisher.published.closed() => return,
            };
            tracing::warn!(
                server = %self.options.server.address,
                reason = %ended.reason,
                "the xDS stream ended; what it delivered stays in use"
            );
            self.session.closed(ended.reason);
            self.publish();
            if ended.fruitful {
                wait = FIRST_WAIT;
                // Not at once: a server that ends every stream must not be hammered either.
                tokio::time::sleep(jittered(FIRST_WAIT / 5)).await;
                continue;
            }
            // A server that had nothing to say and stood for long is no server that is down.
            if now() - began > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            let until = now() + jittered(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            // Time goes on for what waits.
            loop {
                let next = self.session.next_timer(now());
                let next = next.map_or(until, |timer| timer.min(until));
                tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = self.publisher.published.closed() => return,
                }
                if now() >= until {
                    break;
                }
                self.session.expire(now());
                self.publish();
            }
        }
    }

    fn publish(&mut self) {
        publish(&mut self.session, &self.publisher);
    }
}

fn publish(session: &mut Session, publisher: &Publisher) {
    let resources = session.publish(now());
    publisher.published.send_replace(Published {
        resources,
        fingerprint: session.fingerprint(),
        complete: session.complete(),
        status: Arc::new(session.status().clone()),
    });
    publisher.changed.notify_one();
}

/// Between half and the whole of it, so that many agents do not come back at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// One stream, from connecting to its end.
async fn stream(options: &Options, session: &mut Session, publisher: &Publisher) -> Ended {
    let server = &options.server;
    let channel = match server.connect().await {
        Ok(channel) => channel,
        Err(error) => return Ended::barren(diagnose::connecting(server, &error)),
    };
    match server.authorization() {
        Ok(token) => converse(options, channel, token, session, publisher).await,
        Err(error) => Ended::barren(format!("{error:#}")),
    }
}

/// One stream on a connection.
async fn converse(
    options: &Options,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    session: &mut Session,
    publisher: &Publisher,
) -> Ended {
    let authorize = move |mut request: tonic::Request<()>| {
        if let Some(token) = &token {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        Ok(request)
    };
    let mut client = AggregatedDiscoveryServiceClient::with_interceptor(channel, authorize)
        .max_decoding_message_size(options.max_message_bytes);
    let (mut outbox, requests) = wire::outbox();
    outbox.push(session.opened());
    let mut opening = std::pin::pin!(wire::open(options.mode, &mut client, requests));
    let inbox = loop {
        // A server may take its time even to begin an answer; what waits goes on meanwhile.
        tokio::select! {
            inbox = opening.as_mut() => break inbox,
            expects = outbox.progress() => session.sent(&expects, now()),
            () = until(session.next_timer(now())) => {
                session.expire(now());
                publish(session, publisher);
            }
        }
    };
    match inbox {
        Ok(mut inbox) => {
            exchange(&options.server, session, publisher, &mut inbox, &mut outbox).await
        }
        Err(status) => Ended::barren(diagnose::opening(&options.server, &status)),
    }
}

/// The clock of the timers.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Sleeps until then; for ever without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Receives and answers until the stream ends.
async fn exchange(
    server: &Server,
    session: &mut Session,
    publisher: &Publisher,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
) -> Ended {
    let mut fruitful = false;
    let mut tidy = None;
    publish(session, publisher);
    loop {
        let received = tokio::select! {
            received = inbox.receive() => received,
            expects = outbox.progress() => {
                session.sent(&expects, now());
                continue;
            }
            () = until(session.next_timer(now())) => {
                session.expire(now());
                publish(session, publisher);
                continue;
            }
            () = until(tidy) => {
                tidy = None;
                session.tidy();
                continue;
            }
        };
        let mut next = Some(received);
        let mut taken = 0;
        while let Some(received) = next.take() {
            let response = match received {
                Ok(Some(response)) => response,
                Ok(None) => {
                    let reason = "the server closed the stream".into();
                    return Ended { reason, fruitful };
                }
                Err(status) => {
                    return Ended {
                        // What cannot be taken is sent again by the next stream.
                        fruitful: fruitful && !diagnose::is_indigestible(&status),
                        reason: diagnose::status(server, &status),
                    };
                }
            };
            fruitful = true;
            outbox.push(session.received(response));
            taken += 1;
            // What has arrived already belongs to the same change.
            if taken < BATCH {
                next = inbox.arrived();
            }
        }
        session.expire(now());
        publish(session, publisher);
        tidy = Some(now() + TIDY);
    }
}
