//! Balancers over made-up endpoints.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::config::model::endpoint::Locality;

use crate::config::model::tls::UpstreamTransport;

use super::*;

const SETTINGS: Settings = Settings {
    overprovisioning_factor: 140,
    panic_threshold: 50,
    weighted_priority_health: false,
    locality_weighted: false,
    policy: LbPolicy::RoundRobin,
};

const WELL: Health = Health::Healthy;
const SICK: Health = Health::Unhealthy;

/// An endpoint, told by its port.
fn host(port: u16, weight: u32, health: Health) -> Arc<Host> {
    placed(port, weight, health, "", None)
}

fn placed(
    port: u16,
    weight: u32,
    health: Health,
    zone: &str,
    locality_weight: Option<u32>,
) -> Arc<Host> {
    Arc::new(Host {
        address: SocketAddr::from(([10, 0, 0, 1], port)),
        hostname: "".into(),
        weight,
        locality: Arc::new(Locality {
            zone: zone.into(),
            ..Locality::default()
        }),
        locality_weight,
        health,
        transport: UpstreamTransport::Plain,
        waypoint: None,
        workload: None,
        outlier: Arc::default(),
        lb_metadata: Arc::default(),
        checked: None,
        check: Arc::default(),
        state: Arc::default(),
    })
}

/// Percent of the load by port.
fn shares(balancer: &Balancer) -> HashMap<u16, u32> {
    balancer
        .shares(LbPolicy::RoundRobin)
        .into_iter()
        .map(|(host, share)| (host.address.port(), (share * 100.0).round() as u32))
        .collect()
}

/// How often each is chosen in turn, in percent.
fn walked(balancer: &Balancer) -> HashMap<u16, u32> {
    let mut counts = HashMap::new();
    for random in 0..10_000 {
        let pool = balancer.pool(random).expect("somebody");
        let port = pool.round_robin().address.port();
        *counts.entry(port).or_insert(0_u32) += 1;
    }
    counts
        .into_iter()
        .map(|(port, count)| (port, (count + 50) / 100))
        .collect()
}

fn assert_both(balancer: &Balancer, expected: &[(u16, u32)]) {
    let expected: HashMap<u16, u32> = expected.iter().copied().collect();
    assert_eq!(shares(balancer), expected, "what the kernel is told");
    assert_eq!(walked(balancer), expected, "what the agent does");
}

#[test]
fn weights_decide_within_a_priority() {
    let hosts = vec![vec![host(1, 3, WELL), host(2, 1, WELL), host(3, 1, SICK)]];
    // Two of three: 93 % are available, which is too few for all to be spared from panic, but
    // more than half.
    assert_both(&Balancer::new(&hosts, &SETTINGS), &[(1, 75), (2, 25)]);
}

#[test]
fn round_robin_spreads_turns() {
    let hosts = vec![vec![host(1, 3, WELL), host(2, 1, WELL)]];
    let balancer = Balancer::new(&hosts, &SETTINGS);
    let pool = balancer.pool(0).expect("somebody");
    let turns: Vec<u16> = (0..8).map(|_| pool.round_robin().address.port()).collect();
    let longest = turns
        .windows(4)
        .filter(|four| four.iter().all(|port| *port == 1));
    assert_eq!(longest.count(), 0, "{turns:?}");
}

#[test]
fn load_fails_over_to_the_next_priority() {
    let hosts = vec![
        vec![host(1, 1, WELL), host(2, 1, SICK)],
        vec![host(3, 1, WELL)],
    ];
    assert_both(&Balancer::new(&hosts, &SETTINGS), &[(1, 70), (3, 30)]);
}

#[test]
fn degraded_endpoints_fill_up() {
    let hosts = vec![vec![host(1, 1, WELL), host(2, 1, Health::Degraded)]];
    assert_both(&Balancer::new(&hosts, &SETTINGS), &[(1, 70), (2, 30)]);
}

#[test]
fn in_panic_everybody_is_used_and_without_it_nobody() {
    let hosts = vec![vec![host(1, 1, SICK), host(2, 1, SICK)]];
    assert_both(&Balancer::new(&hosts, &SETTINGS), &[(1, 50), (2, 50)]);
    let calm = Settings {
        panic_threshold: 0,
        ..SETTINGS
    };
    let balancer = Balancer::new(&hosts, &calm);
    assert!(balancer.pool(0).is_none());
    assert!(balancer.shares(LbPolicy::RoundRobin).is_empty());
    // One of three is below the threshold: the sick ones are used, too.
    let hosts = vec![vec![host(1, 2, WELL), host(2, 1, SICK), host(3, 1, SICK)]];
    assert_both(
        &Balancer::new(&hosts, &SETTINGS),
        &[(1, 50), (2, 25), (3, 25)],
    );
}

#[test]
fn localities_share_by_weight_when_asked_to() {
    let zones = |a, b| {
        vec![vec![
            placed(1, 1, WELL, "a", a),
            placed(2, 1, WELL, "b", b),
            placed(3, 1, WELL, "b", b),
        ]]
    };
    let weighted = Settings {
        locality_weighted: true,
        ..SETTINGS
    };
    let hosts = zones(Some(8), Some(2));
    assert_both(
        &Balancer::new(&hosts, &weighted),
        &[(1, 80), (2, 10), (3, 10)],
    );
    assert_both(
        &Balancer::new(&hosts, &SETTINGS),
        &[(1, 33), (2, 33), (3, 33)],
    );
    // A locality without a weight gets nothing, unless none has one.
    let hosts = zones(Some(1), None);
    assert_both(&Balancer::new(&hosts, &weighted), &[(1, 100)]);
    let hosts = zones(None, None);
    assert_both(
        &Balancer::new(&hosts, &weighted),
        &[(1, 33), (2, 33), (3, 33)],
    );
}

#[test]
fn a_locality_with_sick_endpoints_loses_weight() {
    let hosts = vec![vec![
        placed(1, 1, WELL, "a", Some(1)),
        placed(2, 1, SICK, "a", Some(1)),
        placed(3, 1, WELL, "b", Some(1)),
        placed(4, 1, WELL, "b", Some(1)),
    ]];
    let weighted = Settings {
        locality_weighted: true,
        ..SETTINGS
    };
    // 0.7 to 1.
    assert_both(
        &Balancer::new(&hosts, &weighted),
        &[(1, 41), (3, 29), (4, 29)],
    );
}

#[test]
fn random_does_not_look_at_weights() {
    let hosts = vec![vec![host(1, 9, WELL), host(2, 1, WELL)]];
    let balancer = Balancer::new(&hosts, &SETTINGS);
    let shares = balancer.shares(LbPolicy::Random);
    assert!(shares.iter().all(|(_, share)| *share == 0.5), "{shares:?}");
}

#[test]
fn nothing_is_nobody() {
    for priorities in [vec![], vec![vec![]], vec![vec![], vec![]]] {
        let balancer = Balancer::new(&priorities, &SETTINGS);
        assert!(balancer.pool(7).is_none());
        assert!(balancer.shares(LbPolicy::RoundRobin).is_empty());
    }
    assert!(Balancer::default().pool(0).is_none());
}

#[test]
fn a_retry_leaves_the_priorities_that_were_tried() {
    let hosts = vec![
        vec![host(1, 1, WELL)],
        vec![host(2, 1, WELL)],
        vec![host(3, 1, SICK)],
    ];
    let balancer = Balancer::new(&hosts, &SETTINGS);
    let port = |excluded: &[usize]| {
        let pool = balancer.pool_without(7, excluded).expect("somebody");
        pool.round_robin().address.port()
    };
    assert_eq!(port(&[]), 1);
    assert_eq!(port(&[0]), 2);
    // Nobody is left: everybody is asked again.
    assert_eq!(port(&[0, 1]), 1);
}
