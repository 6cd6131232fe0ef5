//! An authority of a test's own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

/// Signs certificates, and writes files into a folder that goes with it.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
            folder: tempfile::tempdir()?,
        })
    }

    /// Its root.
    pub(crate) fn root(&self) -> String {
        self.issuer.pem()
    }

    /// For these names or addresses.
    pub(crate) fn issue(&self, names: &[&str]) -> Result<Issued> {
        self.sign(CertificateParams::new(Self::names(names))?)
    }

    /// As [`Self::issue`], of the year 2001.
    pub(crate) fn issue_expired(&self, names: &[&str]) -> Result<Issued> {
        let mut params = CertificateParams::new(Self::names(names))?;
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2001, 12, 31);
        self.sign(params)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn sign(&self, params: CertificateParams) -> Result<Issued> {
        let key = KeyPair::generate()?;
        Ok(Issued {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes a file, at once, over one of the same name.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        let beside = self.folder.path().join(".new");
        std::fs::write(&beside, text)?;
        std::fs::rename(beside, &path)?;
        Ok(path)
    }

    /// Its root, in a file.
    pub(crate) fn root_file(&self) -> Result<PathBuf> {
        self.file("root.pem", &self.root())
    }
}

impl Issued {
    /// Both in files of a folder.
    pub(crate) fn files(&self, authority: &Authority, name: &str) -> Result<[PathBuf; 2]> {
        let certificate = authority.file(&format!("{name}.pem"), &self.certificate)?;
        let key = authority.file(&format!("{name}.key"), &self.key)?;
        Ok([certificate, key])
    }

    pub(crate) fn pair(&self) -> (String, String) {
        (self.certificate.clone(), self.key.clone())
    }
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> String {
    path.display().to_string()
}
