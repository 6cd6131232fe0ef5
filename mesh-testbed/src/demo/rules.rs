//! Packet filter rules, if there are any.

use std::process::Command;

/// Programs that print all rules, and how.
const TOOLS: [(&str, &[&str]); 3] = [
    ("nft", &["list", "ruleset"]),
    ("iptables-save", &[]),
    ("ip6tables-save", &[]),
];

/// The names of the tools that are here.
pub(super) fn tools() -> Vec<&'static str> {
    TOOLS
        .iter()
        .filter(|(tool, _)| Command::new(tool).arg("--version").output().is_ok())
        .map(|(tool, _)| *tool)
        .collect()
}

/// Rules of the node's own namespace.
pub(super) fn of_node() -> Vec<String> {
    rules(|tool| Command::new(tool))
}

/// Rules of a pod's namespace.
pub(super) fn of_pod(pod: &mesh_testbed::Pod) -> Vec<String> {
    rules(|tool| pod.command(tool))
}

fn rules(command: impl Fn(&str) -> Command) -> Vec<String> {
    let mut lines = Vec::new();
    for (tool, args) in TOOLS {
        // Absent: nothing can be said with it.
        let Ok(output) = command(tool).args(args).output() else {
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        lines.extend(
            text.lines()
                .filter(|line| !is_noise(line))
                .map(str::to_owned),
        );
    }
    lines
}

/// Comments, and the frame of an empty table.
fn is_noise(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line == "COMMIT" || line.starts_with(['#', '*', ':'])
}
