//! What strangers may send to a port that speaks mutual TLS: refused, counted, cheap, and without
//! harm to those who are served.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Ca, Curl, Issued, MeshAgent, Pod, Server, Testbed, eventually, needs_root};
use serde_json::{Value, json};

use common::metric;
use common::tls::{self, by_secrets};

const PATIENCE: Duration = Duration::from_secs(30);
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

struct Scene {
    agent: MeshAgent,
    server: Server,
    client: Pod,
    /// In no mesh.
    stranger: Pod,
    ca: Ca,
    files: tempfile::TempDir,
    testbed: Testbed,
    _web: Pod,
}

impl Scene {
    fn start() -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, web) = (testbed.pod("client")?, testbed.pod("web")?);
        let stranger = testbed.pod("stranger")?;
        let server = Server::http(&web, "web", "v1", 0)?;
        let (ca, files) = (Ca::new("mesh")?, tempfile::tempdir()?);
        let authority = files.path().join("authority");
        std::fs::create_dir(&authority)?;
        std::fs::write(authority.join("ca.crt"), ca.pem())?;
        std::fs::write(authority.join("ca.key"), ca.key_pem())?;
        let common = by_secrets("default", "ROOTCA", &Value::Null);
        let mut listeners = tls::outbound(&testbed).to_vec();
        let mut inbound = tls::inbound(&common);
        for chain in inbound["filter_chains"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            chain["transport_socket_connect_timeout"] = json!("3s");
        }
        listeners.push(inbound);
        let config = json!({ "mesh": { "short_circuit": false }, "workloads": tls::workloads(&[&client, &web]), "static_resources": {
            "listeners": listeners,
            "clusters": tls::clusters(server.addr4(), server.addr4(), &common) } });
        let agent = MeshAgent::builder(&testbed)?
            .arg("--ca")
            .arg(format!("dev:{}", authority.display()))
            .start(&config.to_string())?;
        let scene = Self {
            agent,
            server,
            client,
            stranger,
            ca,
            files,
            testbed,
            _web: web,
        };
        eventually("the client is served", PATIENCE, || scene.served())?;
        Ok(scene)
    }

    fn served(&self) -> bool {
        let url = format!("http://{}/", tls::vip(&self.testbed, 80));
        let response = Curl::get(&self.client, &url).send();
        response.is_ok_and(|response| response.status == 200)
    }

    fn count(&self, stat: &str) -> Result<u64> {
        metric(&self.agent, &format!("envoy_listener_ssl_{stat}"))
    }

    fn put(&self, name: &str, text: &str) -> Result<String> {
        let path = self.files.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// A handshake by OpenSSL, and a request over it. Says whether it was answered, and what
    /// OpenSSL says.
    fn s_client(&self, issued: Option<&Issued>, more: &[&str]) -> Result<(bool, String)> {
        let at = self.server.addr4().to_string();
        let roots = self.put("roots.pem", self.ca.pem())?;
        let mut command = self.stranger.command("timeout");
        command
            .args([
                "20", "openssl", "s_client", "-connect", &at, "-CAfile", &roots,
            ])
            .args(["-ign_eof", "-alpn", "istio-http/1.1"])
            .args(more);
        if let Some(issued) = issued {
            let chain = self.put("chain.pem", &issued.chain)?;
            let key = self.put("key.pem", &issued.key)?;
            command.args(["-cert", &chain, "-cert_chain", &chain, "-key", &key]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start openssl")?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        // It may be gone already.
        let _ = stdin.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
        drop(stdin);
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Ok((text.contains("HTTP/1.1 200"), text))
    }
}

#[test]
fn openssl_is_served_with_the_right_certificate_only() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    let right = scene.ca.issue(&[CLIENT])?;
    for version in ["-tls1_3", "-tls1_2"] {
        let (served, told) = scene.s_client(Some(&right), &[version])?;
        ensure!(served, "{version}: {told}\n{}", scene.agent.log());
    }
    // With a session of before.
    let session = scene.files.path().join("session");
    let session = session.to_string_lossy();
    scene.s_client(Some(&right), &["-sess_out", &session])?;
    let (served, told) = scene.s_client(Some(&right), &["-sess_in", &session])?;
    ensure!(served && told.contains("Reused"), "not resumed: {told}");

    let other = Ca::new("other")?;
    let mut tampered = right.clone();
    tampered.chain = broken(&right.chain)?;
    let mut long = right.clone();
    for i in 0..300 {
        long.chain += &other
            .issue(&[&format!("spiffe://cluster.local/ns/x/sa/{i}")])?
            .chain;
    }
    let cases: [(&str, Option<&Issued>, &[&str], &str); 9] = [
        ("no certificate", None, &[], "fail_verify_no_cert"),
        (
            "another authority",
            Some(&other.issue(&[CLIENT])?),
            &[],
            "fail_verify_error",
        ),
        (
            "expired",
            Some(&scene.ca.issue_expired(&[CLIENT])?),
            &[],
            "fail_verify_error",
        ),
        (
            "a broken signature",
            Some(&tampered),
            &[],
            "fail_verify_error",
        ),
        ("an endless chain", Some(&long), &[], "connection_error"),
        (
            "TLS 1.1",
            Some(&right),
            &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            "connection_error",
        ),
        (
            "TLS 1.0",
            Some(&right),
            &["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
            "connection_error",
        ),
        (
            "no forward secrecy",
            Some(&right),
            &["-tls1_2", "-cipher", "AES128-SHA"],
            "connection_error",
        ),
        (
            "an old curve",
            Some(&right),
            &["-tls1_3", "-groups", "secp521r1"],
            "connection_error",
        ),
    ];
    for (what, issued, more, stat) in cases {
        let before = scene.count(stat)?;
        let (served, told) = scene.s_client(issued, more)?;
        ensure!(!served, "{what} is served: {told}");
        eventually(&format!("{what} is counted as {stat}"), PATIENCE, || {
            scene.count(stat).is_ok_and(|now| now > before)
        })
        .with_context(|| format!("{told}\n{}", scene.agent.log()))?;
    }
    ensure!(scene.served(), "the client suffers from it");
    Ok(())
}

/// The certificate with one bit of its signature turned.
fn broken(pem: &str) -> Result<String> {
    let mut lines: Vec<String> = pem.lines().map(ToOwned::to_owned).collect();
    let last = lines.len().checked_sub(2).context("no certificate")?;
    let at = lines[last - 1].len() / 2;
    let digit = if &lines[last - 1][at..=at] == "A" {
        "B"
    } else {
        "A"
    };
    lines[last - 1].replace_range(at..=at, digit);
    Ok(lines.join("\n") + "\n")
}

/// The first bytes of a right handshake.
fn hello() -> Result<Vec<u8>> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"istio-http/1.1".to_vec()];
    let name = rustls_pki_types::ServerName::try_from("web.shop")?;
    let mut client = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// Sends bytes and waits until the connection ends; says how long that took.
fn end_of(at: SocketAddr, bytes: &[u8]) -> Result<Duration> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let begun = Instant::now();
    // It may have been ended before all was sent.
    let _ = stream.write_all(bytes);
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return Ok(begun.elapsed()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                anyhow::bail!("the connection does not end");
            }
            Err(_) => return Ok(begun.elapsed()),
        }
    }
}

#[test]
fn garbage_is_refused_at_once_and_slow_handshakes_end_in_time() -> Result<()> {
    needs_root!(Ok(()));
    let scene = Scene::start()?;
    let at = scene.server.addr4();
    let hello = hello()?;
    let mut replayed = hello.clone();
    replayed.extend_from_slice(&hello);
    let mut cut = hello.clone();
    cut.truncate(hello.len() / 2);
    cut.extend_from_slice(&[0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5]);
    let mut endless = hello.clone();
    endless[3..5].copy_from_slice(&[0xff, 0xff]);
    let mut flipped = hello.clone();
    flipped[43] ^= 0xff;
    let before = scene.count("connection_error")?;
    for (what, bytes) in [
        ("a hello twice", &replayed),
        ("half a hello and data", &cut),
        ("an endless record", &endless),
        ("a hello with a wrong length inside", &flipped),
        ("an alert first", &vec![0x15, 3, 3, 0, 2, 2, 40]),
        (
            "plain HTTP",
            &b"GET / HTTP/1.1\r\nHost: web\r\n\r\n".to_vec(),
        ),
        ("zeroes", &vec![0; 2000]),
    ] {
        let took = scene.stranger.within(|| end_of(at, bytes))?;
        took.with_context(|| format!("{what}\n{}", scene.agent.log()))?;
        ensure!(scene.served(), "after {what} the client is not served");
    }
    ensure!(
        scene.count("connection_error")? > before,
        "nothing is counted"
    );

    // A thousand that begin and say no more.
    let (files, memory) = (scene.agent.open_files()?, scene.agent.memory()?);
    let timed_out = scene.count("connect_timeout")?;
    let held = scene.stranger.within(|| -> Result<Vec<TcpStream>> {
        (0..1000)
            .map(|_| {
                let mut stream = TcpStream::connect(at)?;
                stream.write_all(&hello)?;
                Ok(stream)
            })
            .collect()
    })??;
    ensure!(scene.served(), "the client waits for strangers");
    let grown = scene.agent.memory()?.saturating_sub(memory) >> 20;
    ensure!(grown < 100, "a thousand handshakes take {grown} MiB");
    eventually("all were given up", PATIENCE, || {
        scene
            .count("connect_timeout")
            .is_ok_and(|now| now >= timed_out + 1000)
    })?;
    drop(held);
    eventually("nothing is left of them", PATIENCE, || {
        scene.agent.open_files().is_ok_and(|now| now <= files + 20)
    })?;
    ensure!(scene.served(), "the client is not served afterwards");
    let lines = scene.agent.log().matches("no TLS with a client").count();
    ensure!(lines < 200, "the log has {lines} lines about strangers");
    Ok(())
}
