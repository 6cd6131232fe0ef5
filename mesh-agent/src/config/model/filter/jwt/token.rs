//! A JSON Web Token (RFC 7519), taken apart but not yet believed.

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::status::Status;

/// Base64url, with padding or without; bits beyond the last byte do not matter, as in Envoy.
pub(super) const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of RFC 7518 and RFC 8037")]
pub enum Algorithm {
    Es256,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    EdDsa,
}

impl Algorithm {
    /// By its registered name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A parsed token.
#[derive(Debug)]
pub struct Token<'t> {
    /// What the signature is over.
    pub signed: String,
    /// The payload as it stands in the token.
    pub payload_text: &'t str,
    /// The JOSE header.
    pub header: Map<String, Value>,
    /// The claims.
    pub payload: Map<String, Value>,
    /// The signature's bytes.
    pub signature: Vec<u8>,
    /// `alg`
    pub algorithm: Algorithm,
    /// `kid`; empty if there is none.
    pub key_id: String,
    /// `iss`; empty if there is none.
    pub issuer: String,
    /// `sub`; empty if there is none.
    pub subject: String,
    /// `aud`
    pub audiences: Vec<String>,
    /// `iat`, in seconds since 1970.
    pub issued_at: Option<u64>,
    /// `nbf`
    pub not_before: Option<u64>,
    /// `exp`
    pub expires: Option<u64>,
}

impl<'t> Token<'t> {
    /// Takes a token apart, and complains in the order Envoy does.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn parse(text: &'t str) -> Result<Self, Status> {
        let mut parts = text.split('.').filter(|part| !part.is_empty());
        // Empty parts do not count.
        let (Some(header_text), Some(payload_text), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::BadFormat);
        };
        let header = decode(header_text, Status::HeaderBadBase64)?;
        let header = object(&header, Status::HeaderBadJson)?;
        let name = header.get("alg").and_then(Value::as_str);
        let name = name.ok_or(Status::HeaderBadAlg)?;
        let algorithm = Algorithm::named(name).ok_or(Status::HeaderNotImplementedAlg)?;
        let key_id = string(&header, "kid", Status::HeaderBadKid)?;
        let payload = decode(payload_text, Status::PayloadBadBase64)?;
        let payload = object(&payload, Status::PayloadBadJson)?;
        let issuer = string(&payload, "iss", Status::IssNotString)?;
        let subject = string(&payload, "sub", Status::SubNotString)?;
        let issued_at = seconds(
            &payload,
            "iat",
            Status::IatNotInteger,
            Status::IatOutOfRange,
        )?;
        let not_before = seconds(
            &payload,
            "nbf",
            Status::NbfNotInteger,
            Status::NbfOutOfRange,
        )?;
        let expires = seconds(
            &payload,
            "exp",
            Status::ExpNotInteger,
            Status::ExpOutOfRange,
        )?;
        string(&payload, "jti", Status::JtiNotString)?;
        let audiences = audiences(payload.get("aud")).ok_or(Status::AudNotString)?;
        let signature = decode(signature, Status::SignatureBadBase64)?;
        Ok(Self {
            signed: format!("{header_text}.{payload_text}"),
            payload_text,
            signature,
            algorithm,
            key_id,
            issuer,
            subject,
            audiences,
            issued_at,
            not_before,
            expires,
            header,
            payload,
        })
    }

    /// Whether it is valid at a time, given that clocks differ. All in seconds.
    ///
    /// # Errors
    /// It is not valid yet, or not any more.
    pub fn valid_at(&self, now: u64, skew: u64) -> Result<(), Status> {
        if self
            .not_before
            .is_some_and(|from| now.saturating_add(skew) < from)
        {
            return Err(Status::NotYetValid);
        }
        // Zero is as if it were not there.
        let expires = self.expires.filter(|expires| *expires > 0);
        if expires.is_some_and(|until| now > until.saturating_add(skew)) {
            return Err(Status::Expired);
        }
        Ok(())
    }
}

fn decode(text: &str, otherwise: Status) -> Result<Vec<u8>, Status> {
    BASE64URL.decode(text).map_err(|_| otherwise)
}

fn object(json: &[u8], otherwise: Status) -> Result<Map<String, Value>, Status> {
    serde_json::from_slice(json).map_err(|_| otherwise)
}

/// Empty if it is not there.
fn string(object: &Map<String, Value>, key: &str, otherwise: Status) -> Result<String, Status> {
    match object.get(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(otherwise),
    }
}

fn seconds(
    object: &Map<String, Value>,
    key: &str,
    no_number: Status,
    out_of_range: Status,
) -> Result<Option<u64>, Status> {
    const BEYOND: f64 = 18_446_744_073_709_551_616.0;
    let Some(value) = object.get(key) else {
        return Ok(None);
    };
    let number = value.as_f64().ok_or(no_number)?;
    if !(0.0..BEYOND).contains(&number) {
        return Err(out_of_range);
    }
    Ok(Some(number as u64))
}

fn audiences(value: Option<&Value>) -> Option<Vec<String>> {
    match value {
        None => Some(Vec::new()),
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect(),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, payload: &str) -> String {
        let part = |text: &str| BASE64URL.encode(text).trim_end_matches('=').to_owned();
        format!("{}.{}.{}", part(header), part(payload), part("s"))
    }

    #[test]
    fn the_parts_of_a_token_are_read() {
        let text = token(
            r#"{"alg":"RS256","kid":"k"}"#,
            r#"{"iss":"i","aud":["a","b"],"exp":10.9,"nbf":5}"#,
        );
        let token = Token::parse(&text).expect("a token");
        assert_eq!((&*token.key_id, &*token.issuer), ("k", "i"));
        assert_eq!(token.audiences, ["a", "b"]);
        assert_eq!((token.not_before, token.expires), (Some(5), Some(10)));
        assert_eq!(token.signature, b"s");
        assert!(text.starts_with(&token.signed) && !token.signed.ends_with('.'));
        assert_eq!(token.valid_at(4, 0), Err(Status::NotYetValid));
        assert_eq!(token.valid_at(4, 1), Ok(()));
        assert_eq!(token.valid_at(10, 0), Ok(()));
        assert_eq!(token.valid_at(11, 0), Err(Status::Expired));
        assert_eq!(token.valid_at(11, 1), Ok(()));
    }

    #[test]
    fn what_is_wrong_is_said_in_the_order_of_reading() {
        for (text, status) in [
            ("a.b", Status::BadFormat),
            ("a..c", Status::BadFormat),
            ("a.b.c.d", Status::BadFormat),
            ("!.b.c", Status::HeaderBadBase64),
            ("YQ.b.c", Status::HeaderBadJson),
            (&token("[]", "{}"), Status::HeaderBadJson),
            (&token("{}", "{}"), Status::HeaderBadAlg),
            (
                &token(r#"{"alg":"none"}"#, "{}"),
                Status::HeaderNotImplementedAlg,
            ),
            (
                &token(r#"{"alg":"RS256","kid":1}"#, "{}"),
                Status::HeaderBadKid,
            ),
            (
                &token(r#"{"alg":"RS256"}"#, r#"{"iat":-1}"#),
                Status::IatOutOfRange,
            ),
            (
                &token(r#"{"alg":"RS256"}"#, r#"{"exp":"1"}"#),
                Status::ExpNotInteger,
            ),
            (
                &token(r#"{"alg":"RS256"}"#, r#"{"aud":[1]}"#),
                Status::AudNotString,
            ),
        ] {
            assert_eq!(Token::parse(text).map(|_| ()), Err(status), "{text}");
        }
    }
}
