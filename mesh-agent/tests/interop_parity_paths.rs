//! The form of a path that is matched and passed on, asked of Envoy and of the agent.

use anyhow::{Result, ensure};
use mesh_testbed::oracle::{Oracle, Setup};
use mesh_testbed::{Envoy, needs_root};
use serde_json::json;

/// Every way a path may be more than plain.
fn paths() -> Vec<String> {
    let mut paths: Vec<String> = (0..=255u8).map(|byte| format!("/a%{byte:02x}b")).collect();
    paths.extend((0x21..0x7f_u8).map(|byte| format!("/a{}b", char::from(byte))));
    let segments = [
        "", ".", "..", "%2e", "%2E%2e", ".%2E", "a", ".a", "...", "%2f", "%5C", "\\", "a\\..\\b",
        "%", "%2", "%zz", "%C3%A9", "a;b=c", "%252e",
    ];
    for one in segments {
        for two in segments {
            paths.push(format!("/{one}/{two}"));
            paths.push(format!("/x/{one}/{two}/?q=/../%2e//"));
        }
        paths.push(format!("/{one}"));
        paths.push(format!("//{one}//"));
        paths.push(format!("/{one}?"));
    }
    paths
}

#[test]
fn direct_responses_of_201_and_3xx_say_where() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let statuses = [200, 201, 202, 204, 300, 301, 303, 304, 308, 400];
    let routes: Vec<_> = statuses
        .iter()
        .map(|status| {
            json!({ "match": { "path": format!("/{status}") },
                "direct_response": { "status": status } })
        })
        .collect();
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": routes }] });
    let mut oracle = Oracle::start(&Setup::routes(table, &["a"]))?;
    for status in statuses {
        let request = format!("GET /{status}?x=1 HTTP/1.1\r\nHost: h:80\r\n\r\n");
        let compared = oracle.ask(request.as_bytes())?;
        ensure!(compared.same(), "{compared}");
    }
    Ok(())
}

#[test]
fn paths_are_normalised_as_in_envoy() -> Result<()> {
    needs_root!(Ok(()));
    if Envoy::program().is_none() {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
        return Ok(());
    }
    let table = json!({ "virtual_hosts": [{ "name": "v", "domains": ["*"], "routes": [
        { "match": { "path": "/b" }, "direct_response": { "status": 201 } },
        { "match": { "prefix": "/" }, "route": { "cluster": "a" } },
    ] }] });
    let plain = || Setup::routes(table.clone(), &["a"]);
    let slashes = |action: &str| plain().hcm("path_with_escaped_slashes_action", json!(action));
    let setups = [
        plain().hcm("normalize_path", json!(true)),
        plain().hcm("merge_slashes", json!(true)),
        plain()
            .hcm("normalize_path", json!(true))
            .hcm("merge_slashes", json!(true)),
        slashes("REJECT_REQUEST"),
        slashes("UNESCAPE_AND_REDIRECT").hcm("normalize_path", json!(true)),
        slashes("UNESCAPE_AND_FORWARD")
            .hcm("normalize_path", json!(true))
            .hcm("merge_slashes", json!(true)),
        slashes("UNESCAPE_AND_FORWARD"),
    ];
    let mut different = Vec::new();
    let mut asked = 0;
    for setup in &setups {
        let mut oracle = Oracle::start(setup)?;
        for path in paths() {
            let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
            let compared = oracle.ask(request.as_bytes())?;
            asked += 1;
            if !compared.same() {
                different.push(compared.to_string());
            }
        }
    }
    ensure!(
        different.is_empty(),
        "{} of {asked} differ from Envoy:\n{}",
        different.len(),
        different.join("\n")
    );
    Ok(())
}
