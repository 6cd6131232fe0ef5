//! The look-up table of Envoy's MAGLEV (`MaglevTable`), after Google's paper.

use xxhash_rust::xxh64::xxh64;

/// Envoy's default size of the table; a prime.
pub const TABLE_SIZE: u64 = 65_537;

/// A table of endpoints, indexed by hash. Picking is one look-up; when an endpoint comes or goes,
/// a few more requests move than on a ring.
#[derive(Debug, Clone, Default)]
pub struct Maglev {
    table: Vec<u32>,
}

/// An endpoint while the table is filled.
struct Filling {
    offset: u64,
    skip: u64,
    /// Share of the heaviest endpoint's weight.
    weight: f64,
    due: f64,
    next: u64,
}

impl Filling {
    /// The next of this endpoint's preferred places.
    fn place(&mut self, size: u64) -> usize {
        // In 128 bits: the product outgrows 64 when tables are large and nearly full.
        let place = u128::from(self.offset) + u128::from(self.skip) * u128::from(self.next);
        self.next += 1;
        (place % u128::from(size)) as usize
    }
}

impl Maglev {
    /// A table of `size` places, a prime, for endpoints given by their keys, which for Envoy are
    /// `ADDRESS:PORT`, and weights.
    pub fn new<K: AsRef<str>>(endpoints: &[(K, f64)], size: u64) -> Self {
        const FREE: u32 = u32::MAX;
        let heaviest = endpoints
            .iter()
            .map(|(_, weight)| *weight)
            .fold(0.0, f64::max);
        if heaviest <= 0.0 || size < 2 {
            return Self::default();
        }
        let mut filling: Vec<Filling> = endpoints
            .iter()
            .map(|(key, weight)| Filling {
                offset: xxh64(key.as_ref().as_bytes(), 0) % size,
                skip: xxh64(key.as_ref().as_bytes(), 1) % (size - 1) + 1,
                weight: weight / heaviest,
                due: 0.0,
                next: 0,
            })
            .collect();
        let mut table = vec![FREE; size as usize];
        let mut free = table.len();
        let mut round = 0.0;
        while free > 0 {
            round += 1.0;
            for (index, endpoint) in filling.iter_mut().enumerate() {
                // The heaviest takes its turn in every round, one half as heavy in every second.
                if free == 0 || endpoint.weight <= 0.0 || round * endpoint.weight < endpoint.due {
                    continue;
                }
                endpoint.due += 1.0;
                loop {
                    let place = endpoint.place(size);
                    if table[place] == FREE {
                        table[place] = index as u32;
                        break;
                    }
                }
                free -= 1;
            }
        }
        Self { table }
    }

    /// The endpoint for a hash; a further attempt looks somewhere else entirely. `None`: there is
    /// none.
    pub fn pick(&self, hash: u64, attempt: u64) -> Option<usize> {
        let hash = match attempt {
            0 => hash,
            attempt => hash ^ (u64::MAX - attempt + 1),
        };
        let place = hash.checked_rem(self.table.len() as u64)?;
        Some(self.table[place as usize] as usize)
    }
}
