//! The hash functions of Envoy's consistent load balancing.

use std::net::IpAddr;

use xxhash_rust::xxh64::xxh64;

/// The seed of `std::hash` in libstdc++, which older consistent hashing was built with.
const STD_HASH_SEED: u64 = 0xc70f_6907;

/// Which function places endpoints on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HashFunction {
    /// xxHash64.
    #[default]
    XxHash,
    /// MurmurHash2 as in libstdc++.
    Murmur2,
}

impl HashFunction {
    /// The hash of a key.
    pub fn hash(self, key: &[u8]) -> u64 {
        match self {
            Self::XxHash => xxh64(key, 0),
            Self::Murmur2 => murmur2(key),
        }
    }
}

/// The hash of a client's address (Envoy: `SourceIpHashMethod`).
pub fn source_ip(ip: IpAddr) -> u64 {
    xxh64(ip.to_string().as_bytes(), 0)
}

/// MurmurHash64A, with libstdc++'s seed.
fn murmur2(key: &[u8]) -> u64 {
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = STD_HASH_SEED ^ (key.len() as u64).wrapping_mul(MULTIPLIER);
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        hash = (hash ^ mix(word).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
    }
    if !rest.is_empty() {
        let last = rest
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ last).wrapping_mul(MULTIPLIER);
    }
    mix(mix(hash).wrapping_mul(MULTIPLIER))
}
