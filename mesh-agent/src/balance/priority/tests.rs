//! The tables of Envoy's documentation on priorities, degraded endpoints and panic, and what
//! must hold of all loads.

use proptest::prelude::*;

use super::*;

/// Priorities of 100 endpoints each, so many of which are healthy and degraded.
fn levels(percent: &[(u64, u64)]) -> Vec<Level> {
    percent
        .iter()
        .map(|(healthy, degraded)| {
            let count = Endpoints {
                total: 100,
                healthy: *healthy,
                degraded: *degraded,
            };
            Level {
                count,
                available: count,
            }
        })
        .collect()
}

fn healthy(percent: &[u64]) -> Vec<Level> {
    let percent: Vec<_> = percent.iter().map(|healthy| (*healthy, 0)).collect();
    levels(&percent)
}

#[test]
fn load_fails_over_when_overprovisioning_is_used_up() {
    for (percent, expected) in [
        (&[100, 100][..], &[100, 0][..]),
        (&[72, 100], &[100, 0]),
        (&[71, 100], &[99, 1]),
        (&[50, 100], &[70, 30]),
        (&[25, 100], &[35, 65]),
        (&[0, 100], &[0, 100]),
        (&[25, 25, 100], &[35, 35, 30]),
        (&[25, 25, 72], &[35, 35, 30]),
        // All together cannot take 100: in proportion.
        (&[50, 10, 0], &[84, 16, 0]),
        (&[20, 20, 10], &[40, 40, 20]),
    ] {
        // Without panic, which is another table.
        let loads = Loads::new(&healthy(percent), 140, 0);
        assert_eq!(loads.healthy, expected, "{percent:?}");
    }
}

#[test]
fn without_overprovisioning_every_sick_endpoint_counts() {
    assert_eq!(Loads::new(&healthy(&[90, 100]), 100, 50).healthy, [90, 10]);
}

#[test]
fn degraded_endpoints_take_what_healthy_ones_leave() {
    for (percent, healthy, degraded) in [
        (&[(100, 0), (100, 0)][..], &[100, 0][..], &[0, 0][..]),
        (&[(0, 100)], &[0], &[100]),
        (&[(50, 50)], &[70], &[30]),
        // A healthy endpoint of a lower priority before a degraded one of a higher.
        (&[(25, 75), (100, 0)], &[35, 65], &[0, 0]),
        (&[(25, 75), (25, 0)], &[35, 35], &[30, 0]),
    ] {
        let loads = Loads::new(&levels(percent), 140, 50);
        assert_eq!(loads.healthy, healthy, "{percent:?}");
        assert_eq!(loads.degraded, degraded, "{percent:?}");
    }
}

#[test]
fn a_priority_panics_only_when_all_together_cannot_take_the_load() {
    for (percent, expected) in [
        (&[72, 72][..], &[false, false][..]),
        (&[71, 71], &[false, false]),
        (&[50, 60], &[false, false]),
        (&[0, 100], &[false, false]),
        (&[25, 54], &[false, false]),
        (&[0, 71], &[true, false]),
        (&[0, 25], &[true, true]),
        (&[25, 45], &[true, true]),
    ] {
        let loads = Loads::new(&healthy(percent), 140, 50);
        assert_eq!(loads.panic, expected, "{percent:?}");
    }
}

#[test]
fn in_total_panic_numbers_of_endpoints_decide() {
    let count = |total| Level {
        count: Endpoints {
            total,
            ..Endpoints::default()
        },
        ..Level::default()
    };
    let loads = Loads::new(&[count(1), count(2)], 140, 50);
    assert_eq!(loads.healthy, [34, 66]);
    assert_eq!(loads.panic, [true, true]);
    let loads = Loads::new(&[count(0), count(2)], 140, 50);
    assert_eq!(loads.healthy, [0, 100]);
}

#[test]
fn without_panic_nobody_is_chosen_when_nobody_is_well() {
    let loads = Loads::new(&healthy(&[0, 0]), 140, 0);
    assert_eq!(
        (&loads.healthy[..], &loads.panic[..]),
        (&[100, 0][..], &[false, false][..])
    );
    assert_eq!(Loads::new(&[], 140, 50).choose(0), None);
}

#[test]
fn weights_count_instead_of_numbers() {
    let mut level = healthy(&[50, 100]);
    // Half of the endpoints are sick, but they are the light ones.
    level[0].available = Endpoints {
        total: 1000,
        healthy: 900,
        degraded: 0,
    };
    assert_eq!(Loads::new(&level, 140, 50).healthy, [100, 0]);
}

proptest! {
    #[test]
    fn loads_add_up_and_are_drawn_as_often_as_they_say(
        sizes in proptest::collection::vec((0_u64..20, 0_u64..20, 0_u64..20), 1..6),
        factor in 100_u32..200,
        threshold in 0_u32..=100,
    ) {
        let levels: Vec<Level> = sizes
            .iter()
            .map(|(healthy, degraded, sick)| {
                let count = Endpoints {
                    total: healthy + degraded + sick,
                    healthy: *healthy,
                    degraded: *degraded,
                };
                Level { count, available: count }
            })
            .collect();
        let loads = Loads::new(&levels, factor, threshold);
        let sum: u32 = loads.healthy.iter().chain(&loads.degraded).sum();
        prop_assert_eq!(sum, 100);
        let mut healthy = vec![0; levels.len()];
        let mut degraded = vec![0; levels.len()];
        for random in 0..100 {
            match loads.choose(random) {
                Some((priority, Availability::Healthy)) => healthy[priority] += 1,
                Some((priority, Availability::Degraded)) => degraded[priority] += 1,
                None => prop_assert!(false, "{random} chooses nothing"),
            }
        }
        prop_assert_eq!(&healthy, &loads.healthy);
        prop_assert_eq!(&degraded, &loads.degraded);
        // Load never goes where nobody is, unless nobody is anywhere or panic is off.
        let anybody = sizes.iter().any(|(healthy, degraded, _)| healthy + degraded > 0);
        if anybody {
            for (priority, level) in levels.iter().enumerate() {
                if !loads.panic[priority] {
                    prop_assert!(loads.healthy[priority] == 0 || level.count.healthy > 0);
                    prop_assert!(loads.degraded[priority] == 0 || level.count.degraded > 0);
                }
            }
        }
    }
}
