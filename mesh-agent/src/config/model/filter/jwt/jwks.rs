//! Keys that tokens are verified with (RFC 7517), parsed once.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, ParsedPublicKey, RsaPublicKeyComponents, VerificationAlgorithm};
use base64::Engine as _;
use serde_json::{Map, Value};

use super::status::Status;
use super::token::{Algorithm, BASE64URL, Token};

/// The length of an Ed25519 signature, in bytes.
const ED25519_SIGNATURE: usize = 64;

/// The shortest modulus of an RSA key that is used, in bytes.
const RSA_MODULUS: usize = 2048 / 8;

/// A set of keys; one at least.
#[derive(Debug)]
pub struct Jwks(Vec<Jwk>);

#[derive(Debug)]
struct Jwk {
    /// Empty if the key has none.
    id: String,
    /// The only one it is for; not said: all that its kind can do.
    algorithm: Option<Algorithm>,
    key: Key,
}

/// Keys by kind; each ready for every algorithm it may be asked for.
enum Key {
    Public(Vec<(Algorithm, ParsedPublicKey)>),
    Ed25519(ParsedPublicKey),
    Secret(Vec<u8>),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Public(_) => "Public",
            Self::Ed25519(_) => "Ed25519",
            Self::Secret(_) => "Secret",
        })
    }
}

impl Jwks {
    /// Reads a set. Keys that cannot be used are left out.
    ///
    /// # Errors
    /// It is no set of keys, or none of them can be used.
    pub fn parse(json: &[u8]) -> Result<Self, Status> {
        let set: Map<String, Value> =
            serde_json::from_slice(json).map_err(|_| Status::JwksParseError)?;
        let keys = set.get("keys").ok_or(Status::JwksNoKeys)?;
        let keys = keys.as_array().ok_or(Status::JwksBadKeys)?;
        let keys: Vec<Jwk> = keys
            .iter()
            .filter_map(|key| jwk(key.as_object()?))
            .collect();
        if keys.is_empty() {
            return Err(Status::JwksNoValidKeys);
        }
        Ok(Self(keys))
    }

    /// Verifies a token's signature with every key that may have made it.
    ///
    /// # Errors
    /// None of them did.
    pub fn verify(&self, token: &Token<'_>) -> Result<(), Status> {
        let mut fits = false;
        for jwk in &self.0 {
            let same_id = token.key_id.is_empty() || jwk.id.is_empty() || jwk.id == token.key_id;
            let same_algorithm = jwk.algorithm.is_none_or(|one| one == token.algorithm);
            if !same_id || !same_algorithm {
                continue;
            }
            fits = true;
            if let Key::Ed25519(_) = jwk.key
                && token.signature.len() != ED25519_SIGNATURE
            {
                return Err(Status::Ed25519SignatureWrongLength);
            }
            if jwk.key.made(token) {
                return Ok(());
            }
        }
        Err(if fits {
            Status::VerificationFail
        } else {
            Status::JwksKidAlgMismatch
        })
    }
}

impl Key {
    fn made(&self, token: &Token<'_>) -> bool {
        let signed = token.signed.as_bytes();
        match self {
            Self::Public(by_algorithm) => by_algorithm
                .iter()
                .find(|(algorithm, _)| *algorithm == token.algorithm)
                .is_some_and(|(_, key)| key.verify_sig(signed, &token.signature).is_ok()),
            Self::Ed25519(key) => {
                token.algorithm == Algorithm::EdDsa
                    && key.verify_sig(signed, &token.signature).is_ok()
            }
            Self::Secret(secret) => {
                let algorithm = match token.algorithm {
                    Algorithm::Hs256 => hmac::HMAC_SHA256,
                    Algorithm::Hs384 => hmac::HMAC_SHA384,
                    Algorithm::Hs512 => hmac::HMAC_SHA512,
                    _ => return false,
                };
                let key = hmac::Key::new(algorithm, secret);
                hmac::verify(&key, signed, &token.signature).is_ok()
            }
        }
    }
}

fn jwk(fields: &Map<String, Value>) -> Option<Jwk> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let bytes = |name: &str| BASE64URL.decode(text(name)?).ok();
    let algorithm = match text("alg") {
        Some(name) => Some(Algorithm::named(name)?),
        None => None,
    };
    let key = match text("kty")? {
        "RSA" => rsa(&bytes("n")?, &bytes("e")?, algorithm)?,
        "EC" => elliptic(text("crv"), &bytes("x")?, &bytes("y")?, algorithm)?,
        "OKP" => {
            if text("crv")? != "Ed25519" || algorithm.is_some_and(|one| one != Algorithm::EdDsa) {
                return None;
            }
            Key::Ed25519(ParsedPublicKey::new(&signature::ED25519, bytes("x")?).ok()?)
        }
        "oct" => {
            use Algorithm::{Hs256, Hs384, Hs512};
            if algorithm.is_some_and(|one| !matches!(one, Hs256 | Hs384 | Hs512)) {
                return None;
            }
            Key::Secret(bytes("k").filter(|secret| !secret.is_empty())?)
        }
        _ => return None,
    };
    Some(Jwk {
        id: text("kid").unwrap_or_default().to_owned(),
        algorithm,
        key,
    })
}

fn rsa(n: &[u8], e: &[u8], algorithm: Option<Algorithm>) -> Option<Key> {
    let all: [(Algorithm, &'static dyn VerificationAlgorithm); 6] = [
        (Algorithm::Rs256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (Algorithm::Rs384, &signature::RSA_PKCS1_2048_8192_SHA384),
        (Algorithm::Rs512, &signature::RSA_PKCS1_2048_8192_SHA512),
        (Algorithm::Ps256, &signature::RSA_PSS_2048_8192_SHA256),
        (Algorithm::Ps384, &signature::RSA_PSS_2048_8192_SHA384),
        (Algorithm::Ps512, &signature::RSA_PSS_2048_8192_SHA512),
    ];
    // Leading zeros are no part of the number.
    let number = |bytes: &[u8]| -> Vec<u8> {
        bytes
            .iter()
            .copied()
            .skip_while(|byte| *byte == 0)
            .collect()
    };
    let modulus = number(n);
    if modulus.len() < RSA_MODULUS {
        return None;
    }
    let components = RsaPublicKeyComponents {
        n: modulus,
        e: number(e),
    };
    let der: PublicKeyX509Der<'_> = components.as_der().ok()?;
    parsed(&all, der.as_ref(), algorithm)
}

fn elliptic(curve: Option<&str>, x: &[u8], y: &[u8], algorithm: Option<Algorithm>) -> Option<Key> {
    let of_curve = |curve: &str| {
        Some(match curve {
            "P-256" => Algorithm::Es256,
            "P-384" => Algorithm::Es384,
            "P-521" => Algorithm::Es512,
            _ => return None,
        })
    };
    // Without both it is P-256.
    let by_curve = match curve {
        Some(curve) if !curve.is_empty() => Some(of_curve(curve)?),
        _ => None,
    };
    let algorithm = match (by_curve, algorithm) {
        (Some(one), Some(other)) if one != other => return None,
        (one, other) => one.or(other).unwrap_or(Algorithm::Es256),
    };
    let (parameters, length): (&'static dyn VerificationAlgorithm, usize) = match algorithm {
        Algorithm::Es256 => (&signature::ECDSA_P256_SHA256_FIXED, 32),
        Algorithm::Es384 => (&signature::ECDSA_P384_SHA384_FIXED, 48),
        Algorithm::Es512 => (&signature::ECDSA_P521_SHA512_FIXED, 66),
        _ => return None,
    };
    // An uncompressed point: 4, then both coordinates in full length.
    let mut point = vec![4];
    for coordinate in [x, y] {
        let missing = length.checked_sub(coordinate.len())?;
        point.resize(point.len() + missing, 0);
        point.extend_from_slice(coordinate);
    }
    parsed(&[(algorithm, parameters)], &point, Some(algorithm))
}

fn parsed(
    all: &[(Algorithm, &'static dyn VerificationAlgorithm)],
    key: &[u8],
    only: Option<Algorithm>,
) -> Option<Key> {
    let keys: Vec<_> = all
        .iter()
        .filter(|(algorithm, _)| only.is_none_or(|only| only == *algorithm))
        .filter_map(|(algorithm, parameters)| {
            Some((*algorithm, ParsedPublicKey::new(*parameters, key).ok()?))
        })
        .collect();
    (!keys.is_empty()).then_some(Key::Public(keys))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    };
    use serde_json::json;

    use super::*;

    fn part(bytes: impl AsRef<[u8]>) -> String {
        BASE64URL.encode(bytes).trim_end_matches('=').to_owned()
    }

    fn signed(header: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let signed = format!("{}.{}", part(header.to_string()), part(r#"{"iss":"i"}"#));
        let signature = sign(signed.as_bytes());
        format!("{signed}.{}", part(signature))
    }

    fn verify(keys: &Value, token: &str) -> Result<(), Status> {
        let keys = Jwks::parse(json!({ "keys": keys }).to_string().as_bytes())?;
        keys.verify(&Token::parse(token).expect("well-formed"))
    }

    #[test]
    fn signatures_of_each_kind_are_verified() {
        let random = SystemRandom::new();
        let curve = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let point = curve.public_key().as_ref();
        let key = json!({ "kty": "EC", "crv": "P-256", "kid": "a",
            "x": part(&point[1..33]), "y": part(&point[33..]) });
        let token = signed(&json!({ "alg": "ES256", "kid": "a" }), |data| {
            curve.sign(&random, data).expect("signed").as_ref().to_vec()
        });
        assert_eq!(verify(&json!([key]), &token), Ok(()));
        let twin = Ed25519KeyPair::generate().expect("a key");
        let edwards = json!({ "kty": "OKP", "crv": "Ed25519", "x": part(twin.public_key()) });
        let token = signed(&json!({ "alg": "EdDSA" }), |data| {
            twin.sign(data).as_ref().to_vec()
        });
        assert_eq!(verify(&json!([key, edwards]), &token), Ok(()));
        let secret = json!({ "kty": "oct", "k": part("secret") });
        let token = signed(&json!({ "alg": "HS384" }), |data| {
            let key = hmac::Key::new(hmac::HMAC_SHA384, b"secret");
            hmac::sign(&key, data).as_ref().to_vec()
        });
        assert_eq!(verify(&json!([secret]), &token), Ok(()));
        assert_eq!(
            verify(&json!([edwards]), &token),
            Err(Status::Ed25519SignatureWrongLength)
        );
        assert_eq!(verify(&json!([key]), &token), Err(Status::VerificationFail));
    }

    #[test]
    fn a_key_serves_its_own_id_and_algorithm() {
        let key = json!({ "kty": "oct", "k": part("secret"), "kid": "a", "alg": "HS256" });
        let sign = |data: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
            hmac::sign(&key, data).as_ref().to_vec()
        };
        let token = signed(&json!({ "alg": "HS256" }), sign);
        assert_eq!(verify(&json!([key]), &token), Ok(()));
        for header in [
            json!({ "alg": "HS256", "kid": "b" }),
            json!({ "alg": "HS512" }),
            json!({ "alg": "RS256" }),
        ] {
            let token = signed(&header, sign);
            assert_eq!(
                verify(&json!([key]), &token),
                Err(Status::JwksKidAlgMismatch)
            );
        }
    }

    #[test]
    fn sets_without_a_usable_key_are_told_apart() {
        for (json, status) in [
            ("nonsense", Status::JwksParseError),
            ("{}", Status::JwksNoKeys),
            (r#"{"keys":1}"#, Status::JwksBadKeys),
            (r#"{"keys":[{"kty":"RSA"}]}"#, Status::JwksNoValidKeys),
            (
                r#"{"keys":[{"kty":"RSA","n":"AQ","e":"AQAB"}]}"#,
                Status::JwksNoValidKeys,
            ),
        ] {
            let parsed = Jwks::parse(json.as_bytes()).map(|_| ());
            assert_eq!(parsed, Err(status), "{json}");
        }
    }
}
