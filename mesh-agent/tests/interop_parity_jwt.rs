//! Tokens, shown to Envoy and to the agent.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA384, RsaEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_testbed::needs_root;
use mesh_testbed::oracle::Setup;
use serde_json::{Value, json};

use common::filters::{envoy, filter, request, router, said, setup, through};

fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Keys of every kind, and the set that lists them.
struct Signer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    edwards: Ed25519KeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let curve = |parameters| EcdsaKeyPair::generate(parameters).expect("a key");
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            p256: curve(&ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: curve(&ECDSA_P384_SHA384_FIXED_SIGNING),
            edwards: Ed25519KeyPair::generate().expect("a key"),
            random: SystemRandom::new(),
        }
    }

    fn jwks(&self) -> Value {
        let public = self.rsa.public_key();
        let (n, e) = (public.modulus(), public.exponent());
        let curve = |key: &EcdsaKeyPair, name: &str, id: &str| {
            let point = &key.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            json!({ "kty": "EC", "crv": name, "kid": id, "x": part(x), "y": part(y) })
        };
        json!({ "keys": [
            { "kty": "RSA", "kid": "r", "n": part(n.big_endian_without_leading_zero()),
              "e": part(e.big_endian_without_leading_zero()) },
            curve(&self.p256, "P-256", "p"),
            curve(&self.p384, "P-384", "q"),
            { "kty": "OKP", "crv": "Ed25519", "kid": "o", "alg": "EdDSA",
              "x": part(self.edwards.public_key()) },
            { "kty": "oct", "kid": "s", "alg": "HS256", "k": part("a secret of some length") },
            { "kty": "unknown", "kid": "u" },
        ] })
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", part(header.to_string()), part(claims.to_string()));
        let data = signed.as_bytes();
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa
                .sign(encoding, &self.random, data, &mut signature)
                .expect("signed");
            signature
        };
        let curve = |key: &EcdsaKeyPair| {
            key.sign(&self.random, data)
                .expect("signed")
                .as_ref()
                .to_vec()
        };
        let signature = match header["alg"].as_str() {
            Some("RS256") => rsa(&RSA_PKCS1_SHA256),
            Some("RS512") => rsa(&RSA_PKCS1_SHA512),
            Some("PS384") => rsa(&RSA_PSS_SHA384),
            Some("ES256") => curve(&self.p256),
            Some("ES384") => curve(&self.p384),
            Some("EdDSA") => self.edwards.sign(data).as_ref().to_vec(),
            _ => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret of some length");
                hmac::sign(&key, data).as_ref().to_vec()
            }
        };
        format!("{signed}.{}", part(signature))
    }

    /// Signed with the first key.
    fn usual(&self, claims: &Value) -> String {
        self.token(&json!({ "alg": "RS256", "kid": "r" }), claims)
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

/// A provider of issuer `i` with keys in the configuration.
fn provider(keys: &Value, more: Value) -> Value {
    let mut provider =
        json!({ "issuer": "i", "local_jwks": { "inline_string": keys.to_string() } });
    for (field, value) in more.as_object().into_iter().flatten() {
        provider[field] = value.clone();
    }
    provider
}

/// Every named requirement on a path of its name.
fn authn(providers: Value, requirements: Value) -> (Value, Vec<(String, Value)>) {
    let routes = requirements
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| {
            let said = said(
                "jwt_authn",
                "jwt_authn.v3.PerRouteConfig",
                json!({ "requirement_name": name }),
            );
            (format!("/{name}"), said)
        })
        .collect();
    let config = json!({ "providers": providers, "requirement_map": requirements });
    (config, routes)
}

fn chain(config: Value) -> Value {
    filter("jwt_authn", "jwt_authn.v3.JwtAuthentication", config)
}

#[test]
fn tokens_are_judged_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let signer = Signer::new();
    let keys = signer.jwks();
    let (mut config, mut routes) = authn(
        json!({
            "p": provider(&keys, json!({})),
            "aud": provider(&keys, json!({ "audiences": ["https://one.example/", "two"] })),
            "skew": provider(&keys, json!({ "clock_skew_seconds": 5 })),
            "sub": provider(&keys, json!({ "subjects": { "prefix": "spiffe://" } })),
            "expires": provider(&keys, json!({ "require_expiration": true })),
            "short": provider(&keys, json!({ "max_lifetime": "100s" })),
            "any": provider(&keys, json!({ "issuer": "" })),


        }),
        json!({
            "p": { "provider_name": "p" },
            "aud": { "provider_name": "aud" },
            "other-aud": { "provider_and_audiences": { "provider_name": "aud", "audiences": ["three"] } },
            "skew": { "provider_name": "skew" },
            "sub": { "provider_name": "sub" },
            "expires": { "provider_name": "expires" },
            "short": { "provider_name": "short" },
            "any": { "provider_name": "any" },


        }),
    );
    config["rules"] = json!([
        { "match": { "prefix": "/open" } },
        { "match": { "prefix": "/rule", "headers": [{ "name": "x-skip", "present_match": true }] } },
        { "match": { "prefix": "/rule" }, "requires": { "provider_name": "p" } },
        { "match": { "prefix": "/" }, "requirement_name": "aud" },
    ]);
    config["bypass_cors_preflight"] = json!(true);
    for path in ["/open", "/rule", "/default"] {
        routes.push((path.into(), json!({})));
    }
    let off = json!({ "disabled": true });
    let off = said("jwt_authn", "jwt_authn.v3.PerRouteConfig", off);
    routes.push(("/off".into(), off));
    let unknown = json!({ "requirement_name": "unknown" });
    let unknown = said("jwt_authn", "jwt_authn.v3.PerRouteConfig", unknown);
    routes.push(("/unknown".into(), unknown));
    let now = now();
    let good =
        signer.usual(&json!({ "iss": "i", "sub": "spiffe://a", "exp": now + 90, "aud": "two" }));
    let mut requests = Vec::new();
    for (path, _) in &routes {
        requests.push(request("GET", path, ""));
        requests.push(request("GET", path, &bearer(&good)));
        requests.push(request(
            "GET",
            &format!("{path}?a=1&access_token={good}"),
            "",
        ));
    }
    let mut on = |path: &str, token: &str| requests.push(request("GET", path, &bearer(token)));
    for header in [
        json!({ "alg": "RS256", "kid": "r" }),
        json!({ "alg": "RS512", "kid": "r" }),
        json!({ "alg": "PS384", "kid": "r" }),
        json!({ "alg": "ES256", "kid": "p" }),
        json!({ "alg": "ES384", "kid": "q" }),
        json!({ "alg": "EdDSA", "kid": "o" }),
        json!({ "alg": "HS256", "kid": "s" }),
        json!({ "alg": "RS256" }),
        json!({ "alg": "EdDSA" }),
        json!({ "alg": "ES256", "kid": "r" }),
        json!({ "alg": "RS256", "kid": "nobody" }),
        json!({ "alg": "HS256", "kid": "r" }),
        json!({ "alg": "HS512", "kid": "s" }),
        json!({ "alg": "none" }),
        json!({ "alg": 1 }),
        json!({ "kid": "r" }),
        json!({ "alg": "RS256", "kid": 1 }),
        json!([]),
    ] {
        on("/p", &signer.token(&header, &json!({ "iss": "i" })));
    }
    for claims in [
        json!({ "iss": "i" }),
        json!({ "iss": "other" }),
        json!({}),
        json!({ "iss": 1 }),
        json!({ "iss": "i", "sub": 1 }),
        json!({ "iss": "i", "jti": [] }),
        json!({ "iss": "i", "aud": [] }),
        json!({ "iss": "i", "aud": ["x", "one.example"] }),
        json!({ "iss": "i", "aud": "http://one.example" }),
        json!({ "iss": "i", "aud": "three" }),
        json!({ "iss": "i", "aud": { "a": 1 } }),
        json!({ "iss": "i", "aud": ["a", 1] }),
        json!({ "iss": "i", "exp": now - 30 }),
        json!({ "iss": "i", "exp": now - 3600 }),
        json!({ "iss": "i", "exp": now + 3600 }),
        json!({ "iss": "i", "exp": 0 }),
        json!({ "iss": "i", "exp": "1" }),
        json!({ "iss": "i", "exp": -1 }),
        json!({ "iss": "i", "exp": 1e200 }),
        json!({ "iss": "i", "exp": now as f64 + 50.5 }),
        json!({ "iss": "i", "nbf": now + 30 }),
        json!({ "iss": "i", "nbf": now + 3600 }),
        json!({ "iss": "i", "nbf": null }),
        json!({ "iss": "i", "iat": "x" }),
        json!({ "iss": "i", "iat": -5 }),
        json!({ "iss": "i", "sub": "spiffe://b" }),
        json!([]),
    ] {
        let token = signer.usual(&claims);
        for path in [
            "/p",
            "/aud",
            "/other-aud",
            "/skew",
            "/sub",
            "/expires",
            "/short",
            "/any",
            "/default",
        ] {
            on(path, &token);
        }
    }
    let (head, rest) = good.split_once('.').unwrap_or_default();
    let (body, signature) = rest.split_once('.').unwrap_or_default();
    for token in [
        "",
        "a",
        "a.b.c",
        "a.b",
        "...",
        &format!("{head}.{body}"),
        &format!("{head}.{body}."),
        &format!("{head}.{body}.{signature}."),
        &format!("{head}.{body}.!!"),
        &format!("{head}.!!.{signature}"),
        &format!("{head}.{}.{signature}", part("{}")),
        &format!("{head}.{}.{signature}", part("nonsense")),
        &format!("{}.{body}.{signature}", part("nonsense")),
        &format!("{head}.{body}.{}", part("short")),
        &format!("  {good}"),
        &format!(",{good}"),
        &format!("{good} "),
        &format!("{good},x"),
    ] {
        on("/p", token);
    }
    for headers in [
        format!("authorization: bearer {good}\r\n"),
        format!("authorization: Basic x, Bearer {good}\r\n"),
        format!("authorization: {good}\r\n"),
        format!("{}{}", bearer(&good), bearer(&good)),
        format!("{}content-type: application/grpc\r\n", bearer("a.b.c")),
        "content-type: application/grpc\r\n".to_owned(),
        "x-skip: 1\r\n".to_owned(),
        "x-envoy-original-path: /before\r\n".to_owned(),
        "x-forwarded-proto: https\r\n".to_owned(),
    ] {
        requests.push(request("GET", "/rule", &headers));
    }
    let asks = "origin: https://a\r\naccess-control-request-method: GET\r\n";
    requests.push(request("OPTIONS", "/p", asks));
    requests.push(request("OPTIONS", "/p", "origin: https://a\r\n"));
    requests.push(request(
        "GET",
        &format!("/p/{}?x=1", "long".repeat(100)),
        "",
    ));
    requests.push(request("GET", "/nowhere", ""));
    requests.push(request("HEAD", "/p", ""));
    let both = format!("/p?access_token={good}&a=1&b=2");
    requests.push(request("GET", &both, ""));
    requests.push(request("GET", &both, &bearer(&good)));
    requests.push(request("GET", &both, &bearer("a.b.c")));
    through(&setup(vec![chain(config)], json!({}), &routes), &requests)
}

#[test]
fn requirements_are_combined_and_claims_told_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let signer = Signer::new();
    let keys = signer.jwks();
    let (config, mut routes) = authn(
        json!({
            "a": provider(&keys, json!({ "issuer": "a", "payload_in_metadata": "a" })),
            "b": provider(&keys, json!({ "issuer": "b", "forward": true, "from_headers": [
                { "name": "x-b", "value_prefix": "T=" }, { "name": "x-b-plain" }],
                "from_params": ["b"], "from_cookies": ["b"] })),
            "told": provider(&keys, json!({ "issuer": "t", "forward_payload_header": "x-payload",
                "claim_to_headers": [
                    { "header_name": "x-sub", "claim_name": "sub" },
                    { "header_name": "x-deep", "claim_name": "one.two" },
                    { "header_name": "x-number", "claim_name": "number" },
                    { "header_name": "x-fraction", "claim_name": "fraction" },
                    { "header_name": "x-truth", "claim_name": "truth" },
                    { "header_name": "x-list", "claim_name": "list" },
                    { "header_name": "x-object", "claim_name": "one" },
                    { "header_name": "x-none", "claim_name": "none" },
                ] })),
            "padded": provider(&keys, json!({ "issuer": "d", "forward": true,
                "forward_payload_header": "x-payload", "pad_forward_payload_header": true })),
            "noted": provider(&keys, json!({ "issuer": "n", "payload_in_metadata": "payload",
                "header_in_metadata": "header", "failed_status_in_metadata": "failed",
                "normalize_payload_in_metadata": { "space_delimited_claims": ["scope"] } })),
        }),
        json!({
            "a": { "provider_name": "a" },
            "b": { "provider_name": "b" },
            "told": { "provider_name": "told" },
            "padded": { "provider_name": "padded" },
            "noted": { "provider_name": "noted" },
            "a-or-b": { "requires_any": { "requirements": [{ "provider_name": "a" }, { "provider_name": "b" }] } },
            "a-and-b": { "requires_all": { "requirements": [{ "provider_name": "a" }, { "provider_name": "b" }] } },
            "a-or-missing": { "requires_any": { "requirements": [{ "provider_name": "a" }, { "allow_missing": {} }] } },
            "a-or-failed": { "requires_any": { "requirements": [{ "provider_name": "a" }, { "allow_missing_or_failed": {} }] } },
            "noted-or-failed": { "requires_any": { "requirements": [{ "provider_name": "noted" }, { "allow_missing_or_failed": {} }] } },
            "missing": { "allow_missing": {} },
            "failed": { "allow_missing_or_failed": {} },
            "a-or-b-or-missing": { "requires_any": { "requirements": [
                { "requires_all": { "requirements": [{ "provider_name": "a" }, { "provider_name": "b" }] } },
                { "provider_and_audiences": { "provider_name": "a", "audiences": ["x"] } },
                { "allow_missing": {} }] } },
            "both-optional": { "requires_all": { "requirements": [
                { "requires_any": { "requirements": [{ "provider_name": "a" }, { "allow_missing": {} }] } },
                { "requires_any": { "requirements": [{ "provider_name": "b" }, { "allow_missing": {} }] } }] } },
            "nothing": {},
        }),
    );
    // What was verified is visible to access rules behind.
    let metadata = |path: &[&str], value: Value| {
        let path: Vec<Value> = path.iter().map(|key| json!({ "key": key })).collect();
        json!({ "metadata": { "filter": "envoy.filters.http.jwt_authn", "path": path, "value": value } })
    };
    let conditions = [
        (
            "sub",
            metadata(
                &["payload", "sub"],
                json!({ "string_match": { "exact": "me" } }),
            ),
        ),
        (
            "scope",
            metadata(
                &["payload", "scope"],
                json!({ "list_match": { "one_of": { "string_match": { "exact": "write" } } } }),
            ),
        ),
        (
            "alg",
            metadata(
                &["header", "alg"],
                json!({ "string_match": { "exact": "RS256" } }),
            ),
        ),
        (
            "number",
            metadata(
                &["payload", "number"],
                json!({ "double_match": { "exact": 7.0 } }),
            ),
        ),
        (
            "code",
            metadata(&["failed", "code"], json!({ "present_match": true })),
        ),
        (
            "missing",
            metadata(
                &["failed", "code"],
                json!({ "string_match": { "exact": "1" } }),
            ),
        ),
        (
            "expired",
            metadata(
                &["failed", "message"],
                json!({ "string_match": { "exact": "Jwt is expired" } }),
            ),
        ),
        (
            "issuer",
            metadata(
                &["failed", "message"],
                json!({ "string_match": { "exact": "Jwt issuer is not configured" } }),
            ),
        ),
    ];
    for (name, condition) in conditions {
        let requirement = json!({ "requirement_name": "noted-or-failed" });
        let mut overrides = said("jwt_authn", "jwt_authn.v3.PerRouteConfig", requirement);
        let rules = json!({ "rbac": { "rules": { "action": "ALLOW", "policies": { "p": {
            "permissions": [{ "any": true }], "principals": [condition] } } } } });
        let rules = said("rbac", "rbac.v3.RBACPerRoute", rules);
        for (filter, said) in rules.as_object().into_iter().flatten() {
            overrides[filter] = said.clone();
        }
        routes.push((format!("/sees-{name}"), overrides));
    }
    let now = now();
    let of = |issuer: &str| signer.usual(&json!({ "iss": issuer, "sub": "me" }));
    let (a, b) = (of("a"), of("b"));
    let claims = json!({ "iss": "t", "sub": "me", "one": { "two": "deep" }, "number": 7,
        "fraction": -1.25, "truth": false, "list": ["x", 1], "none": null });
    let noted =
        signer.usual(&json!({ "iss": "n", "sub": "me", "scope": "read write", "number": 7 }));
    let old = signer.usual(&json!({ "iss": "n", "exp": now - 1000 }));
    let mut headers = vec![
        String::new(),
        bearer(&a),
        bearer(&b),
        bearer(&of("z")),
        bearer("a.b.c"),
        bearer(&format!("{a}x")),
        format!("x-b: T={b}\r\n"),
        format!("x-b: T= {b}\r\n"),
        format!("x-b-plain: {b}\r\n"),
        format!("x-b-plain: T={b}\r\n"),
        format!("cookie: c=1; b={b}\r\n"),
        format!("cookie: b=\"{b}\"\r\n"),
        format!("{}x-b-plain: {b}\r\n", bearer(&a)),
        format!("{}x-b-plain: {a}\r\n", bearer(&a)),
        format!("{}x-b-plain: a.b.c\r\n", bearer(&a)),
        bearer(&signer.usual(&claims)),
        format!("{}x-sub: forged\r\nx-payload: forged\r\n", bearer(&of("t"))),
        format!("{}x-payload: forged\r\n", bearer(&of("d"))),
        "x-sub: forged\r\nx-payload: forged\r\n".to_owned(),
        bearer(&noted),
        bearer(&old),
    ];
    headers.push(bearer(&signer.usual(&json!({ "iss": "a", "aud": "x" }))));
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for headers in &headers {
            requests.push(request("GET", path, headers));
        }
        requests.push(request("GET", &format!("{path}?b={b}"), ""));
        requests.push(request(
            "GET",
            &format!("{path}?access_token={a}&b={b}"),
            "",
        ));
    }
    let rules = filter("rbac", "rbac.v3.RBAC", json!({}));
    through(
        &setup(vec![chain(config), rules], json!({}), &routes),
        &requests,
    )
}

#[test]
fn keys_are_fetched_as_by_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let signer = Signer::new();
    let remote = |cluster: &str, answer: Value, more: Value| {
        let answer = part(answer.to_string());
        let uri = format!("http://keys.example/jwks?answer={answer}");
        let mut remote = json!({ "http_uri": { "uri": uri, "cluster": cluster, "timeout": "1s" } });
        for (field, value) in more.as_object().into_iter().flatten() {
            remote[field] = value.clone();
        }
        json!({ "issuer": "i", "remote_jwks": remote })
    };
    let body = |text: String| json!({ "body": text });
    let keys = signer.jwks().to_string();
    let mut providers = json!({
        "kept": remote("peer", body(keys.clone()), json!({})),
        "short": remote("peer", body(keys.clone()), json!({ "cache_duration": "0.001s" })),
        "early": remote("peer", body(keys.clone()), json!({ "async_fetch": { "fast_listener": true } })),
        "slow": remote("peer", json!({ "body": keys, "sleep_ms": 3000 }), json!({})),
        "error": remote("peer", json!({ "status": 500, "body": keys }), json!({})),
        "created": remote("peer", json!({ "status": 201, "body": keys }), json!({})),
        "nonsense": remote("peer", body("nonsense".into()), json!({})),
        "empty": remote("peer", body(String::new()), json!({})),
        "no-keys": remote("peer", body("{\"keys\":[]}".into()), json!({})),
        "down": remote("down", json!({}), json!({})),
        "nobody": remote("nobody", json!({}), json!({})),
    });
    providers["reset"] = json!({ "issuer": "i", "remote_jwks": { "http_uri": {
        "uri": "http://keys.example/x?answer=reset", "cluster": "peer", "timeout": "1s" } } });
    let names: Vec<String> = providers
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect();
    let requirements: serde_json::Map<String, Value> = names
        .iter()
        .map(|name| (name.clone(), json!({ "provider_name": name })))
        .collect();
    let (config, routes) = authn(providers, requirements.into());
    let good = signer.usual(&json!({ "iss": "i" }));
    let other = Signer::new().usual(&json!({ "iss": "i" }));
    let mut requests = Vec::new();
    for (path, _) in &routes {
        for token in [&good, &good, &other] {
            requests.push(request("GET", path, &bearer(token)));
        }
    }
    let mut setup: Setup = setup(vec![chain(config)], json!({}), &routes);
    setup.clusters.push(("peer".into(), json!({})));
    let endpoint = json!({ "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 1 } } } });
    setup.clusters.push((
        "down".into(),
        json!({ "load_assignment": {
        "cluster_name": "down", "endpoints": [{ "lb_endpoints": [endpoint] }] } }),
    ));
    setup.clusters.push((
        "nobody".into(),
        json!({ "load_assignment": { "cluster_name": "nobody" } }),
    ));
    setup.hcm["http_filters"][1] = router();
    through(&setup, &requests)
}
