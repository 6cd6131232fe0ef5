//! Istio's own discovery server, on configuration from files.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::curl::Curl;
use crate::pod::Pod;
use crate::process::Process;

/// Debug pages are shown to loopback only.
const DEBUG: &str = "127.0.0.1:8080";

/// A running istiod. Ends when dropped.
#[derive(Debug)]
pub struct Istiod {
    pod: Pod,
    files: TempDir,
    process: Option<Process>,
    env: Vec<(String, String)>,
}

/// An istiod to be started.
#[derive(Debug, Default)]
pub struct IstiodBuilder {
    env: Vec<(String, String)>,
    authority: Option<[String; 3]>,
}

impl IstiodBuilder {
    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An authority to sign with, instead of one that it makes: certificate, key and roots.
    #[must_use]
    pub fn authority(mut self, certificate: &str, key: &str, roots: &str) -> Self {
        self.authority = Some([certificate, key, roots].map(ToOwned::to_owned));
        self
    }

    /// As [`Istiod::start`].
    ///
    /// # Errors
    /// As [`Istiod::start`].
    pub fn start(self, pod: Pod, mesh: &Value, resources: &[(&str, &[Value])]) -> Result<Istiod> {
        let files = tempfile::tempdir()?;
        fs::create_dir(files.path().join("config"))?;
        fs::create_dir(files.path().join("ca"))?;
        fs::write(files.path().join("mesh.yaml"), mesh.to_string())?;
        let mut istiod = Istiod {
            pod,
            files,
            process: None,
            env: self.env,
        };
        if let Some([certificate, key, roots]) = &self.authority {
            istiod.plug(certificate, key, roots)?;
        }
        for (name, resources) in resources {
            istiod.put(name, resources)?;
        }
        istiod.resume()?;
        Ok(istiod)
    }
}

impl Istiod {
    /// One that is started in another way than [`Self::start`] does.
    pub fn builder() -> IstiodBuilder {
        IstiodBuilder::default()
    }

    /// Plugs an authority in, or another one: it is watched.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn plug(&self, certificate: &str, key: &str, roots: &str) -> Result<()> {
        let files = [
            ("ca-key.pem", key),
            ("cert-chain.pem", certificate),
            ("root-cert.pem", roots),
            ("ca-cert.pem", certificate),
        ];
        for (name, text) in files {
            fs::write(self.files.path().join("ca").join(name), text)
                .context("cannot write istiod's authority")?;
        }
        Ok(())
    }

    /// The program (`cargo xtask test interop` builds it), unless there is none.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("MESH_ISTIOD").filter(|path| !path.is_empty())?;
        Some(path.into())
    }

    /// Starts it in a pod with this `MeshConfig` and these resources, by file name.
    ///
    /// # Errors
    /// There is no program, or it does not start.
    pub fn start(pod: Pod, mesh: &Value, resources: &[(&str, &[Value])]) -> Result<Self> {
        Self::builder().start(pod, mesh, resources)
    }

    /// As [`Self::start`], with these variables in its environment.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        pod: Pod,
        mesh: &Value,
        resources: &[(&str, &[Value])],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let builder = Self::builder();
        let variables = environment.iter();
        variables
            .fold(builder, |builder, (name, value)| builder.env(name, value))
            .start(pod, mesh, resources)
    }

    /// Where xDS is served in plaintext.
    pub fn xds(&self) -> SocketAddr {
        self.at(15010)
    }

    /// Where xDS and the certificate authority are served over TLS.
    pub fn secure(&self) -> SocketAddr {
        self.at(15012)
    }

    /// A debug page.
    ///
    /// # Errors
    /// It does not answer.
    pub fn page(&self, path: &str) -> Result<String> {
        let response = Curl::get(&self.pod, &format!("http://{DEBUG}{path}")).send()?;
        Ok(String::from_utf8_lossy(&response.body).into_owned())
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.pod.ip4().into(), port)
    }

    /// Replaces the resources of a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, name: &str, resources: &[Value]) -> Result<()> {
        let documents: Vec<String> = resources.iter().map(Value::to_string).collect();
        // Written beside and moved, so that no half a file is read.
        let beside = self.files.path().join(name);
        fs::write(&beside, documents.join("\n---\n"))?;
        fs::rename(&beside, self.file(name)).context("cannot write istiod's configuration")
    }

    /// Removes the resources of a file.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.file(name)).context("cannot remove istiod's configuration")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(format!("config/{name}.yaml"))
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts it again at the same address, on what the files say.
    ///
    /// # Errors
    /// It does not start.
    pub fn resume(&mut self) -> Result<()> {
        let program = Self::program().context("no istiod; type: cargo xtask test interop")?;
        let mut command = self.pod.command(program);
        let files = self.files.path();
        command
            .env("ROOT_CA_DIR", files.join("ca"))
            .env("POD_NAMESPACE", "istio-system")
            .env("PILOT_DEBOUNCE_AFTER", "10ms")
            .env("ENABLE_DEBUG_ENDPOINT_AUTH", "false")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .arg("--config-dir")
            .arg(files.join("config"))
            .arg("--mesh-config")
            .arg(files.join("mesh.yaml"))
            .args(["--grpc", &self.at(15010).to_string()])
            .args(["--secure-grpc", &self.at(15012).to_string()])
            .args(["--http", DEBUG])
            .args(["--monitoring", &self.at(15014).to_string()]);
        let mut process = Process::spawn(command)?;
        let _started: Value = process.read()?;
        self.process = Some(process);
        Ok(())
    }
}
