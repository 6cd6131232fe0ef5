//! The HTTP side of the admin pages.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use envoy_types::pb::envoy::service::status::v3::ClientStatusResponse;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::body::Body;
use tonic::codegen::Service as _;

use super::csds::{self, Csds};
use super::pages::Page;

/// What is asked, and where the answer goes.
#[derive(Debug)]
pub enum Question {
    /// A page; its content type and text.
    Page(Page, oneshot::Sender<(&'static str, String)>),
    /// Access logs are to be opened anew.
    ReopenLogs(oneshot::Sender<()>),
    /// How the streams of the management server fare.
    ClientStatus(oneshot::Sender<ClientStatusResponse>),
}

/// Binds the admin pages and serves them.
///
/// # Errors
/// The address is taken or not of this machine.
pub async fn serve_admin(
    address: SocketAddr,
    questions: mpsc::Sender<Question>,
    quit: mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let listener = bind(address, "--admin").await?;
    let csds = Csds::server(questions.clone());
    accept(listener, move |request| {
        let (questions, quit) = (questions.clone(), quit.clone());
        let mut csds = csds.clone();
        async move {
            if request.uri().path().starts_with(csds::PATH) {
                let Ok(response) = csds.call(request).await;
                return response;
            }
            answer(&request, &questions, &quit).await
        }
    });
    Ok(())
}

/// Binds the readiness probe (`/healthz/ready`) and serves it.
///
/// # Errors
/// The address is taken or not of this machine.
pub async fn serve_readiness(
    address: SocketAddr,
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let listener = bind(address, "--readiness").await?;
    accept(listener, move |request| {
        let ready = *ready.borrow();
        async move {
            match (request.uri().path(), ready) {
                ("/healthz/ready" | "/ready", true) => text(StatusCode::OK, "ready\n"),
                ("/healthz/ready" | "/ready", false) => {
                    text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
                }
                _ => text(StatusCode::NOT_FOUND, "ask for /healthz/ready\n"),
            }
        }
    });
    Ok(())
}

/// Binds the scrapers' address and serves the counters, and nothing else, there: unlike the admin
/// pages it is meant to be reached from outside the node.
///
/// # Errors
/// The address is taken or not of this machine.
pub async fn serve_metrics(
    address: SocketAddr,
    questions: mpsc::Sender<Question>,
) -> anyhow::Result<()> {
    let listener = bind(address, "--metrics").await?;
    accept(listener, move |request| {
        let questions = questions.clone();
        async move {
            match (request.method(), request.uri().path()) {
                (&Method::GET, "/stats/prometheus" | "/metrics") => {
                    ask(Page::Prometheus, &questions).await
                }
                _ => text(StatusCode::NOT_FOUND, "GET /stats/prometheus\n"),
            }
        }
    });
    Ok(())
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on {address}: {error}; another agent? {flag} names another address"
        )
    })
}

fn accept<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            };
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let response = answer(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            tokio::spawn(async move {
                // gRPC comes over HTTP/2.
                if let Err(error) = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                {
                    tracing::debug!(%error, "an admin connection ended");
                }
            });
        }
    });
}

async fn answer(
    request: &Request<Incoming>,
    questions: &mpsc::Sender<Question>,
    quit: &mpsc::Sender<()>,
) -> Response<Body> {
    let path = request.uri().path();
    if path == "/quitquitquit" || path == "/reopen_logs" {
        if request.method() != Method::POST {
            return text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this changes something: POST it\n",
            );
        }
        if path == "/reopen_logs" {
            let (sender, receiver) = oneshot::channel();
            let _ = questions.send(Question::ReopenLogs(sender)).await;
            return match receiver.await {
                Ok(()) => text(StatusCode::OK, "OK\n"),
                Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the agent stops\n"),
            };
        }
        let _ = quit.send(()).await;
        return text(StatusCode::OK, "OK\n");
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    let Some(page) = Page::find(path, request.uri().query().unwrap_or_default()) else {
        return text(StatusCode::NOT_FOUND, Page::LIST);
    };
    ask(page, questions).await
}

async fn ask(page: Page, questions: &mpsc::Sender<Question>) -> Response<Body> {
    let (sender, receiver) = oneshot::channel();
    if questions.send(Question::Page(page, sender)).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the agent stops\n");
    }
    match receiver.await {
        Ok((kind, body)) => {
            let status = if page == Page::Ready && body != "LIVE\n" {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::OK
            };
            let mut response = text(status, body);
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
            response
        }
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the agent stops\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=UTF-8"),
    );
    response
}
