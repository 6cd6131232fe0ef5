//! nginx, as a server that nobody of this project wrote.

use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{Issued, Pod};

/// A running nginx that answers every request with its name. Ends when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts it on a port, IPv4 and IPv6, and waits until it accepts.
    ///
    /// # Errors
    /// nginx is not installed or does not start.
    pub fn start(pod: &Pod, name: &str, port: u16) -> Result<Self> {
        Self::launch(pod, name, port, "")
    }

    /// As [`Self::start`], for HTTP/2 with prior knowledge only.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn http2(pod: &Pod, name: &str, port: u16) -> Result<Self> {
        Self::launch(pod, name, port, "http2")
    }

    /// As [`Self::start`], over TLS. With roots, only for clients whose certificate descends from
    /// them.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn tls(
        pod: &Pod,
        name: &str,
        port: u16,
        issued: &Issued,
        client_roots: Option<&str>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory for nginx")?;
        let put = |name: &str, text: &str| -> Result<String> {
            let path = dir.path().join(name);
            std::fs::write(&path, text).context("cannot write a certificate for nginx")?;
            Ok(path.display().to_string())
        };
        let mut how = format!(
            "ssl; ssl_certificate {}; ssl_certificate_key {}",
            put("tls.crt", &issued.chain)?,
            put("tls.key", &issued.key)?
        );
        if let Some(roots) = client_roots {
            let roots = put("roots.pem", roots)?;
            how += &format!("; ssl_client_certificate {roots}; ssl_verify_client on");
        }
        Self::launch_in(dir, pod, name, port, &how)
    }

    fn launch(pod: &Pod, name: &str, port: u16, how: &str) -> Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a directory for nginx")?;
        Self::launch_in(dir, pod, name, port, how)
    }

    fn launch_in(
        dir: tempfile::TempDir,
        pod: &Pod,
        name: &str,
        port: u16,
        how: &str,
    ) -> Result<Self> {
        let root = dir.path().display();
        let config = format!(
            "daemon off; master_process off; error_log {root}/error.log; pid {root}/pid;\n\
             events {{ worker_connections 16384; }}\n\
             http {{ access_log off; keepalive_requests 1000000;\n\
             client_body_temp_path {root}/1; proxy_temp_path {root}/2; \
             fastcgi_temp_path {root}/3; uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;\n\
             server {{ listen [::]:{port} ipv6only=off reuseport {how}; default_type text/plain; \
             location / {{ return 200 \"{name}\\n\"; }} }} }}\n"
        );
        let file = dir.path().join("nginx.conf");
        std::fs::write(&file, config).context("cannot write nginx.conf")?;
        let child = pod
            .command("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nginx; type: apt-get install nginx-light")?;
        let mut nginx = Self { child, dir };
        let deadline = Instant::now() + Duration::from_secs(10);
        while pod.within(|| TcpStream::connect(("127.0.0.1", port)).is_err())? {
            if nginx.child.try_wait()?.is_some() || Instant::now() > deadline {
                let log = nginx.dir.path().join("error.log");
                let log = std::fs::read_to_string(log).unwrap_or_default();
                bail!("nginx does not start: {log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(nginx)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
