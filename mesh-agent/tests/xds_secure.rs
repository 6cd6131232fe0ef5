//! How the management server is reached: over TLS, with a certificate, with a token; and what an
//! operator is told when that does not work.

mod common;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::ads::{Ads, ENDPOINTS, Security};
use mesh_testbed::{eventually, loopback, needs_root};

use common::certs::{Authority, arg};
use common::resources::endpoints;
use common::scene::{PATIENCE, Scene};

/// A server on loopback whose certificate has this name only.
fn server(authority: &Authority, name: &str) -> Result<Security> {
    Ok(Security {
        identity: Some(authority.issue(&[name])?.pair()),
        ..Security::default()
    })
}

/// An agent that is told of the server by these flags, and gets nowhere.
fn refused(security: Security, flags: &[&str], says: &[&str]) -> Result<Scene> {
    let scene = Scene::at(
        Ads::secured(security)?,
        "delta",
        |builder| {
            flags
                .iter()
                .fold(builder, |builder, flag| builder.arg(flag))
        },
        |_| {},
    )?;
    for text in says {
        scene.logs(text)?;
    }
    ensure!(scene.agent.get("/ready")?.status == 503, "it is ready");
    let mut status = String::new();
    eventually("the status tells it", PATIENCE, || {
        status = scene.agent.command("status").unwrap_or_default();
        says.iter().all(|text| status.contains(text))
    })
    .with_context(|| status.clone())?;
    Ok(scene)
}

#[test]
fn over_mutual_tls_with_a_token_configuration_comes_and_goes_on_coming() -> Result<()> {
    needs_root!(Ok(()));
    let (authority, clients) = (Authority::new("servers")?, Authority::new("clients")?);
    let [certificate, key] = clients.issue(&["agent"])?.files(&clients, "agent")?;
    let token = clients.file("token", "first\n")?;
    let security = Security {
        client_roots: Some(clients.root()),
        token: Some("first".into()),
        ..server(&authority, "istiod.istio-system.svc")?
    };
    for mode in ["delta", "sotw"] {
        let mut scene = Scene::at(
            Ads::secured(security.clone())?,
            mode,
            |builder| {
                builder
                    .arg("--xds-ca")
                    .arg(arg(&authority
                        .file("root.pem", &authority.root())
                        .unwrap_or_default()))
                    .arg("--xds-cert")
                    .arg(arg(&certificate))
                    .arg("--xds-key")
                    .arg(arg(&key))
                    .arg("--xds-token")
                    .arg(arg(&token))
                    .arg("--xds-server-name")
                    .arg("istiod.istio-system.svc")
            },
            |_| {},
        )?
        .ready()?;
        assert_eq!(scene.served_by()?, "one", "{mode}");
        let traffic = scene.traffic()?;
        // Both sides renew what they are known by; the next stream uses it.
        scene.ads.stop();
        let fresh = Authority::new("clients, second generation")?;
        let [from, from_key] = fresh.issue(&["agent"])?.files(&fresh, "agent")?;
        std::fs::copy(&from, &certificate)?;
        std::fs::copy(&from_key, &key)?;
        clients.file("token", "second")?;
        scene.ads.secure(Security {
            client_roots: Some(fresh.root()),
            token: Some("second".into()),
            ..server(&authority, "istiod.istio-system.svc")?
        });
        scene.ads.change(|state| {
            state.set(ENDPOINTS, "one", &endpoints("one", &[scene.two.addr4()]));
        });
        scene.ads.resume()?;
        scene.eventually_served_by("two")?;
        traffic.end()?;
        // As it was, for the other variant.
        let [again, again_key] = clients.issue(&["agent"])?.files(&clients, "again")?;
        std::fs::rename(again, &certificate)?;
        std::fs::rename(again_key, &key)?;
        clients.file("token", "first")?;
    }
    Ok(())
}

#[test]
fn a_server_that_cannot_be_trusted_is_not_asked() -> Result<()> {
    needs_root!(Ok(()));
    let (right, wrong) = (Authority::new("right")?, Authority::new("wrong")?);
    let roots = arg(&right.root_file()?);
    // Certified by somebody else.
    let scene = refused(
        server(&wrong, &loopback::address().to_string())?,
        &["--xds-ca", &roots],
        &[
            "UnknownIssuer",
            "does not descend from the roots in",
            &roots,
            "--xds-ca",
        ],
    )?;
    ensure!(scene.ads.asked().is_empty(), "it was asked all the same");
    // For another name.
    refused(
        server(&right, "istiod.istio-system.svc")?,
        &["--xds-ca", &roots],
        &["--xds-server-name", "istiod.istio-system.svc"],
    )?;
    // Not valid any more.
    let expired = right.issue_expired(&[&loopback::address().to_string()])?;
    refused(
        Security {
            identity: Some(expired.pair()),
            ..Security::default()
        },
        &["--xds-ca", &roots],
        &["expired", "the server's certificate must be renewed"],
    )?;
    Ok(())
}

#[test]
fn a_server_that_does_not_know_us_says_what_it_wants() -> Result<()> {
    needs_root!(Ok(()));
    let authority = Authority::new("all")?;
    let roots = arg(&authority.root_file()?);
    let plain = Security::default();
    let tls = server(&authority, &loopback::address().to_string())?;
    let mutual = Security {
        client_roots: Some(authority.root()),
        ..tls.clone()
    };
    // No certificate where one is wanted.
    refused(
        mutual.clone(),
        &["--xds-ca", &roots],
        &["it wants a certificate of ours: --xds-cert FILE and --xds-key FILE"],
    )?;
    // One that has expired.
    let expired = authority.issue_expired(&["agent"])?;
    let [certificate, key] = expired.files(&authority, "expired")?;
    let (certificate, key) = (arg(&certificate), arg(&key));
    refused(
        mutual.clone(),
        &[
            "--xds-ca",
            &roots,
            "--xds-cert",
            &certificate,
            "--xds-key",
            &key,
        ],
        &[
            "it does not take the certificate in",
            &certificate,
            "to Dec 31",
            "renew it",
        ],
    )?;
    // One that somebody else signed.
    let other = Authority::new("other")?;
    let [certificate, key] = other.issue(&["agent"])?.files(&other, "agent")?;
    let (certificate, key) = (arg(&certificate), arg(&key));
    refused(
        mutual,
        &[
            "--xds-ca",
            &roots,
            "--xds-cert",
            &certificate,
            "--xds-key",
            &key,
        ],
        &[
            "it does not take the certificate in",
            &certificate,
            "--xds-cert",
        ],
    )?;
    // No token, and a wrong one.
    let token = |security: &Security| Security {
        token: Some("right".into()),
        ..security.clone()
    };
    refused(
        token(&plain),
        &[],
        &["there is no token", "--xds-token FILE"],
    )?;
    let file = arg(&authority.file("token", "wrong")?);
    let scene = refused(
        token(&tls),
        &["--xds-ca", &roots, "--xds-token", &file],
        &["this token is not known", &file, "--xds-token"],
    )?;
    // Once it is right, nothing needs to be started anew.
    authority.file("token", "right")?;
    let scene = scene.ready()?;
    assert_eq!(scene.served_by()?, "one");
    // A file that is not there.
    refused(
        token(&tls),
        &["--xds-ca", &roots, "--xds-token", "/nowhere/token"],
        &["cannot read /nowhere/token"],
    )?;
    Ok(())
}

#[test]
fn tls_to_a_plaintext_port_and_the_other_way_round_are_told_apart() -> Result<()> {
    needs_root!(Ok(()));
    let authority = Authority::new("all")?;
    let roots = arg(&authority.root_file()?);
    refused(
        Security::default(),
        &["--xds-ca", &roots],
        &["it does not speak TLS there"],
    )?;
    let scene = refused(
        server(&authority, &loopback::address().to_string())?,
        &[],
        &["it may want TLS: --xds-ca"],
    )?;
    eventually("it tries again", PATIENCE, || {
        scene.agent.log().matches("it may want TLS").count() > 1
    })
}
