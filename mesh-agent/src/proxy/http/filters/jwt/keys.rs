//! A provider's keys: there, or fetched when they are first needed.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::config::model::filter::jwt::Keys;
use crate::config::model::filter::jwt::jwks::Jwks;
use crate::config::model::filter::jwt::remote::{Fetching, Found, RemoteJwks};
use crate::config::model::filter::jwt::status::Status;
use crate::proxy::http::call::{self, CallError};
use crate::proxy::http::filters::Call;
use crate::proxy::http::message::Path;
use crate::proxy::http::upstream::Sender;
use crate::snapshot::View;

/// The keys to verify with now.
pub(super) async fn of(call: &Call<'_>, keys: &Keys) -> Result<Arc<Jwks>, Status> {
    let remote = match keys {
        Keys::Local(keys) => return Ok(keys.clone()),
        Keys::Remote(remote) => remote,
    };
    match remote.find() {
        Found::Fresh(keys) => Ok(keys),
        Found::Stale(keys, fetching) => {
            if fetching.is_some() {
                // The task asks for the right itself: it outlives this request.
                drop(fetching);
                refresh(call, remote);
            }
            Ok(keys)
        }
        Found::Fetch(fetching) => {
            let sender = call::sender(call.connection, call.hcm);
            fetch(sender, call.view, remote, fetching)
                .await
                .ok_or(Status::JwksFetchFail)
        }
        Found::Wait(wait) => wait.ended().await.ok_or(Status::JwksFetchFail),
    }
}

fn refresh(call: &Call<'_>, remote: &Arc<RemoteJwks>) {
    let (connection, hcm) = (call.connection.clone(), call.hcm.clone());
    let (view, remote) = (call.view.clone(), remote.clone());
    tokio::task::spawn_local(async move {
        if let Found::Stale(_, Some(fetching)) = remote.find() {
            let sender = call::sender(&connection, &hcm);
            fetch(sender, &view, &remote, fetching).await;
        }
    });
}

async fn fetch(
    sender: Sender<'_>,
    view: &View,
    remote: &RemoteJwks,
    fetching: Fetching<'_>,
) -> Option<Arc<Jwks>> {
    let uri = &remote.uri;
    match get(sender, view, remote).await {
        Ok(keys) => Some(fetching.succeeded(keys)),
        Err(error) => {
            tracing::warn!(
                cluster = %uri.cluster, host = ?uri.authority, path = %uri.path, %error,
                "cannot fetch keys for tokens; requests that need them are refused"
            );
            fetching.failed();
            None
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the server answers {0}")]
    Status(StatusCode),
    #[error("{}", .0.text())]
    Keys(Status),
}

async fn get(sender: Sender<'_>, view: &View, remote: &RemoteJwks) -> Result<Jwks, FetchError> {
    let uri = &remote.uri;
    let mut request = call::request(Method::GET, uri.scheme, uri.authority.clone());
    let path = Bytes::copy_from_slice(uri.path.as_bytes());
    request.path = Path::new(path).unwrap_or(Path::root());
    let answer = call::call(
        sender,
        view,
        &uri.cluster,
        request,
        Bytes::new(),
        uri.timeout,
    )
    .await?;
    if answer.status != StatusCode::OK {
        return Err(FetchError::Status(answer.status));
    }
    Jwks::parse(&answer.body).map_err(FetchError::Keys)
}
