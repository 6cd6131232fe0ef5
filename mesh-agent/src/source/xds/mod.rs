//! The xDS source: a management server's configuration over aggregated discovery.
//!
//! [`session`] is the protocol without I/O; this file moves bytes and time.

mod cache;
mod decode;
mod delta;
mod publish;
mod session;
mod sotw;
mod status;
mod transport;
mod types;
mod views;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::FutureExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::store::ResourceSet;

use session::{Request, Response, Session};

pub use cache::{Key, Rejected, Trouble};
pub use decode::Interner;
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
/// Requests on their way to the server.
const OUTGOING: usize = 64;

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
    options: Options,
    interner: Arc<Interner>,
    changed: Arc<Notify>,
) -> watch::Receiver<Published> {
    let (sender, published) = watch::channel(Published::default());
    let publisher = Publisher {
        published: sender,
        changed,
    };
    tokio::spawn(async move {
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
struct Ended {
    reason: String,
    /// It brought a response: the server is well, and may be asked again at once.
    fruitful: bool,
}

impl Follower {
    async fn run(&mut self) {
        let mut wait = FIRST_WAIT;
        loop {
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
            let until = Instant::now() + jittered(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
            // Time goes on for what waits.
            loop {
                let now = Instant::now();
                let next = self.session.next_timer(now).map_or(until, |t| t.min(until));
                tokio::select! {
                    () = tokio::time::sleep_until(next.into()) => {}
                    () = self.publisher.published.closed() => return,
                }
                if Instant::now() >= until {
                    break;
                }
                self.session.expire(Instant::now());
                self.publish();
            }
        }
    }

    fn publish(&mut self) {
        publish(&mut self.session, &self.publisher);
    }
}

fn publish(session: &mut Session, publisher: &Publisher) {
    let resources = session.publish(Instant::now());
    publisher.published.send_replace(Published {
        resources,
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
    let barren = |reason: String| Ended {
        reason,
        fruitful: false,
    };
    let channel = match options.server.connect().await {
        Ok(channel) => channel,
        Err(error) => return barren(format!("{error:#}")),
    };
    let token = match options.server.authorization() {
        Ok(token) => token,
        Err(error) => return barren(format!("{error:#}")),
    };
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
    let first = session.opened(Instant::now());
    let opening = Wire::open(options.mode, &mut client, first);
    let mut opening = std::pin::pin!(opening);
    let wire = loop {
        // A server may take its time even to begin an answer; what waits goes on meanwhile.
        tokio::select! {
            wire = opening.as_mut() => break wire,
            () = until(session.next_timer(Instant::now())) => {
                session.expire(Instant::now());
                publish(session, publisher);
            }
        }
    };
    let mut wire = match wire {
        Ok(wire) => wire,
        Err(status) => return barren(told(&status)),
    };
    let mut fruitful = false;
    let reason = exchange(session, publisher, &mut wire, &mut fruitful).await;
    Ended { reason, fruitful }
}

/// Sleeps until then; for ever without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Receives and answers until the stream ends; returns why it did.
async fn exchange(
    session: &mut Session,
    publisher: &Publisher,
    wire: &mut Wire,
    fruitful: &mut bool,
) -> String {
    publish(session, publisher);
    loop {
        let mut next = tokio::select! {
            received = wire.receive() => Some(received),
            () = until(session.next_timer(Instant::now())) => None,
        };
        let mut taken = 0;
        while let Some(received) = next.take() {
            let response = match received {
                Ok(Some(response)) => response,
                Ok(None) => return "the server closed the stream".into(),
                Err(status) => return told(&status),
            };
            *fruitful = true;
            for request in session.received(response, Instant::now()) {
                if !wire.send(request).await {
                    return "the server takes no more requests".into();
                }
            }
            taken += 1;
            // What has arrived already belongs to the same change.
            if taken < BATCH {
                next = wire.receive().now_or_never();
            }
        }
        session.expire(Instant::now());
        publish(session, publisher);
    }
}

type Client<I> = AggregatedDiscoveryServiceClient<
    tonic::service::interceptor::InterceptedService<tonic::transport::Channel, I>,
>;

/// Both directions of a stream.
enum Wire {
    Delta(
        mpsc::Sender<DeltaDiscoveryRequest>,
        Streaming<DeltaDiscoveryResponse>,
    ),
    Sotw(mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>),
}

impl Wire {
    async fn open<I: tonic::service::Interceptor>(
        mode: Mode,
        client: &mut Client<I>,
        first: Vec<Request>,
    ) -> Result<Self, tonic::Status> {
        match mode {
            Mode::Delta => {
                let (outgoing, requests) = mpsc::channel(OUTGOING);
                for request in first {
                    if let Request::Delta(request) = request {
                        // An empty channel takes the few first ones.
                        let _ = outgoing.try_send(request);
                    }
                }
                let requests = ReceiverStream::new(requests);
                let incoming = client.delta_aggregated_resources(requests).await?;
                Ok(Self::Delta(outgoing, incoming.into_inner()))
            }
            Mode::Sotw => {
                let (outgoing, requests) = mpsc::channel(OUTGOING);
                for request in first {
                    if let Request::Sotw(request) = request {
                        let _ = outgoing.try_send(request);
                    }
                }
                let requests = ReceiverStream::new(requests);
                let incoming = client.stream_aggregated_resources(requests).await?;
                Ok(Self::Sotw(outgoing, incoming.into_inner()))
            }
        }
    }

    /// The next message. Given up half way, none is lost.
    async fn receive(&mut self) -> Result<Option<Response>, tonic::Status> {
        Ok(match self {
            Self::Delta(_, incoming) => incoming.message().await?.map(Response::Delta),
            Self::Sotw(_, incoming) => incoming.message().await?.map(Response::Sotw),
        })
    }

    /// Says whether the server still takes requests.
    async fn send(&mut self, request: Request) -> bool {
        match (self, request) {
            (Self::Delta(outgoing, _), Request::Delta(request)) => {
                outgoing.send(request).await.is_ok()
            }
            (Self::Sotw(outgoing, _), Request::Sotw(request)) => {
                outgoing.send(request).await.is_ok()
            }
            // A session speaks one variant for its whole life.
            _ => false,
        }
    }
}

/// What a gRPC status means to an operator.
fn told(status: &tonic::Status) -> String {
    let hint = match status.code() {
        Code::Unimplemented => "; it may not speak this variant: --xds-mode sotw or delta",
        Code::OutOfRange => "; --xds-max-message-mib sets what is taken",
        Code::Unauthenticated | Code::PermissionDenied => "; see --xds-token and --xds-cert",
        _ => "",
    };
    format!("{:?}: {}{hint}", status.code(), status.message())
}
