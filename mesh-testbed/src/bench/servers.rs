//! Programs that serve inside a pod, the same in all stages.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_testbed::{Nginx, Pod, Server, eventually};

/// Where they listen.
pub(super) const HTTP1: u16 = 8080;
pub(super) const HTTP2: u16 = 8081;
pub(super) const GRPC: u16 = 8082;
pub(super) const IPERF: u16 = 5201;
pub(super) const SOCKPERF: u16 = 11111;

/// The body of nginx's answers.
pub(super) const BODY: &str = "bench";

/// Ends what it holds when dropped.
#[derive(Debug)]
pub(super) struct Servers {
    _http1: Nginx,
    _http2: Nginx,
    _grpc: Server,
    _others: [Daemon; 2],
}

impl Servers {
    pub(super) fn start(pod: &Pod) -> Result<Self> {
        Ok(Self {
            _http1: Nginx::start(pod, BODY, HTTP1)?,
            _http2: Nginx::http2(pod, BODY, HTTP2)?,
            _grpc: Server::http(pod, "grpc", "v1", GRPC)?,
            _others: [
                Daemon::start(pod, "iperf3", &["--server"], IPERF)?,
                Daemon::start(pod, "sockperf", &["server", "--tcp"], SOCKPERF)?,
            ],
        })
    }
}

/// A server that says nothing of use.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    fn start(pod: &Pod, program: &str, args: &[&str], port: u16) -> Result<Self> {
        let child = pod
            .command(program)
            .args(args)
            .args(["-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {program}; type: apt-get install {program}"))?;
        let daemon = Self(child);
        let at = SocketAddr::new(pod.ip4().into(), port);
        eventually(
            &format!("{program} listens"),
            Duration::from_secs(10),
            || {
                pod.within(|| TcpStream::connect(at))
                    .is_ok_and(|it| it.is_ok())
            },
        )?;
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
