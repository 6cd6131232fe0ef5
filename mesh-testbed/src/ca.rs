//! A certificate authority of a test: right certificates, and wrong ones.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};

/// An authority with a root of its own.
#[derive(Debug)]
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key_pem: String,
    serial: AtomicU64,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The chain in PEM, the leaf first.
    pub chain: String,
    /// The key in PEM.
    pub key: String,
    serial: u64,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Ca {
    /// Makes one.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = (SystemTime::now() + 24 * HOUR).into();
        let certificate = params.self_signed(&key)?;
        let (pem, key_pem) = (certificate.pem(), key.serialize_pem());
        let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
        Ok(Self {
            issuer,
            pem,
            key_pem,
            serial: AtomicU64::new(1),
        })
    }

    /// Its certificate, in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key, in PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// A certificate for these names (URIs, else DNS), valid now.
    ///
    /// # Errors
    /// A name is not one.
    pub fn issue(&self, names: &[&str]) -> Result<Issued> {
        self.issue_with(names, |_| {})
    }

    /// One that is over.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_expired(&self, names: &[&str]) -> Result<Issued> {
        self.issue_with(names, |params| {
            params.not_before = (SystemTime::now() - 2 * HOUR).into();
            params.not_after = (SystemTime::now() - HOUR).into();
        })
    }

    /// One changed in another way.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Issued> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.subject_alt_names.push(match name.contains("://") {
                true => SanType::URI((*name).try_into()?),
                false => SanType::DnsName((*name).try_into()?),
            });
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (SystemTime::now() - HOUR).into();
        params.not_after = (SystemTime::now() + HOUR).into();
        params.serial_number = Some(SerialNumber::from(serial));
        change(&mut params);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("cannot sign a certificate")?;
        Ok(Issued {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            serial,
        })
    }

    /// A revocation list, in PEM.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn revoke(&self, revoked: &[&Issued]) -> Result<String> {
        let now = SystemTime::now();
        let revoked = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: (now - HOUR).into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from(self.serial.fetch_add(1, Ordering::Relaxed)),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}
