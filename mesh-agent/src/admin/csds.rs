//! The client status discovery service (CSDS) on the admin port.

use std::pin::Pin;

use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use super::server::Question;

/// Its requests begin with this path.
pub(super) const PATH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/";

/// Asks the control loop.
#[derive(Debug, Clone)]
pub(super) struct Csds(mpsc::Sender<Question>);

impl Csds {
    pub(super) fn server(
        questions: mpsc::Sender<Question>,
    ) -> ClientStatusDiscoveryServiceServer<Self> {
        ClientStatusDiscoveryServiceServer::new(Self(questions))
    }

    async fn ask(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            return Err(Status::invalid_argument(
                "node_matchers: an xDS client only knows itself; leave them out",
            ));
        }
        let stops = || Status::unavailable("the agent stops");
        let (sender, answer) = oneshot::channel();
        let question = Question::ClientStatus(sender);
        self.0.send(question).await.map_err(|_| stops())?;
        answer.await.map_err(|_| stops())
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream =
        Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let csds = self.clone();
        let answers = request.into_inner().then(move |request| {
            let csds = csds.clone();
            async move { csds.ask(&request?).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.ask(request.get_ref()).await.map(Response::new)
    }
}
