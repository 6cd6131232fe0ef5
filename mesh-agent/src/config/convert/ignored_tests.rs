//! What is passed over is written down.

use std::collections::BTreeSet;

use super::{IGNORED_NETWORK_FILTERS, filter};

#[test]
fn the_documented_ignore_list_is_the_one_in_force() {
    let text = include_str!("../../../../docs/xds.md");
    let table = text
        .split("<!-- ignored filters")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .expect("docs/xds.md has the table");
    let column = |index: usize| -> BTreeSet<&str> {
        let rows = table.lines().filter(|line| line.starts_with('|')).skip(2);
        rows.filter_map(|row| row.split('|').nth(index + 1))
            .map(|cell| cell.trim().trim_matches('`'))
            .filter(|name| !name.is_empty())
            .collect()
    };
    assert_eq!(column(0), IGNORED_NETWORK_FILTERS.iter().copied().collect());
    assert_eq!(column(1), filter::IGNORED.iter().copied().collect());
}
