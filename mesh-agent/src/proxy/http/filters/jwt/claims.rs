//! What a verified token says, told to those behind: in headers and in dynamic metadata.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use http::HeaderValue;
use serde_json::{Map, Value};

use crate::config::model::filter::jwt::Provider;
use crate::config::model::filter::jwt::token::Token;
use crate::proxy::http::message::Request;

/// Puts a token's payload where the provider wants it.
pub(super) fn tell(
    provider: &Provider,
    token: &Token<'_>,
    request: &mut Request,
    found: &mut Map<String, Value>,
) {
    if let Some(name) = &provider.forward_payload_header {
        let mut payload = token.payload_text.trim_end_matches('=').to_owned();
        if provider.pad_forward_payload_header {
            let missing = (4 - payload.len() % 4) % 4;
            payload.extend(std::iter::repeat_n('=', missing));
        } else {
            payload.clear();
            payload.push_str(token.payload_text);
        }
        if let Ok(value) = HeaderValue::try_from(payload) {
            request.headers.append(name, value);
        }
    }
    for (name, keys) in &provider.claim_to_headers {
        if let Some(value) = claim(&token.payload, keys).and_then(told) {
            request.headers.append(name, value);
        }
    }
    if let Some(key) = &provider.header_in_metadata {
        found.insert(key.clone(), Value::Object(token.header.clone()));
    }
    if let Some(key) = &provider.payload_in_metadata {
        let mut payload = token.payload.clone();
        for claim in &provider.space_delimited_claims {
            if let Some(value) = payload.get_mut(claim)
                && let Some(text) = value.as_str()
            {
                let words = text.split(' ').filter(|word| !word.is_empty());
                *value = words.map(Value::from).collect();
            }
        }
        found.insert(key.clone(), Value::Object(payload));
    }
}

fn claim<'p>(payload: &'p Map<String, Value>, keys: &[String]) -> Option<&'p Value> {
    let (first, rest) = keys.split_first()?;
    rest.iter()
        .try_fold(payload.get(first)?, |value, key| value.get(key))
}

/// A claim as a header's value; what has no simple form is JSON in base64url.
fn told(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::Null => return None,
        Value::Bool(truth) => truth.to_string(),
        Value::String(text) => text.clone(),
        Value::Number(number) => as_text(number.as_f64()?),
        Value::Array(_) | Value::Object(_) => URL_SAFE.encode(claim.to_string()),
    };
    if text.is_empty() {
        return None;
    }
    HeaderValue::try_from(text).ok()
}

/// Whole numbers without a point, others with six digits behind it
/// (Envoy: `convertClaimDoubleToString`).
fn as_text(number: f64) -> String {
    const BEYOND: f64 = 18_446_744_073_709_551_616.0;
    if (0.0..BEYOND).contains(&number) && number.fract() == 0.0 {
        (number as u64).to_string()
    } else {
        format!("{number:.6}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_become_headers() {
        let payload = json!({ "a": { "b": 1.5 }, "n": 7, "t": true, "l": ["x"], "e": "" });
        let payload = payload.as_object().unwrap();
        let header = |keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let value = claim(payload, &keys).and_then(told)?;
            Some(value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(&["a", "b"]).unwrap(), "1.500000");
        assert_eq!(header(&["n"]).unwrap(), "7");
        assert_eq!(header(&["t"]).unwrap(), "true");
        assert_eq!(header(&["l"]).unwrap(), "WyJ4Il0=");
        assert_eq!(header(&["e"]), None);
        assert_eq!(header(&["missing"]), None);
    }
}
