//! A certificate authority in a folder: `ca.crt` and `ca.key`, made when they are not there.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};

use super::SpiffeId;
use super::authority::{AuthorityError, Signed};

/// How long its own certificate lasts.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of two nodes differ a little.
const SKEW: Duration = Duration::from_secs(60);

/// The authority.
#[derive(Debug)]
pub struct DevAuthority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl DevAuthority {
    /// Opens the authority in a folder, and makes it when there is none.
    ///
    /// # Errors
    /// The files are not readable or not of one another.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        if !certificate.exists() && !key.exists() {
            make(folder, &certificate, &key)?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|error| AuthorityError::File {
                path: path.into(),
                reason: error.to_string(),
                remedy: "an authority has both ca.crt and ca.key; remove both to have it made anew",
            })
        };
        let (pem, key_pem) = (read(&certificate)?, read(&key)?);
        let wrong = |reason: rcgen::Error| AuthorityError::File {
            path: key.clone(),
            reason: reason.to_string(),
            remedy: "ca.key is a private key in PEM, ca.crt its certificate",
        };
        let pair = KeyPair::from_pem(&key_pem).map_err(wrong)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(wrong)?;
        Ok(Self {
            folder: folder.into(),
            issuer,
            certificate: pem,
        })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Certifies a fresh key.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub(super) fn certify(
        &self,
        id: &SpiffeId,
        validity: Duration,
    ) -> Result<Signed, AuthorityError> {
        let failed = |error: rcgen::Error| AuthorityError::Make {
            id: id.clone(),
            reason: error.to_string(),
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = request(id, validity).map_err(failed)?;
        params.serial_number = Some(serial());
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Signed {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            roots: self.certificate.clone(),
        })
    }
}

/// A leaf certificate of an identity; empty subject, as SPIFFE allows and Istio does. Who signs it
/// numbers it.
pub(super) fn request(
    id: &SpiffeId,
    validity: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + validity).into();
    Ok(params)
}

/// Random, positive.
fn serial() -> SerialNumber {
    let mut bytes: Vec<u8> = (0..16).map(|_| fastrand::u8(..)).collect();
    bytes[0] = bytes[0] & 0x7f | 1;
    SerialNumber::from(bytes)
}

fn make(folder: &Path, certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
    let cannot = |path: &Path, reason: String| AuthorityError::File {
        path: path.into(),
        reason,
        remedy: "name a folder that can be written: --ca dev:FOLDER",
    };
    let made = || -> Result<(String, String), rcgen::Error> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "mesh development authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = (now - SKEW).into();
        params.not_after = (now + ROOT_LIFE).into();
        params.serial_number = Some(serial());
        let root = params.self_signed(&pair)?;
        Ok((root.pem(), pair.serialize_pem()))
    };
    let (root, pair) = made().map_err(|error| cannot(folder, error.to_string()))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| cannot(folder, error.to_string()))?;
    // The key first: a certificate without its key would be taken for a broken authority.
    let write = |path: &Path, text: &str, mode: u32| {
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| cannot(path, error.to_string()))
    };
    write(key, &pair, 0o600)?;
    write(certificate, &root, 0o644)
}

/// A certificate of a fresh authority that is nobody's, and its key.
#[cfg(test)]
pub(crate) fn test_pair(uri: &str) -> (String, String) {
    let key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("a URI"))];
    let certificate = params.self_signed(&key).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_signs_identities() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca");
        let first = DevAuthority::open(&path).unwrap();
        let again = DevAuthority::open(&path).unwrap();
        assert_eq!(first.certificate, again.certificate);
        let id = SpiffeId::of(
            &crate::config::model::workload::Workload {
                name: "a".into(),
                namespace: "shop".into(),
                service_account: "web".into(),
                labels: std::collections::BTreeMap::new(),
                netns: crate::config::model::workload::NetnsSource::Pid(1),
                cgroup: None,
                capture: std::sync::Arc::default(),
            },
            "cluster.local",
        );
        let signed = again.certify(&id, Duration::from_secs(3600)).unwrap();
        let chain = super::super::certificates(signed.chain.as_bytes()).unwrap();
        let leaf = webpki::EndEntityCert::try_from(&chain[0]).unwrap();
        let names: Vec<&str> = leaf.valid_uri_names().collect();
        assert_eq!(names, ["spiffe://cluster.local/ns/shop/sa/web"]);
        fs::remove_file(path.join("ca.key")).unwrap();
        let error = DevAuthority::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("ca.key") && error.contains("remove both"),
            "{error}"
        );
    }
}
