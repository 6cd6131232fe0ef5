//! Peers that were seen before. What a certificate says, and that a verifier found its chain good,
//! is worked out once for a worker and not for each connection.
//!
//! A verdict holds as long as the verifier it is of, which is made anew whenever roots, revocations
//! or names change, and within the time that every certificate of the chain is valid for. That the
//! peer has the key is proved in every handshake all the same.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificate::Certificate;
use super::peer::Role;

/// Peers that a worker remembers; with one more it begins anew.
const REMEMBERED: usize = 1024;

/// Verdicts on a peer that are remembered.
const VERDICTS: usize = 32;

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// By leaf.
#[derive(Debug, Default)]
struct Known {
    certificates: HashMap<Box<[u8]>, Arc<Certificate>>,
    good: HashMap<Box<[u8]>, Vec<Good>>,
}

/// A verdict.
#[derive(Debug)]
struct Good {
    verifier: u64,
    role: Role,
    between: Vec<CertificateDer<'static>>,
    valid: Validity,
}

/// Seconds since 1970, both within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Validity {
    from: i64,
    until: i64,
}

impl Validity {
    /// When all of them are valid; `None`: that cannot be told.
    fn of<'a>(chain: impl Iterator<Item = &'a CertificateDer<'a>>) -> Option<Self> {
        let all = Self {
            from: i64::MIN,
            until: i64::MAX,
        };
        chain.into_iter().try_fold(all, |all, one| {
            let (_, parsed) = X509Certificate::from_der(one).ok()?;
            let validity = parsed.validity();
            Some(Self {
                from: all.from.max(validity.not_before.timestamp()),
                until: all.until.min(validity.not_after.timestamp()),
            })
        })
    }

    fn holds(self, at: UnixTime) -> bool {
        i64::try_from(at.as_secs()).is_ok_and(|at| (self.from..=self.until).contains(&at))
    }
}

/// A chain as it was judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged<'a> {
    /// [`Verifier::number`](super::peer::Verifier::number).
    pub(super) verifier: u64,
    pub(super) role: Role,
    pub(super) leaf: &'a CertificateDer<'a>,
    pub(super) between: &'a [CertificateDer<'a>],
}

impl Judged<'_> {
    /// Whether it was found good before, and that holds at this time.
    pub(super) fn is_known(self, at: UnixTime) -> bool {
        KNOWN.with_borrow(|known| {
            let verdicts = known.good.get(&self.leaf[..]);
            verdicts.is_some_and(|verdicts| {
                verdicts
                    .iter()
                    .any(|good| self.is(good) && good.valid.holds(at))
            })
        })
    }

    /// Remembers that it was found good.
    pub(super) fn remember(self) {
        let chain = std::iter::once(self.leaf).chain(self.between);
        let Some(valid) = Validity::of(chain) else {
            return;
        };
        let owned = |certificate: &CertificateDer<'_>| certificate.clone().into_owned();
        KNOWN.with_borrow_mut(|known| {
            if known.good.len() >= REMEMBERED {
                known.good.clear();
            }
            let verdicts = known.good.entry(self.leaf[..].into()).or_default();
            // Of verifiers that are no more, most likely.
            if verdicts.len() >= VERDICTS {
                verdicts.clear();
            }
            verdicts.retain(|good| !self.is(good));
            verdicts.push(Good {
                verifier: self.verifier,
                role: self.role,
                between: self.between.iter().map(owned).collect(),
                valid,
            });
        });
    }

    fn is(self, good: &Good) -> bool {
        (self.verifier, self.role) == (good.verifier, good.role) && self.between == good.between
    }
}

/// What is told of a chain that was verified; `None`: the peer showed none.
pub(super) fn certificate(chain: &[CertificateDer<'static>]) -> Option<Arc<Certificate>> {
    let leaf = chain.first()?;
    let known = KNOWN.with_borrow(|known| known.certificates.get(&leaf[..]).cloned());
    if let Some(known) = known.filter(|known| *known.chain() == *chain) {
        return Some(known);
    }
    let certificate = Certificate::of(chain).map(Arc::new)?;
    KNOWN.with_borrow_mut(|known| {
        if known.certificates.len() >= REMEMBERED {
            known.certificates.clear();
        }
        known
            .certificates
            .insert(leaf[..].into(), certificate.clone());
    });
    Some(certificate)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn made(years: std::ops::Range<i32>) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(["a.test".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        params.self_signed(&key).expect("signed").der().clone()
    }

    fn year(year: u64) -> UnixTime {
        let seconds = (year - 1970) * 31_556_952;
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
    }

    #[test]
    fn a_verdict_holds_for_the_verifier_the_role_the_chain_and_while_all_of_it_is_valid() {
        let (leaf, between) = (made(2020..2040), [made(2025..2030)]);
        let judged = Judged {
            verifier: 7,
            role: Role::Client,
            leaf: &leaf,
            between: &between,
        };
        assert!(!judged.is_known(year(2027)), "nobody judged it yet");
        judged.remember();
        assert!(judged.is_known(year(2027)));
        assert!(!judged.is_known(year(2022)), "one is not valid yet");
        assert!(!judged.is_known(year(2033)), "one has expired");
        let others = [
            Judged {
                verifier: 8,
                ..judged
            },
            Judged {
                role: Role::Server,
                ..judged
            },
            Judged {
                between: &[],
                ..judged
            },
            Judged {
                leaf: &between[0],
                ..judged
            },
        ];
        for other in others {
            assert!(!other.is_known(year(2027)), "{other:?}");
        }
    }

    #[test]
    fn what_cannot_be_dated_is_not_remembered() {
        let leaf = CertificateDer::from(vec![1, 2, 3]);
        let judged = Judged {
            verifier: 1,
            role: Role::Client,
            leaf: &leaf,
            between: &[],
        };
        judged.remember();
        assert!(!judged.is_known(year(2027)));
    }

    #[test]
    fn a_certificate_is_read_once_for_a_chain() {
        let chain = [made(2020..2040), made(2020..2040)];
        let first = certificate(&chain).expect("a certificate");
        let again = certificate(&chain).expect("a certificate");
        assert!(Arc::ptr_eq(&first, &again));
        let other = certificate(&chain[..1]).expect("a certificate");
        assert!(!Arc::ptr_eq(&first, &other), "another chain");
        assert_eq!(other.chain(), &chain[..1]);
        assert!(certificate(&[]).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        for number in 0..=REMEMBERED as u32 {
            KNOWN.with_borrow_mut(|known| {
                known.good.insert(number.to_be_bytes().into(), Vec::new());
            });
        }
        let leaf = made(2020..2040);
        let judged = Judged {
            verifier: 1,
            role: Role::Server,
            leaf: &leaf,
            between: &[],
        };
        judged.remember();
        assert_eq!(KNOWN.with_borrow(|known| known.good.len()), 1);
        assert!(judged.is_known(year(2030)));
    }
}
