//! The example of Envoy's documentation on subsets, and every way to fall back.

use super::*;

fn subsets(endpoints: &[Metadata], settings: &Settings) -> Subsets {
    Subsets::new(&endpoints.iter().collect::<Vec<_>>(), settings)
}

/// A choice with the members of its group.
#[derive(Debug, PartialEq, Eq)]
enum Found<'a> {
    Any,
    Group(&'a [usize]),
    Nobody,
}

fn find<'a>(subsets: &'a Subsets, wanted: &Metadata) -> Found<'a> {
    match subsets.find(wanted) {
        Choice::Any => Found::Any,
        Choice::Group(group) => Found::Group(&subsets.groups()[group]),
        Choice::Nobody => Found::Nobody,
    }
}

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), Value::from(*value)))
        .collect()
}

fn selector(keys: &[&str], fallback: SelectorFallback) -> Selector {
    Selector {
        keys: keys.iter().map(|key| (*key).into()).collect(),
        fallback,
    }
}

/// Seven endpoints with stage, version and type.
fn endpoints() -> Vec<Metadata> {
    [
        ("prod", "1.0", "std"),
        ("prod", "1.0", "std"),
        ("prod", "1.1", "std"),
        ("prod", "1.1", "std"),
        ("prod", "1.0", "bigmem"),
        ("prod", "1.1", "bigmem"),
        ("dev", "1.2-pre", "std"),
    ]
    .into_iter()
    .map(|(stage, version, kind)| {
        metadata(&[("stage", stage), ("version", version), ("type", kind)])
    })
    .collect()
}

fn settings() -> Settings {
    Settings {
        selectors: vec![
            selector(&["stage", "type"], SelectorFallback::Cluster),
            selector(&["stage", "version"], SelectorFallback::Cluster),
            selector(&["version"], SelectorFallback::Cluster),
        ],
        fallback: Fallback::Default,
        default_subset: metadata(&[("stage", "prod"), ("version", "1.0"), ("type", "std")]),
        ..Settings::default()
    }
}

#[test]
fn requests_are_led_to_the_group_with_all_they_name() {
    let grouped = subsets(&endpoints(), &settings());
    for (wanted, expected) in [
        (&[("stage", "prod"), ("type", "std")][..], &[0, 1, 2, 3][..]),
        (&[("stage", "prod"), ("type", "bigmem")], &[4, 5]),
        (&[("version", "1.1"), ("stage", "prod")], &[2, 3, 5]),
        (&[("stage", "dev"), ("version", "1.2-pre")], &[6]),
        (&[("version", "1.0")], &[0, 1, 4]),
        // Nobody has it, no selector is meant for it, nothing is asked for: the default.
        (&[("version", "2.0")], &[0, 1]),
        (&[("type", "bigmem")], &[0, 1]),
        (&[], &[0, 1]),
    ] {
        let choice = find(&grouped, &metadata(wanted));
        assert_eq!(choice, Found::Group(expected), "{wanted:?}");
    }
}

#[test]
fn the_clusters_fallback_may_be_nobody_or_anybody() {
    let with = |fallback, panic_mode_any| {
        let settings = Settings {
            fallback,
            panic_mode_any,
            ..settings()
        };
        let grouped = subsets(&endpoints(), &settings);
        match find(&grouped, &metadata(&[("version", "9")])) {
            Found::Any => "any",
            Found::Nobody => "nobody",
            Found::Group(_) => "a group",
        }
    };
    assert_eq!(with(Fallback::None, false), "nobody");
    assert_eq!(with(Fallback::None, true), "any");
    assert_eq!(with(Fallback::Any, false), "any");
    assert_eq!(with(Fallback::Default, false), "a group");
    // A default that nobody has.
    let settings = Settings {
        default_subset: metadata(&[("stage", "none")]),
        ..settings()
    };
    let grouped = subsets(&endpoints(), &settings);
    assert_eq!(find(&grouped, &Metadata::new()), Found::Nobody);
}

#[test]
fn a_selector_may_fall_back_its_own_way() {
    let of = |fallback, wanted: &[(&str, &str)]| {
        let settings = Settings {
            selectors: vec![
                selector(&["stage", "version"], fallback),
                selector(&["stage"], SelectorFallback::To(Fallback::None)),
            ],
            ..settings()
        };
        let grouped = subsets(&endpoints(), &settings);
        match find(&grouped, &metadata(wanted)) {
            Found::Any => vec![usize::MAX],
            Found::Nobody => Vec::new(),
            Found::Group(group) => group.to_vec(),
        }
    };
    let unknown = &[("stage", "dev"), ("version", "9")];
    assert_eq!(of(SelectorFallback::Cluster, unknown), [0, 1]);
    assert_eq!(
        of(SelectorFallback::To(Fallback::None), unknown),
        [0_usize; 0]
    );
    assert_eq!(
        of(SelectorFallback::To(Fallback::Any), unknown),
        [usize::MAX]
    );
    assert_eq!(of(SelectorFallback::To(Fallback::Default), unknown), [0, 1]);
    let stage = || SelectorFallback::Keys(vec!["stage".into()]);
    assert_eq!(of(stage(), unknown), [6]);
    // And that selector's own fallback, when its values are unknown, too.
    assert_eq!(
        of(stage(), &[("stage", "x"), ("version", "9")]),
        [0_usize; 0]
    );
    let same = SelectorFallback::Keys(vec!["stage".into(), "version".into()]);
    assert_eq!(of(same, unknown), [0_usize; 0]);
}

#[test]
fn a_list_is_one_value_or_each_of_its_values() {
    let both = Metadata::from([(
        "version".into(),
        Value::List(vec!["1".into(), "2".into(), "2".into()]),
    )]);
    let endpoints = [both.clone(), metadata(&[("version", "2")])];
    let settings = |list_as_any| Settings {
        selectors: vec![selector(&["version"], SelectorFallback::Cluster)],
        list_as_any,
        ..Settings::default()
    };
    let each = subsets(&endpoints, &settings(true));
    let wanted = |value| metadata(&[("version", value)]);
    assert_eq!(find(&each, &wanted("1")), Found::Group(&[0]));
    assert_eq!(find(&each, &wanted("2")), Found::Group(&[0, 1]));
    let whole = subsets(&endpoints, &settings(false));
    assert_eq!(find(&whole, &wanted("1")), Found::Nobody);
    assert_eq!(find(&whole, &wanted("2")), Found::Group(&[1]));
    assert_eq!(find(&whole, &both), Found::Group(&[0]));
}

#[test]
fn values_of_different_kinds_are_different() {
    let endpoints = [
        Metadata::from([("v".into(), Value::from(1.0))]),
        metadata(&[("v", "1")]),
        Metadata::from([("v".into(), Value::Bool(true))]),
    ];
    let settings = Settings {
        selectors: vec![selector(&["v"], SelectorFallback::Cluster)],
        ..Settings::default()
    };
    let grouped = subsets(&endpoints, &settings);
    for (index, endpoint) in endpoints.iter().enumerate() {
        assert_eq!(find(&grouped, endpoint), Found::Group(&[index]));
    }
    assert_eq!(Value::from(0.0), Value::from(-0.0));
}
