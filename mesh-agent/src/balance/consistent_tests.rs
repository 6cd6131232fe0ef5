//! Ring and table: Envoy's own examples, and what makes them consistent.

use std::collections::HashMap;

use proptest::prelude::*;

use super::hash::HashFunction;
use super::maglev::{Maglev, TABLE_SIZE};
use super::ring::{Ring, RingSize};

fn hosts(ports: impl IntoIterator<Item = u16>) -> Vec<(String, f64)> {
    ports
        .into_iter()
        .map(|port| (format!("127.0.0.1:{port}"), 1.0))
        .collect()
}

/// What libstdc++'s `std::_Hash_bytes` returns for the same bytes and seed.
#[test]
fn murmur_is_that_of_libstdcxx() {
    for (key, hash) in [
        ("", 6_142_509_188_972_423_790),
        ("a", 4_993_892_634_952_068_459),
        ("1234567", 7_888_703_982_793_837_558),
        ("12345678", 10_113_836_418_918_046_885),
        ("123456789", 12_315_982_496_267_331_008),
        ("127.0.0.1:90_0", 5_656_417_760_668_758_976),
        ("abcdefghijklmnopqrstuvwxyz", 9_979_622_261_905_367_491),
    ] {
        assert_eq!(HashFunction::Murmur2.hash(key.as_bytes()), hash, "{key:?}");
    }
}

/// The example of Envoy's `RingHashLoadBalancerTest.Basic`: six hosts, twelve places.
#[test]
fn a_ring_is_envoys() {
    let size = RingSize { min: 12, max: 100 };
    let ring = Ring::new(&hosts(90..96), size, HashFunction::XxHash);
    assert_eq!(ring.len(), 12);
    for (hash, port) in [
        (833_437_586_790_550_860, 94),
        (928_266_305_478_181_108, 92),
        (1_033_482_794_131_418_490, 90),
        (3_551_244_743_356_806_947, 95),
        (3_851_675_632_748_031_481, 93),
        (5_583_722_120_771_150_861, 91),
        (6_311_230_543_546_372_928, 91),
        (7_700_377_290_971_790_572, 93),
        (13_144_177_310_400_110_813, 95),
        (13_444_792_449_719_432_967, 92),
        (15_516_499_411_664_133_160, 94),
        (16_117_243_373_044_804_889, 90),
    ] {
        let index = Some(usize::from(port - 90_u16));
        assert_eq!(ring.pick(hash, 0), index, "at {hash}");
        // Whatever lies just before goes there, too.
        assert_eq!(ring.pick(hash - 1, 0), index, "before {hash}");
    }
    assert_eq!(ring.pick(0, 0), Some(4));
    assert_eq!(ring.pick(u64::MAX, 0), Some(4), "around the circle");
    assert_eq!(ring.pick(0, 1), Some(2), "the next place");
}

/// The example of Envoy's `MaglevLoadBalancerTest.Basic`: six hosts, seven places.
#[test]
fn a_table_is_envoys() {
    let table = Maglev::new(&hosts(90..96), 7);
    let ports: Vec<usize> = (0..7).filter_map(|hash| table.pick(hash, 0)).collect();
    assert_eq!(ports, [2, 4, 0, 1, 5, 0, 3]);
}

#[test]
fn nobody_is_picked_from_nobody() {
    let none: [(&str, f64); 0] = [];
    let ring = Ring::new(&none, RingSize::default(), HashFunction::XxHash);
    assert!(ring.is_empty());
    assert_eq!(ring.pick(1, 0), None);
    assert_eq!(Maglev::new(&none, TABLE_SIZE).pick(1, 0), None);
    let weightless = [("a", 0.0)];
    assert_eq!(Maglev::new(&weightless, TABLE_SIZE).pick(1, 0), None);
}

/// Share of each endpoint over hashes that are spread evenly.
fn shares(pick: impl Fn(u64) -> Option<usize>) -> HashMap<usize, f64> {
    const SAMPLES: u64 = 20_000;
    let mut shares = HashMap::new();
    for sample in 0..SAMPLES {
        let hash = sample.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let index = pick(hash).expect("somebody");
        *shares.entry(index).or_insert(0.0) += 1.0 / SAMPLES as f64;
    }
    shares
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn shares_follow_weights(weights in proptest::collection::vec(1_u32..5, 2..8)) {
        let hosts: Vec<(String, f64)> = hosts(1..=8)
            .into_iter()
            .zip(&weights)
            .map(|((name, _), weight)| (name, f64::from(*weight)))
            .collect();
        let total: u32 = weights.iter().sum();
        let size = RingSize { min: 4096, ..RingSize::default() };
        let ring = Ring::new(&hosts, size, HashFunction::Murmur2);
        let maglev = Maglev::new(&hosts, TABLE_SIZE);
        let on_ring = shares(|hash| ring.pick(hash, 0));
        let in_table = shares(|hash| maglev.pick(hash, 0));
        for (index, weight) in weights.iter().enumerate() {
            let due = f64::from(*weight) / f64::from(total);
            prop_assert!((on_ring[&index] - due).abs() < 0.08, "ring: {} of {due}", on_ring[&index]);
            prop_assert!((in_table[&index] - due).abs() < 0.03, "table: {} of {due}", in_table[&index]);
        }
    }

    #[test]
    fn an_endpoint_that_goes_moves_little_more_than_its_share(count in 3_u16..12, gone in 0_usize..3) {
        let all = hosts(1..=count);
        let mut left = all.clone();
        left.remove(gone);
        let name = |hosts: &[(String, f64)], index: Option<usize>| index.map(|i| hosts[i].0.clone());
        // As many places each, whether one is gone or not.
        let size = |hosts: &[(String, f64)]| RingSize {
            min: 256 * hosts.len() as u64,
            ..RingSize::default()
        };
        let rings = [&all, &left].map(|hosts| Ring::new(hosts, size(hosts), HashFunction::XxHash));
        let tables = [&all, &left].map(|hosts| Maglev::new(hosts, TABLE_SIZE));
        let mut moved = 0;
        for hash in (0..2000_u64).map(|sample| sample.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let before = name(&all, rings[0].pick(hash, 0));
            if before != Some(all[gone].0.clone()) {
                // On the ring exactly the others stay.
                prop_assert_eq!(before, name(&left, rings[1].pick(hash, 0)));
            }
            let before = name(&all, tables[0].pick(hash, 0));
            let stays = before == name(&left, tables[1].pick(hash, 0));
            moved += u32::from(before != Some(all[gone].0.clone()) && !stays);
        }
        prop_assert!(moved < 300, "{moved} of 2000 moved needlessly");
    }
}
