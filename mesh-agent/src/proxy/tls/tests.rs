//! Certificates right, wrong and mutilated.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::sample::Index;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::config::model::matcher::StringMatcher;
use crate::config::model::tls::{NameKind, NameMatcher};
use crate::identity::{Fault, Leaf};

use super::certificate::{Certificate, typed_names};
use super::peer::{Role, Trust, Verifier, take_refused};
use super::spiffe;

const ID: &str = "spiffe://td/ns/a/sa/b";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("signed");
        let issuer = Issuer::from_ca_cert_der(root.der(), key).expect("an authority");
        Self {
            issuer,
            root: root.der().clone(),
        }
    }

    fn issue(&self, names: Vec<SanType>, ca: bool) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        signed.der().clone()
    }

    fn store(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(self.root.clone()).expect("a root");
        Arc::new(store)
    }
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().expect("ASCII"))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

fn verifier(trust: Trust, names: &[&str]) -> Verifier {
    let name = |name: &&str| NameMatcher {
        kind: Some(NameKind::Uri),
        matcher: StringMatcher::Exact {
            value: (*name).into(),
            ignore_case: false,
        },
    };
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    Verifier {
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        trust,
        names: names.iter().map(name).collect(),
        crls: Arc::default(),
        secret: None,
        provider: Arc::new(aws_lc_rs::default_provider()),
        mandatory: true,
    }
}

#[test]
fn a_peer_is_who_its_names_say_and_its_authority_vouches_for() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let now = UnixTime::now();
    let judge = |verifier: &Verifier, leaf: &CertificateDer<'static>| {
        let judged = verifier.judge(std::slice::from_ref(leaf), now, Role::Client);
        judged.map_err(|_| take_refused().expect("somebody was refused"))
    };
    let fault = |judged: Result<(), super::Refused>| judged.err().map(|refused| refused.fault);
    let named = verifier(Trust::Roots(ours.store()), &[ID]);
    let right = ours.issue(vec![dns("b.a"), uri(ID)], false);
    assert_eq!(fault(judge(&named, &right)), None);
    let refused = judge(
        &named,
        &ours.issue(vec![uri("spiffe://td/ns/a/sa/c")], false),
    );
    let refused = refused.expect_err("another");
    assert_eq!(refused.fault, Fault::Name);
    assert_eq!(&*refused.names[0], "spiffe://td/ns/a/sa/c");
    // A name of another kind is not one.
    assert_eq!(
        fault(judge(&named, &ours.issue(vec![dns("x")], false))),
        Some(Fault::Name)
    );
    assert_eq!(
        fault(judge(&named, &ours.issue(Vec::new(), false))),
        Some(Fault::Name)
    );
    let foreign = theirs.issue(vec![uri(ID)], false);
    assert_eq!(fault(judge(&named, &foreign)), Some(Fault::Chain));
    let late = UnixTime::since_unix_epoch(std::time::Duration::from_secs(3000 * 366 * 86_400));
    assert!(
        named
            .judge(std::slice::from_ref(&right), late, Role::Client)
            .is_err()
    );
    assert!(named.judge(&[], now, Role::Client).is_err());

    let domains = HashMap::from([
        ("td".into(), ours.store()),
        ("other".into(), theirs.store()),
    ]);
    let by_domain = verifier(Trust::Domains(domains), &[]);
    assert_eq!(fault(judge(&by_domain, &right)), None);
    for wrong in [
        foreign,
        ours.issue(vec![uri("spiffe://other/a")], false),
        ours.issue(vec![uri("spiffe://third/a")], false),
        ours.issue(vec![uri(ID), uri("spiffe://td/c")], false),
        ours.issue(vec![dns("td")], false),
        ours.issue(vec![uri("https://td/a")], false),
        ours.issue(vec![uri(ID)], true),
    ] {
        assert_eq!(fault(judge(&by_domain, &wrong)), Some(Fault::Chain));
    }
}

/// Certificates of every shape that is met.
fn corpus(authority: &Authority) -> Vec<CertificateDer<'static>> {
    let ip = SanType::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]));
    let many = (0..50).map(|i| dns(&format!("{i}.example.com"))).collect();
    vec![
        authority.root.clone(),
        authority.issue(vec![uri(ID)], false),
        authority.issue(Vec::new(), false),
        authority.issue(vec![uri(ID), dns("a"), ip], false),
        authority.issue(many, false),
        authority.issue(
            vec![uri(&format!("spiffe://td/{}", "x".repeat(3000)))],
            true,
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutilated_certificates_are_refused_and_harm_nobody(
        flips in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<Index>()),
    ) {
        use std::sync::LazyLock;
        static WORLD: LazyLock<(Authority, Vec<CertificateDer<'static>>)> = LazyLock::new(|| {
            let authority = Authority::new();
            let corpus = corpus(&authority);
            (authority, corpus)
        });
        let (authority, corpus) = &*WORLD;
        let verifier = verifier(Trust::Roots(authority.store()), &[]);
        for right in corpus {
            let mut bytes = right.to_vec();
            for (at, value) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let wrong = CertificateDer::from(bytes);
            let _ = (typed_names(&wrong), spiffe::leaf_domain(&wrong), Leaf::of(&wrong));
            if let Some(shown) = Certificate::of(std::slice::from_ref(&wrong)) {
                let _ = shown.pem.to_string();
            }
            let judged = verifier.judge(std::slice::from_ref(&wrong), UnixTime::now(), Role::Client);
            prop_assert!(judged.is_err() || *wrong == **right, "a mutilated certificate is accepted");
        }
    }

    #[test]
    fn no_text_is_a_trust_domain_by_accident(id in "(spiffe://)?[ -~]{0,40}") {
        if let Some(domain) = spiffe::trust_domain(&id) {
            let whole = format!("spiffe://{domain}");
            prop_assert!(!domain.is_empty() && id.starts_with(&whole));
            prop_assert!(!id.contains(['?', '#', '%', '@', ' ']));
        }
    }

    #[test]
    fn no_text_makes_the_readers_of_pem_panic(text in "(-----BEGIN (CERTIFICATE|X509 CRL|PRIVATE KEY)-----\n)?[A-Za-z0-9+/=\n-]{0,200}") {
        let bytes = text.as_bytes();
        let _ = crate::identity::certificates(bytes);
        let _ = crate::identity::certified_key(bytes, bytes);
        let _ = crate::identity::revocations(bytes);
    }
}
