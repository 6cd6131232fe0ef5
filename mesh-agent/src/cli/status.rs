//! `mesh-agent status`.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::args::StatusArgs;

/// Asks the running agent and prints what it does.
///
/// # Errors
/// No agent answers there.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let body = get(args, "/status")?;
    if args.json {
        print!("{body}");
        return Ok(());
    }
    let status: Value = serde_json::from_str(&body).context("the agent's answer is not JSON")?;
    print!("{}", table(&status));
    Ok(())
}

/// A page of the running agent.
pub(super) fn get(args: &StatusArgs, path: &str) -> anyhow::Result<String> {
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&args.admin, limit).with_context(|| {
        format!(
            "no agent answers on {}; is it running? --admin names another address",
            args.admin
        )
    })?;
    stream.set_read_timeout(Some(limit))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
        args.admin
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("the agent does not answer")?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("not an agent's answer")
    };
    if !head.starts_with("HTTP/1.1 200") {
        bail!(
            "the agent answers: {}",
            head.lines().next().unwrap_or_default()
        );
    }
    Ok(body.to_owned())
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What the management server sent to whom, and what was not taken of it.
fn streams(out: &mut String, streams: &[Value]) {
    if streams.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<32} {:<24} {:<13} {:>9} {:>9} {:>9} {:>9}  VERSIONS",
        "XDS STREAM", "SERVER", "STATE", "CLUSTERS", "ENDPOINTS", "LISTENERS", "ROUTES"
    );
    for stream in streams {
        let kinds = ["CDS", "EDS", "LDS", "RDS"];
        let count = |kind: &str| stream["types"][kind]["resources"].to_string();
        let versions: Vec<String> = kinds
            .iter()
            .filter_map(|kind| {
                let version = stream["types"][kind]["version"].as_str()?;
                (!version.is_empty()).then(|| format!("{kind} {version}"))
            })
            .collect();
        let state = match (stream["connected"].as_bool(), stream["complete"].as_bool()) {
            (Some(true), Some(true)) => "connected",
            (Some(true), _) => "fetching",
            _ => "disconnected",
        };
        let _ = writeln!(
            out,
            "{:<32} {:<24} {state:<13} {:>9} {:>9} {:>9} {:>9}  {}",
            stream["workload"].as_str().unwrap_or("(node)"),
            text(&stream["server"]),
            count("CDS"),
            count("EDS"),
            count("LDS"),
            count("RDS"),
            versions.join(", ")
        );
        if state == "disconnected" {
            let _ = writeln!(out, "  last stream: {}", text(&stream["error"]));
        }
        for kind in kinds {
            let refused = stream["types"][kind]["refused"].as_object();
            for (name, reason) in refused.into_iter().flatten() {
                let _ = writeln!(out, "  {kind} {name} refused: {}", text(reason));
            }
            for name in list(&stream["types"][kind]["absent"]) {
                let _ = writeln!(out, "  {kind} {} does not exist", text(name));
            }
        }
    }
}

fn table(status: &Value) -> String {
    let mut out = String::new();
    let server = &status["server"];
    let reloads = &status["reloads"];
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "mesh-agent {}  {}  up {}  config {}  generation {}",
        text(&server["version"]),
        text(&server["state"]),
        text(&server["uptime_current_epoch"]),
        text(&server["config"]),
        server["snapshot_generation"]
    );
    let _ = writeln!(
        out,
        "reloads {} refused {}",
        reloads["attempts"], reloads["failures"]
    );
    if let Some(error) = reloads["last_error"].as_str() {
        let _ = writeln!(
            out,
            "last reload refused, the configuration before it serves:\n{error}"
        );
    }
    streams(&mut out, list(&status["xds"]));
    let _ = writeln!(
        out,
        "\n{:<32} {:<9} {:<32} REASON",
        "POD", "STATE", "ADDRESSES"
    );
    for pod in list(&status["workloads"]) {
        let name = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
        let ips: Vec<String> = list(&pod["ips"]).iter().map(text).collect();
        let reason = pod["reason"].as_str().unwrap_or("");
        let _ = writeln!(
            out,
            "{name:<32} {:<9} {:<32} {reason}",
            text(&pod["state"]),
            ips.join(",")
        );
    }
    let _ = writeln!(
        out,
        "\n{:<24} {:<28} {:<7} {:>8} {:>7} {:>7} {:>7}  WHY",
        "SERVICE", "ADDRESS", "VERDICT", "BACKENDS", "ACTIVE", "EJECTED", "DENIED"
    );
    for service in list(&status["services"]) {
        let ip = text(&service["address"]);
        let address = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip
        };
        let _ = writeln!(
            out,
            "{:<24} {:<28} {:<7} {:>8} {:>7} {:>7} {:>7}  {}",
            text(&service["name"]),
            format!("{address}:{}", service["port"]),
            text(&service["verdict"]),
            list(&service["backends"]).len(),
            service["active"].to_string(),
            service["ejected"].to_string(),
            service["refused"].to_string(),
            text(&service["why"])
        );
    }
    let maps: Vec<String> = list(&status["maps"])
        .iter()
        .map(|map| {
            format!(
                "{} {}/{}",
                text(&map["name"]),
                map["entries"],
                map["capacity"]
            )
        })
        .collect();
    let _ = writeln!(out, "\nmaps: {}", maps.join(", "));
    out
}
