//! The ketama ring of Envoy's RING_HASH (`RingHashLoadBalancer::Ring`).

use super::hash::HashFunction;

/// Places of endpoints on a circle of hashes: a request goes to the next place after its own.
/// When an endpoint comes or goes, only its share of the requests moves.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Hashes, ascending, and indices of endpoints.
    places: Vec<(u64, usize)>,
}

/// How large a ring is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize {
    /// At least so many places (Envoy's default: 1024).
    pub min: u64,
    /// At most so many (Envoy's default: 8 Mi).
    pub max: u64,
}

impl Default for RingSize {
    fn default() -> Self {
        Self {
            min: 1024,
            max: 8 << 20,
        }
    }
}

impl Ring {
    /// A ring of endpoints given by their keys, which for Envoy are `ADDRESS:PORT`, and weights.
    ///
    /// The lightest endpoint gets a whole number of places, unless that would make the ring too
    /// large.
    pub fn new<K: AsRef<str>>(
        endpoints: &[(K, f64)],
        size: RingSize,
        function: HashFunction,
    ) -> Self {
        let total: f64 = endpoints.iter().map(|(_, weight)| weight).sum();
        let lightest = endpoints
            .iter()
            .map(|(_, weight)| weight / total)
            .filter(|share| *share > 0.0)
            .fold(f64::INFINITY, f64::min);
        if !lightest.is_finite() {
            return Self::default();
        }
        let wanted = (lightest * size.min as f64).ceil() / lightest;
        let scale = wanted.min(size.max as f64);
        let mut places = Vec::with_capacity(scale.ceil() as usize);
        let (mut placed, mut due) = (0.0, 0.0);
        let mut key = String::new();
        for (index, (name, weight)) in endpoints.iter().enumerate() {
            key.clear();
            key.push_str(name.as_ref());
            key.push('_');
            let stem = key.len();
            // Sums over all endpoints, so that no share is lost to rounding.
            due += scale * weight / total;
            let mut replica = 0_u64;
            while placed < due {
                key.truncate(stem);
                key.push_str(&replica.to_string());
                places.push((function.hash(key.as_bytes()), index));
                replica += 1;
                placed += 1.0;
            }
        }
        places.sort_by_key(|(hash, _)| *hash);
        Self { places }
    }

    /// The endpoint for a hash; each further attempt is the next place. `None`: there is none.
    pub fn pick(&self, hash: u64, attempt: usize) -> Option<usize> {
        let next = self.places.partition_point(|(place, _)| *place < hash);
        // Past the last place the circle begins again.
        let first = next.checked_rem(self.places.len())?;
        let (_, index) = self.places[(first + attempt) % self.places.len()];
        Some(index)
    }

    /// How many places there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}
