//! Certificates, roots and revocation lists in files, read again whenever they change.
//!
//! Files are told apart by what `stat` says wherever their links lead, so that every way to
//! replace them is seen: a write, a rename, a link that is made to point elsewhere (Kubernetes).
//! What cannot be used is logged and counted; what was read last stays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use webpki::CertRevocationList;

use crate::config::model::secret::Material;
use crate::config::model::tls::Data;

use super::pem::{PemError, certificates, certified_key, revocations, root_store};
use super::{SharedCredentials, update};

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Lists of revoked certificates.
pub type Revocations = Arc<[CertRevocationList<'static>]>;

/// What rustls is given.
#[derive(Debug, Clone)]
pub enum Read {
    /// A chain and its key.
    Certificate(Arc<CertifiedKey>),
    /// Authorities.
    Roots(Arc<RootCertStore>),
    /// Revoked certificates.
    Revocations(Revocations),
}

/// Why there is none.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// A file cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It holds something else.
    #[error("{place}: {error}")]
    Pem {
        /// Where that stands.
        place: String,
        /// What is wrong.
        error: PemError,
    },
}

/// Reads material: from files, or as it is given.
///
/// # Errors
/// A file cannot be read, or what it holds is something else.
pub fn read(material: &Material) -> Result<Read, ReadError> {
    let parsed = match material {
        Material::Certificate { chain, key } => {
            certified_key(&bytes(chain)?, &bytes(key)?).map(Read::Certificate)
        }
        Material::Roots(data) => certificates(&bytes(data)?)
            .and_then(root_store)
            .map(|roots| Read::Roots(Arc::new(roots))),
        Material::Revocations(data) => {
            revocations(&bytes(data)?).map(|lists| Read::Revocations(lists.into()))
        }
    };
    parsed.map_err(|error| ReadError::Pem {
        place: place(material),
        error,
    })
}

fn bytes(data: &Data) -> Result<Vec<u8>, ReadError> {
    match data {
        Data::Inline(bytes) => Ok(bytes.to_vec()),
        Data::File(path) => std::fs::read(path).map_err(|error| ReadError::File {
            path: path.clone(),
            reason: error.to_string(),
        }),
    }
}

/// For people.
fn place(material: &Material) -> String {
    let places = material.parts().map(|data| match data {
        Data::Inline(_) => "inline".to_owned(),
        Data::File(path) => path.display().to_string(),
    });
    places.collect::<Vec<_>>().join(" and ")
}

/// Files as a `stat` sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen(Vec<Option<(u64, u64, Option<SystemTime>)>>);

impl Seen {
    fn of(material: &Material) -> Self {
        let paths = material.parts().filter_map(|data| match data {
            Data::File(path) => Some(path),
            Data::Inline(_) => None,
        });
        Self(
            paths
                .map(|path| {
                    let file = std::fs::metadata(path).ok()?;
                    Some((file.ino(), file.len(), file.modified().ok()))
                })
                .collect(),
        )
    }
}

#[derive(Debug)]
struct File {
    seen: Seen,
    /// The last good one.
    good: Option<Read>,
    /// When that was read.
    read: Option<SystemTime>,
    error: Option<String>,
}

/// How files fare, for people.
#[derive(Debug, Clone)]
pub struct FileState {
    /// Which.
    pub place: String,
    /// What was read last.
    pub good: Option<Read>,
    /// When.
    pub read: Option<SystemTime>,
    /// Why what is there now is not used.
    pub error: Option<String>,
}

/// Reads files and publishes what they hold.
#[derive(Debug)]
pub struct Files {
    credentials: SharedCredentials,
    files: HashMap<Material, File>,
    looked: Instant,
    failures: u64,
}

impl Files {
    /// Nothing is read yet.
    pub fn new(credentials: SharedCredentials) -> Self {
        Self {
            credentials,
            files: HashMap::new(),
            looked: Instant::now(),
            failures: 0,
        }
    }

    /// Says which are needed. Those that are new are read at once.
    pub fn want(&mut self, wanted: &HashSet<Material>) {
        let before = self.files.len();
        self.files.retain(|material, _| wanted.contains(material));
        let mut changed = self.files.len() != before;
        for material in wanted {
            if !self.files.contains_key(material) {
                self.take(material);
                changed = true;
            }
        }
        if changed {
            self.publish();
        }
    }

    /// Reads those that changed, now and then.
    pub fn look(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let changed: Vec<Material> = self
            .files
            .iter()
            // What is half written, or of which one half was replaced, is tried again.
            .filter(|(material, file)| file.error.is_some() || Seen::of(material) != file.seen)
            .map(|(material, _)| material.clone())
            .collect();
        let mut any = false;
        for material in &changed {
            any |= self.take(material);
        }
        if any {
            self.publish();
        }
    }

    /// Reads one. Says whether there is something new.
    fn take(&mut self, material: &Material) -> bool {
        // Before reading: a later look tells of every change the reading may have missed.
        let seen = Seen::of(material);
        let read = read(material);
        let file = self.files.entry(material.clone()).or_insert(File {
            seen: seen.clone(),
            good: None,
            read: None,
            error: None,
        });
        let before = std::mem::replace(&mut file.seen, seen);
        match read {
            Ok(good) => {
                tracing::info!(files = %place(material), "certificates read");
                file.good = Some(good);
                file.read = Some(SystemTime::now());
                file.error = None;
                true
            }
            Err(error) => {
                let error = error.to_string();
                if file.error.as_ref() != Some(&error) || before != file.seen {
                    self.failures += 1;
                    let kept = file.good.is_some();
                    tracing::error!(%error, kept, "certificates cannot be used; the last good ones stay");
                }
                file.error = Some(error);
                false
            }
        }
    }

    fn publish(&self) {
        let good = self
            .files
            .iter()
            .filter_map(|(material, file)| Some((material.clone(), file.good.clone()?)));
        let good: Arc<HashMap<Material, Read>> = Arc::new(good.collect());
        update(&self.credentials, |credentials| {
            credentials.files = good.clone();
        });
    }

    /// How many times something could not be used.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// How each fares, by place.
    pub fn states(&self) -> BTreeMap<String, FileState> {
        let states = self.files.iter().map(|(material, file)| {
            let place = place(material);
            let state = FileState {
                place: place.clone(),
                good: file.good.clone(),
                read: file.read,
                error: file.error.clone(),
            };
            (place, state)
        });
        states.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::dev::test_pair;

    fn material(folder: &std::path::Path) -> Material {
        Material::Certificate {
            chain: Data::File(folder.join("current/tls.crt")),
            key: Data::File(folder.join("current/tls.key")),
        }
    }

    /// A version in a folder of its own, as Kubernetes lays secrets out.
    fn put(folder: &std::path::Path, version: &str, chain: &str, key: &str) {
        let place = folder.join(version);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("tls.crt"), chain).unwrap();
        std::fs::write(place.join("tls.key"), key).unwrap();
        let (link, new) = (folder.join("current"), folder.join("new"));
        std::os::unix::fs::symlink(version, &new).unwrap();
        std::fs::rename(new, link).unwrap();
    }

    fn shown(credentials: &SharedCredentials, material: &Material) -> Vec<u8> {
        match credentials.load().files.get(material) {
            Some(Read::Certificate(key)) => key.cert[0].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_that_points_elsewhere_is_seen_and_a_bad_pair_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let material = material(folder.path());
        let credentials = SharedCredentials::default();
        let mut files = Files::new(credentials.clone());
        let (one, one_key) = test_pair("spiffe://a/one");
        let (two, two_key) = test_pair("spiffe://a/two");
        put(folder.path(), "v1", &one, &one_key);
        files.want(&HashSet::from([material.clone()]));
        let first = shown(&credentials, &material);
        let look = |files: &mut Files| {
            files.looked = Instant::now().checked_sub(LOOK).unwrap();
            files.look();
        };
        // A certificate without its key.
        put(folder.path(), "v2", &two, &one_key);
        look(&mut files);
        assert_eq!(shown(&credentials, &material), first);
        assert_eq!(files.failures(), 1);
        look(&mut files);
        assert_eq!(files.failures(), 1, "told once");
        let states = files.states();
        let state = states.values().next().unwrap();
        assert!(
            state
                .error
                .as_ref()
                .is_some_and(|error| error.contains("does not fit"))
        );
        put(folder.path(), "v3", &two, &two_key);
        look(&mut files);
        assert_ne!(shown(&credentials, &material), first);
        let generation = credentials.load().generation;
        look(&mut files);
        assert_eq!(
            credentials.load().generation,
            generation,
            "nothing new, nothing published"
        );
        files.want(&HashSet::new());
        assert!(credentials.load().files.is_empty());
    }
}
