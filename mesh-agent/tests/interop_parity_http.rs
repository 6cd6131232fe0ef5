//! HTTP beyond the choice of a route, asked of Envoy and of the agent.

use anyhow::{Result, ensure};
use mesh_testbed::oracle::{Compared, Oracle, Setup};
use mesh_testbed::{Envoy, needs_root};
use serde_json::{Value, json};

/// Whether Envoy is here to be asked; says so if not.
fn envoy() -> bool {
    let here = Envoy::program().is_some();
    if !here {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
    }
    here
}

fn routes(routes: Value) -> Setup {
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] });
    Setup::routes(table, &["a", "b"])
}

fn all_same(compared: Vec<Compared>) -> Result<()> {
    let different: Vec<String> = compared
        .iter()
        .filter(|compared| !compared.same())
        .map(ToString::to_string)
        .collect();
    ensure!(
        different.is_empty(),
        "{} of {} differ from Envoy:\n{}",
        different.len(),
        compared.len(),
        different.join("\n")
    );
    Ok(())
}

/// Headers that came several times.
#[test]
fn repeated_headers_match_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if !envoy() {
        return Ok(());
    }
    let matchers = [
        json!({ "string_match": { "exact": "5" } }),
        json!({ "string_match": { "exact": "5,5x" } }),
        json!({ "string_match": { "prefix": "5," } }),
        json!({ "string_match": { "suffix": "5x" } }),
        json!({ "string_match": { "safe_regex": { "regex": "5" } } }),
        json!({ "range_match": { "start": -5, "end": 10 } }),
        json!({ "present_match": true }),
        json!({ "present_match": false }),
        json!({ "exact_match": "5" }),
    ];
    let mut table = Vec::new();
    for (i, matcher) in matchers.iter().enumerate() {
        for invert in [false, true] {
            for missing in [false, true] {
                let mut matcher = matcher.clone();
                matcher["name"] = json!("x-number");
                matcher["invert_match"] = json!(invert);
                matcher["treat_missing_header_as_empty"] = json!(missing);
                table.push(json!({
                    "match": { "path": format!("/{i}/{invert}/{missing}"), "headers": [matcher] },
                    "direct_response": { "status": 200 },
                }));
            }
        }
    }
    let paths: Vec<String> = table
        .iter()
        .map(|route| {
            route["match"]["path"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    let mut oracle = Oracle::start(&routes(json!(table)))?;
    let mut compared = Vec::new();
    for values in [
        &["5", "5x"][..],
        &["5x", "10", "5"],
        &["5"],
        &["5x"],
        &[""],
        &[],
        &["", "5"],
        &["7", "8"],
        &["11"],
        &[" 5 "],
    ] {
        let headers: String = values
            .iter()
            .map(|value| format!("x-number: {value}\r\n"))
            .collect();
        for path in &paths {
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
            compared.push(oracle.ask(request.as_bytes())?);
        }
    }
    all_same(compared)
}
