//! A gRPC server that answers every call with bytes as they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use mesh_testbed::loopback;
use tokio::sync::oneshot;

/// Ends when dropped.
pub(crate) struct RawGrpc {
    calls: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl RawGrpc {
    /// Sends these messages on every call, each behind its length, and keeps the call open.
    pub(crate) fn start(at: SocketAddr, messages: Vec<Vec<u8>>) -> Result<Self> {
        let frames = messages
            .into_iter()
            .map(|message| {
                let mut frame = vec![0];
                frame.extend((message.len() as u32).to_be_bytes());
                frame.extend(message);
                Bytes::from(frame)
            })
            .collect();
        Self::frames(at, frames)
    }

    /// As [`Self::start`], without lengths.
    pub(crate) fn frames(at: SocketAddr, frames: Vec<Bytes>) -> Result<Self> {
        let listener = loopback::listen(at)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let calls = Arc::<AtomicUsize>::default();
        let counted = calls.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                    return;
                };
                let serving = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream, frames.clone(), counted.clone()));
                    }
                };
                tokio::select! {
                    () = serving => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        Ok(Self {
            calls,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// How many calls were sent everything.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

/// Whoever breaks off ends its own connection only.
async fn serve(
    stream: tokio::net::TcpStream,
    frames: Vec<Bytes>,
    calls: Arc<AtomicUsize>,
) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, mut respond) = call?;
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap_or_default();
        let mut body = respond.send_response(response, false)?;
        for frame in &frames {
            body.send_data(frame.clone(), false)?;
        }
        calls.fetch_add(1, Ordering::Relaxed);
        // Requests are read and thrown away.
        tokio::spawn(async move {
            let mut requests = request.into_body();
            while let Some(Ok(data)) = requests.data().await {
                let _ = requests.flow_control().release_capacity(data.len());
            }
            drop(body);
        });
    }
    Ok(())
}

impl Drop for RawGrpc {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
