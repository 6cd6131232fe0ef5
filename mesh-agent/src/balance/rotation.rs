//! Fixed weights laid out as turns, so that a shared counter is all the state a weighted round
//! robin needs: in the agent without a lock, in the kernel without arithmetic.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Most turns of one rotation. Finer weights are rounded to this resolution.
pub const MAX_TURNS: usize = 1024;

/// Indices of weighted entries in the order in which their turns come: that of [`super::edf`],
/// without its rounding. Entries without weight have no turn.
pub fn rotation(weights: &[f64]) -> Vec<usize> {
    interleave(&turns(weights))
}

/// How many turns each entry gets: in proportion to its weight, at least one if it has any, and
/// [`MAX_TURNS`] in total unless there are more entries. Small whole ratios come out exact.
pub fn turns(weights: &[f64]) -> Vec<usize> {
    let weights: Vec<f64> = weights.iter().map(|weight| weight.max(0.0)).collect();
    exact(&weights).unwrap_or_else(|| rounded(&weights))
}

/// The smallest numbers that hit every weight, if they are small enough.
fn exact(weights: &[f64]) -> Option<Vec<usize>> {
    let total: f64 = weights.iter().sum();
    let smallest = weights
        .iter()
        .copied()
        .filter(|weight| *weight > 0.0)
        .fold(f64::INFINITY, f64::min);
    (1..=100_u32)
        .map(|parts| smallest / f64::from(parts))
        .take_while(|unit| total / unit < MAX_TURNS as f64 + 0.5)
        .find(|unit| {
            weights.iter().all(|weight| {
                let turns = weight / unit;
                (turns - turns.round()).abs() < 1e-6
            })
        })
        .map(|unit| {
            weights
                .iter()
                .map(|weight| (weight / unit).round() as usize)
                .collect()
        })
}

/// Largest remainders at full resolution.
fn rounded(weights: &[f64]) -> Vec<usize> {
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return vec![0; weights.len()];
    }
    let ideal: Vec<f64> = weights
        .iter()
        .map(|weight| weight / total * MAX_TURNS as f64)
        .collect();
    let mut turns: Vec<usize> = ideal
        .iter()
        .map(|ideal| match *ideal > 0.0 {
            true => (ideal.floor() as usize).max(1),
            false => 0,
        })
        .collect();
    let mut order: Vec<usize> = (0..turns.len()).filter(|i| ideal[*i] > 0.0).collect();
    order.sort_by(|a, b| ideal[*b].fract().total_cmp(&ideal[*a].fract()));
    let used: usize = turns.iter().sum();
    for index in order.iter().cycle().take(MAX_TURNS.saturating_sub(used)) {
        turns[*index] += 1;
    }
    turns
}

/// Spreads turns out, earliest deadline first.
fn interleave(turns: &[usize]) -> Vec<usize> {
    let total: usize = turns.iter().sum();
    let mut queue: BinaryHeap<Reverse<Turn>> = turns
        .iter()
        .enumerate()
        .filter(|(_, of)| **of > 0)
        .map(|(index, of)| {
            Reverse(Turn {
                number: 1,
                of: *of,
                order: index,
                index,
            })
        })
        .collect();
    let mut next = turns.len();
    let mut order = Vec::with_capacity(total);
    while order.len() < total {
        let Some(Reverse(turn)) = queue.pop() else {
            break;
        };
        order.push(turn.index);
        queue.push(Reverse(Turn {
            number: turn.number + 1,
            order: next,
            ..turn
        }));
        next += 1;
    }
    order
}

/// The `number`th of the `of` turns of an entry, due at `number / of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    number: usize,
    of: usize,
    /// Turns that are due at once come in the order they were added.
    order: usize,
    index: usize,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.number * other.of)
            .cmp(&(other.number * self.of))
            .then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::edf::Edf;
    use super::*;

    #[test]
    fn whole_ratios_are_exact() {
        assert_eq!(turns(&[0.9, 0.1]), [9, 1]);
        assert_eq!(turns(&[1.0, 1.0, 1.0]), [1, 1, 1]);
        assert_eq!(turns(&[0.2, 0.3]), [2, 3]);
        assert_eq!(turns(&[1.0, 0.0]), [1, 0]);
        assert_eq!(turns(&[0.0, 0.0]), [0, 0]);
        assert_eq!(turns(&[]), [0; 0]);
    }

    #[test]
    fn a_weight_too_small_for_the_resolution_still_has_a_turn() {
        assert_eq!(turns(&[1e6, 1.0]), [1023, 1]);
    }

    #[test]
    fn turns_are_spread_out() {
        assert_eq!(rotation(&[2.0, 1.0]), [0, 1, 0]);
        assert_eq!(rotation(&[1.0, 1.0, 1.0]), [0, 1, 2]);
        assert_eq!(rotation(&[3.0, 2.0]), [0, 1, 0, 1, 0]);
        assert_eq!(rotation(&[0.0, 1.0]), [1]);
    }

    proptest! {
        #[test]
        fn turns_follow_weights(weights in proptest::collection::vec(0.0_f64..100.0, 1..200)) {
            let counts = turns(&weights);
            let all: usize = counts.iter().sum();
            let total: f64 = weights.iter().sum();
            prop_assert!(all <= MAX_TURNS + weights.len());
            for (weight, count) in weights.iter().zip(&counts) {
                prop_assert_eq!(*weight > 0.0, *count > 0);
                if total > 0.0 {
                    let share = *count as f64 / all as f64;
                    prop_assert!((share - weight / total).abs() < 0.2 / (weights.len() as f64).sqrt() + 0.01);
                }
            }
            let order = interleave(&counts);
            for (index, count) in counts.iter().enumerate() {
                prop_assert_eq!(order.iter().filter(|turn| **turn == index).count(), *count);
            }
        }

        /// Powers of two have exact reciprocals, so that the scheduler's deadlines tie as ours do.
        #[test]
        fn the_order_is_the_schedulers(exponents in proptest::collection::vec(0_u32..5, 1..12)) {
            let weights: Vec<f64> = exponents.iter().map(|e| f64::from(1 << e)).collect();
            let order = rotation(&weights);
            let mut edf = Edf::new(weights.len(), |index| weights[index]);
            for index in order {
                prop_assert_eq!(edf.pick(|index| weights[index]), Some(index));
            }
        }
    }
}
