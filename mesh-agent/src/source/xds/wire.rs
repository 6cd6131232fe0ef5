//! Both directions of a stream, of either variant.
//!
//! The connection takes a request off our hands when it has room for it, one at a time, and that
//! is when it counts as sent: what a server that does not read was not asked is not missing.

use std::collections::VecDeque;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::cache::Key;
use super::session::{Mode, Outgoing, Request, Response};

/// When so many requests wait for the server to read, older answers give way to newer ones:
/// whoever sends without reading is not answered out of our memory.
const BACKLOG: usize = 64;

pub(super) type Client<I> = AggregatedDiscoveryServiceClient<
    tonic::service::interceptor::InterceptedService<tonic::transport::Channel, I>,
>;

/// Our requests, until they are sent.
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: VecDeque<Outgoing>,
    next: mpsc::Sender<Outgoing>,
    sent: mpsc::UnboundedReceiver<Vec<Key>>,
}

/// The end of an [`Outbox`] that the connection takes requests from.
#[derive(Debug)]
pub(super) struct Requests {
    next: mpsc::Receiver<Outgoing>,
    sent: mpsc::UnboundedSender<Vec<Key>>,
}

/// Responses of the server.
pub(super) enum Inbox {
    Delta(Streaming<DeltaDiscoveryResponse>),
    Sotw(Streaming<DiscoveryResponse>),
}

/// Both ends.
pub(super) fn outbox() -> (Outbox, Requests) {
    let (next, taken) = mpsc::channel(1);
    let (told, sent) = mpsc::unbounded_channel();
    let outbox = Outbox {
        waiting: VecDeque::new(),
        next,
        sent,
    };
    let requests = Requests {
        next: taken,
        sent: told,
    };
    (outbox, requests)
}

impl Outbox {
    pub(super) fn push(&mut self, requests: Vec<Outgoing>) {
        for mut request in requests {
            if self.waiting.len() >= BACKLOG
                && let Some(old) = self
                    .waiting
                    .iter()
                    .position(|old| request.supersedes(old))
                    .and_then(|index| self.waiting.remove(index))
            {
                request.expects.extend(old.expects);
            }
            self.waiting.push_back(request);
        }
    }

    /// Goes on sending; returns what is waited for from now on. Given up half way, nothing is
    /// lost. Does not end when the stream does: that is for the [`Inbox`] to tell.
    pub(super) async fn progress(&mut self) -> Vec<Key> {
        loop {
            tokio::select! {
                sent = self.sent.recv() => match sent {
                    Some(expects) => return expects,
                    None => std::future::pending().await,
                },
                place = self.next.reserve(), if !self.waiting.is_empty() => match place {
                    Ok(place) => {
                        if let Some(request) = self.waiting.pop_front() {
                            place.send(request);
                        }
                    }
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }
}

impl Requests {
    fn stream(self) -> impl tokio_stream::Stream<Item = Request> {
        ReceiverStream::new(self.next).map(move |outgoing| {
            if !outgoing.expects.is_empty() {
                // Nobody listens any more when the stream has ended.
                let _ = self.sent.send(outgoing.expects);
            }
            outgoing.request
        })
    }
}

/// Opens a stream; ends when the server begins to answer.
///
/// # Errors
/// It does not take the call.
pub(super) async fn open<I: tonic::service::Interceptor>(
    mode: Mode,
    client: &mut Client<I>,
    requests: Requests,
) -> Result<Inbox, Status> {
    // A session speaks one variant for its whole life.
    Ok(match mode {
        Mode::Delta => {
            let requests = requests.stream().filter_map(|request| match request {
                Request::Delta(request) => Some(request),
                Request::Sotw(_) => None,
            });
            let incoming = client.delta_aggregated_resources(requests).await?;
            Inbox::Delta(incoming.into_inner())
        }
        Mode::Sotw => {
            let requests = requests.stream().filter_map(|request| match request {
                Request::Sotw(request) => Some(request),
                Request::Delta(_) => None,
            });
            let incoming = client.stream_aggregated_resources(requests).await?;
            Inbox::Sotw(incoming.into_inner())
        }
    })
}

impl Inbox {
    /// The next response; `None` when the server has ended the stream. Given up half way, none is
    /// lost.
    pub(super) async fn receive(&mut self) -> Result<Option<Response>, Status> {
        Ok(match self {
            Self::Delta(incoming) => incoming.message().await?.map(Response::Delta),
            Self::Sotw(incoming) => incoming.message().await?.map(Response::Sotw),
        })
    }

    /// One that has arrived already.
    pub(super) fn arrived(&mut self) -> Option<Result<Option<Response>, Status>> {
        self.receive().now_or_never()
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

    use super::*;

    fn delta(kind: &str, nonce: usize, names: &[&str]) -> Outgoing {
        Outgoing {
            request: Request::Delta(DeltaDiscoveryRequest {
                type_url: kind.into(),
                response_nonce: if names.is_empty() {
                    nonce.to_string()
                } else {
                    String::new()
                },
                resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
                ..DeltaDiscoveryRequest::default()
            }),
            expects: Vec::new(),
        }
    }

    #[test]
    fn answers_to_a_server_that_does_not_read_do_not_pile_up() {
        let (mut outbox, _requests) = outbox();
        outbox.push(vec![delta("eds", 0, &["a", "b"])]);
        for nonce in 0..10_000 {
            outbox.push(vec![delta("cds", nonce, &[]), delta("eds", nonce, &[])]);
        }
        assert!(
            outbox.waiting.len() <= BACKLOG + 2,
            "{}",
            outbox.waiting.len()
        );
        // What is asked for is never lost, and the newest answer is there.
        assert_eq!(outbox.waiting[0], delta("eds", 0, &["a", "b"]));
        assert_eq!(outbox.waiting.back(), Some(&delta("eds", 9_999, &[])));
    }
}
