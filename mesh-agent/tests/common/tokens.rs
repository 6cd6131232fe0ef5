//! Tokens of service accounts, signed by a key of the test's own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// Who is said to have signed them.
const ISSUER: &str = "https://tokens.example";

/// Who signs the workloads' tokens.
pub(crate) struct Tokens {
    folder: tempfile::TempDir,
}

impl Tokens {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let tokens = Self { folder };
        let key = tokens.key();
        openssl(&["genrsa", "-out", &key.to_string_lossy(), "2048"], &[])?;
        let modulus = openssl(
            &["rsa", "-in", &key.to_string_lossy(), "-noout", "-modulus"],
            &[],
        )?;
        let modulus = String::from_utf8(modulus)?;
        let hex = modulus.trim().trim_start_matches("Modulus=").as_bytes();
        let bytes: Option<Vec<u8>> = hex
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
            .collect();
        let modulus = base64url(&bytes.context("openssl says no modulus")?);
        let keys = json!({ "keys": [{ "kty": "RSA", "alg": "RS256", "use": "sig", "kid": "one",
            "n": modulus, "e": "AQAB" }] });
        fs::create_dir(tokens.keys())?;
        fs::write(tokens.keys().join("keys.json"), keys.to_string())?;
        Ok(tokens)
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// What is served to those who check tokens.
    pub(crate) fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// The rule by which istiod takes them (`JWT_RULE`); `at`: where [`Self::keys`] are served.
    pub(crate) fn rule(&self, at: impl std::fmt::Display) -> Value {
        json!({ "issuer": ISSUER, "jwks_uri": format!("http://{at}/keys.json"),
            "audiences": ["istio-ca"] })
    }

    /// Where each workload's token is.
    pub(crate) fn template(&self) -> String {
        let folder = self.folder.path().display();
        format!("{folder}/{{namespace}}-{{service_account}}.jwt")
    }

    /// Puts a token of an account where one's is looked for.
    pub(crate) fn give(&self, to: &str, account: &str, lasting: i64) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let expires = i64::try_from(now.as_secs())? + lasting;
        let header = json!({ "alg": "RS256", "kid": "one", "typ": "JWT" });
        let claims = json!({ "iss": ISSUER, "aud": ["istio-ca"], "exp": expires,
            "sub": format!("system:serviceaccount:shop:{account}") });
        let signed = format!(
            "{}.{}",
            base64url(header.to_string().as_bytes()),
            base64url(claims.to_string().as_bytes())
        );
        let key = self.key();
        let sign = ["dgst", "-sha256", "-sign", &key.to_string_lossy()];
        let signature = openssl(&sign, signed.as_bytes())?;
        let token = format!("{signed}.{}\n", base64url(&signature));
        let file = self.folder.path().join(format!("shop-{to}.jwt"));
        fs::write(file, token).context("cannot write a token")
    }
}

fn openssl(args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write as _;
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start openssl")?;
    child
        .stdin
        .take()
        .context("stdin is piped")?
        .write_all(input)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "openssl {args:?}");
    Ok(output.stdout)
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(bits);
        for i in 0..=chunk.len() {
            let digit = bits >> (18 - 6 * i) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}
