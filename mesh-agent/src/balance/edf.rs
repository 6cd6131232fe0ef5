//! Earliest deadline first: Envoy's scheduler for weighted choices (`EdfScheduler`).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Picks entries in proportion to weights that may change between picks. An entry of weight `w`
/// is due again `1 / w` after it was picked.
#[derive(Debug, Clone, Default)]
pub struct Edf {
    queue: BinaryHeap<Reverse<Entry>>,
    now: f64,
    added: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    deadline: f64,
    /// Entries that are due at once come in the order they were added.
    order: u64,
    index: usize,
}

impl Edf {
    /// Entries `0..count`, weighted.
    pub fn new(count: usize, weight: impl Fn(usize) -> f64) -> Self {
        let mut edf = Self::default();
        for index in 0..count {
            edf.add(index, weight(index));
        }
        edf
    }

    /// The entry that is due; `weight` says when it will be again. `None`: there is none.
    pub fn pick(&mut self, weight: impl FnOnce(usize) -> f64) -> Option<usize> {
        let Reverse(entry) = self.queue.pop()?;
        self.now = entry.deadline;
        self.add(entry.index, weight(entry.index));
        Some(entry.index)
    }

    fn add(&mut self, index: usize, weight: f64) {
        self.queue.push(Reverse(Entry {
            deadline: self.now + 1.0 / weight,
            order: self.added,
            index,
        }));
        self.added += 1;
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.deadline
            .total_cmp(&other.deadline)
            .then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_weights_take_turns() {
        let mut edf = Edf::new(3, |_| 1.0);
        let picks: Vec<usize> = (0..6).filter_map(|_| edf.pick(|_| 1.0)).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
        assert_eq!(Edf::default().pick(|_| 1.0), None);
    }

    #[test]
    fn a_weight_that_falls_is_followed_at_once() {
        let mut edf = Edf::new(2, |_| 1.0);
        // The first one gets busy.
        let weight = |index| if index == 0 { 0.25 } else { 1.0 };
        let picks: Vec<usize> = (0..12).filter_map(|_| edf.pick(weight)).collect();
        assert_eq!(picks.iter().filter(|index| **index == 0).count(), 3);
    }

    proptest! {
        #[test]
        fn no_entry_is_ever_far_from_its_share(weights in proptest::collection::vec(1_u32..50, 1..20)) {
            let mut edf = Edf::new(weights.len(), |index| f64::from(weights[index]));
            let total: u32 = weights.iter().sum();
            let mut picks = vec![0_u32; weights.len()];
            for turn in 1..=2 * total {
                let index = edf.pick(|index| f64::from(weights[index])).expect("entries stay");
                picks[index] += 1;
                for (picked, weight) in picks.iter().zip(&weights) {
                    let due = f64::from(turn) * f64::from(*weight) / f64::from(total);
                    let off = (f64::from(*picked) - due).abs();
                    prop_assert!(off <= weights.len() as f64, "{off} turns off after {turn}");
                }
            }
        }
    }
}
