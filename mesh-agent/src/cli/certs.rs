//! `mesh-agent certs`.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;

use super::args::StatusArgs;
use super::status::{get, list, text};

/// Asks the running agent and prints its certificates.
///
/// # Errors
/// No agent answers there.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let body = get(args, "/certs")?;
    if args.json {
        print!("{body}");
        return Ok(());
    }
    let certs: Value = serde_json::from_str(&body).context("the agent's answer is not JSON")?;
    print!("{}", table(&certs));
    Ok(())
}

fn table(certs: &Value) -> String {
    let mut out = String::new();
    let source = &certs["source"];
    if source.is_null() {
        out.push_str("Nobody signs the pods' certificates: --ca or --sds says who does.\n");
    } else {
        let _ = writeln!(
            out,
            "source: {}  roots: {}",
            text(source),
            text(&certs["roots"])
        );
    }
    let sections = [
        (
            "certificates",
            "IDENTITY",
            "identity",
            "NEXT ROTATION",
            "next_rotation",
        ),
        ("files", "FILE", "source", "READ", "read"),
        ("secrets", "SECRET", "name", "UPDATED", "updated"),
    ];
    for (section, title, name, when, at) in sections {
        let entries = list(&certs[section]);
        if entries.is_empty() {
            continue;
        }
        let wide = |field: &str, least: usize| {
            let lengths = entries.iter().map(|entry| text(&entry[field]).len());
            lengths.max().unwrap_or(0).max(least)
        };
        let (name_width, issuer_width) = (wide(name, title.len()), wide("issuer", 6));
        let _ = writeln!(
            out,
            "\n{title:<name_width$}  {:<issuer_width$}  {:<20}  {:<20}  {when:<20}  {:<24}  STATE",
            "ISSUER", "NOT BEFORE", "NOT AFTER", "SOURCE"
        );
        for entry in entries {
            let _ = writeln!(
                out,
                "{:<name_width$}  {:<issuer_width$}  {:<20}  {:<20}  {:<20}  {:<24}  {}",
                text(&entry[name]),
                text(&entry["issuer"]),
                whole_seconds(&entry["not_before"]),
                whole_seconds(&entry["not_after"]),
                whole_seconds(&entry[at]),
                text(&entry["source"]),
                state(entry),
            );
        }
    }
    out
}

fn whole_seconds(time: &Value) -> String {
    let text = text(time);
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}

fn state(entry: &Value) -> String {
    match &entry["error"] {
        Value::Null => "valid".into(),
        error => format!("FAILING: {}", text(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn certificates_are_told_with_what_comes_next() {
        let shown = table(&json!({
            "source": "dev:/ca", "roots": 1,
            "certificates": [{
                "identity": "spiffe://a/ns/b/sa/c", "issuer": "O=mesh", "source": "dev:/ca",
                "not_before": "2026-01-01T00:00:00Z", "not_after": "2026-01-02T00:00:00.5Z",
                "next_rotation": "2026-01-01T12:00:00.25Z", "error": null,
            }],
            "files": [], "secrets": [{ "name": "x", "error": "not delivered" }],
        }));
        for part in [
            "source: dev:/ca  roots: 1",
            "spiffe://a/ns/b/sa/c  O=mesh  2026-01-01T00:00:00Z  2026-01-02T00:00:00Z  2026-01-01T12:00:00Z",
            "valid",
            "FAILING: not delivered",
        ] {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
        assert!(table(&json!({})).contains("--ca or --sds"));
    }
}
