//! Files that a configuration refers to: Envoy's `path_config_source`, each a discovery response
//! with resources of any kind.

use std::path::{Path, PathBuf};

use super::tree::{Entry, Node, Value};

/// The files that anything in this tree refers to, with the path of the reference.
pub(super) fn referred(root: &Node) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    walk(root, "", &mut found);
    found
}

fn walk(node: &Node, path: &str, found: &mut Vec<(PathBuf, String)>) {
    match &node.value {
        Value::Map(entries) => {
            for Entry { key, value, .. } in entries {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                if (key == "path_config_source" || key == "pathConfigSource")
                    && let Some(file) = value.get("path").and_then(Node::text)
                {
                    found.push((file.into(), format!("{path}.path")));
                }
                walk(value, &path, found);
            }
        }
        Value::List(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(item, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

/// A file named by a configuration, relative to the folder of the one that names it.
pub(super) fn resolve(file: &Path, by: &Path) -> PathBuf {
    match by.parent() {
        Some(folder) if file.is_relative() => folder.join(file),
        _ => file.to_owned(),
    }
}

/// A resource of a response: the full name of its type, and the resource without it.
pub(super) fn typed(item: &Node) -> Option<(String, Node)> {
    let Value::Map(entries) = &item.value else {
        return None;
    };
    let url = item.get("@type").and_then(Node::text)?;
    let name = url.rsplit('/').next().unwrap_or_default().to_owned();
    let rest = entries.iter().filter(|entry| entry.key != "@type");
    let node = Node {
        at: item.at,
        value: Value::Map(rest.cloned().collect()),
    };
    Some((name, node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::file::tree::parse;

    #[test]
    fn references_are_found_wherever_they_stand() {
        let text = "a:\n- eds_config: { path_config_source: { path: /x } }\n- b: { pathConfigSource: { path: y } }\n";
        let root = parse(text).unwrap_or_else(|error| panic!("{}", error.reason));
        let found = referred(&root);
        assert_eq!(
            found,
            [
                (
                    PathBuf::from("/x"),
                    "a[0].eds_config.path_config_source.path".to_owned()
                ),
                (
                    PathBuf::from("y"),
                    "a[1].b.pathConfigSource.path".to_owned()
                ),
            ]
        );
        let by = Path::new("/etc/mesh/mesh.yaml");
        assert_eq!(resolve(&found[1].0, by), PathBuf::from("/etc/mesh/y"));
        assert_eq!(resolve(&found[0].0, by), PathBuf::from("/x"));
    }
}
