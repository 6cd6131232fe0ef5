//! What the tests that compare filters with Envoy's share.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_testbed::Envoy;
use mesh_testbed::oracle::{Compared, Oracle, Setup};
use serde_json::{Value, json};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// Whether Envoy is here to be asked; says so if not.
pub(crate) fn envoy() -> bool {
    let here = Envoy::program().is_some();
    if !here {
        mesh_testbed::skipped("needs Envoy (ENVOY_BIN)");
    }
    here
}

pub(crate) fn all_same(compared: &[Compared]) -> Result<()> {
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

/// A filter by its folder and message.
pub(crate) fn filter(name: &str, message: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = json!(format!("{FILTERS}.{message}"));
    json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": config })
}

/// A route's word on a filter.
pub(crate) fn said(name: &str, message: &str, config: Value) -> Value {
    let filter = filter(name, message, config);
    json!({ format!("envoy.filters.http.{name}"): filter["typed_config"] })
}

pub(crate) fn router() -> Value {
    filter("router", "router.v3.Router", json!({}))
}

/// Exact paths with what they say of filters; the virtual host says something, too.
pub(crate) fn setup(filters: Vec<Value>, host: Value, routes: &[(String, Value)]) -> Setup {
    let routes: Vec<Value> = routes
        .iter()
        .map(|(path, said)| {
            json!({
                "match": { "path": path },
                "route": { "cluster": "a" },
                "typed_per_filter_config": said,
                "response_headers_to_add": [{ "header": { "key": "x-route", "value": "yes" } }],
            })
        })
        .collect();
    let table = json!({ "virtual_hosts": [{
        "name": "v", "domains": ["*"], "routes": routes, "typed_per_filter_config": host,
    }] });
    let mut filters = filters;
    filters.push(router());
    Setup::routes(table, &["a"]).hcm("http_filters", json!(filters))
}

pub(crate) fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n")
}

pub(crate) fn through(setup: &Setup, requests: &[String]) -> Result<()> {
    let mut oracle = Oracle::start(setup)?;
    oracle.set_patience(Duration::from_secs(3));
    let compared = requests
        .iter()
        .map(|request| oracle.ask(request.as_bytes()))
        .collect::<Result<Vec<_>>>()?;
    all_same(&compared)
}
