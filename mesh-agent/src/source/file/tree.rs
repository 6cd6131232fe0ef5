//! YAML (and JSON, which it contains) as a tree that knows where everything stood.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

/// Nodes of a document, aliases counted as often as they are used: a guard against documents
/// that grow without bound when expanded.
const MAX_NODES: usize = 5_000_000;

/// Deepest nesting.
const MAX_DEPTH: usize = 128;

/// A place in a file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl From<Span> for Position {
    fn from(span: Span) -> Self {
        Self {
            line: span.start.line(),
            column: span.start.col() + 1,
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// A plain scalar: a number, a truth value or a text, as its field wants it.
    Plain(String),
    /// A quoted or block scalar: always text.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping with text keys, in order.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Where the key stands.
    pub at: Position,
    /// The key.
    pub key: String,
    /// The value.
    pub value: Node,
}

impl Node {
    /// The value of a key, when this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// The entries, when this is a mapping.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Plain(text) | Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What the value is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "null",
            Value::Plain(_) => "a plain value",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Where a field path such as `listeners[0].name` leads, as far as it can be followed.
    /// Field names may be written in camelCase.
    pub fn locate(&self, path: &str) -> Position {
        let mut node = self;
        let mut at = self.at;
        for part in parts(path) {
            let child = match part.strip_prefix('[') {
                Some(index) => match (&node.value, index.parse::<usize>()) {
                    (Value::List(items), Ok(index)) => items.get(index).map(|item| (item.at, item)),
                    _ => node
                        .entries()
                        .iter()
                        .find(|entry| entry.key == index)
                        .map(|entry| (entry.at, &entry.value)),
                },
                None => node
                    .entries()
                    .iter()
                    .find(|entry| entry.key == part || snake_case(&entry.key) == part)
                    .map(|entry| (entry.at, &entry.value)),
            };
            let Some((position, next)) = child else {
                return at;
            };
            (at, node) = (position, next);
        }
        at
    }
}

/// The steps of a field path: names, and `[` with an index or a key. Keys may hold dots.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(['.', ']']);
        let end = match rest.strip_prefix('[') {
            Some(_) => rest.find(']'),
            None => rest.find(['.', '[']),
        };
        let part;
        (part, rest) = rest.split_at(end.unwrap_or(rest.len()));
        (!part.is_empty()).then_some(part)
    })
}

/// `routeConfig` as `route_config`.
pub fn snake_case(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(character.to_ascii_lowercase());
    }
    out
}

/// Why a text is not a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub at: Position,
    /// Why.
    pub reason: String,
}

impl SyntaxError {
    fn new(at: impl Into<Position>, reason: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            reason: reason.into(),
        }
    }
}

/// Parses one document.
///
/// # Errors
/// Invalid YAML, several documents, keys that are not text or appear twice, nesting or growth
/// beyond reason.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut builder = Builder::default();
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error| {
            let marker = error.marker();
            let at = Position {
                line: marker.line(),
                column: marker.col() + 1,
            };
            SyntaxError::new_at(at, error.info())
        })?;
        builder.event(event, span)?;
    }
    Ok(builder.root.unwrap_or(Node {
        at: Position { line: 1, column: 1 },
        value: Value::Null,
    }))
}

impl SyntaxError {
    fn new_at(at: Position, reason: impl Into<String>) -> Self {
        Self {
            at,
            reason: reason.into(),
        }
    }
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    stack: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

/// A collection that is not complete yet.
struct Open {
    node: Node,
    anchor: usize,
    /// The key whose value comes next.
    key: Option<(Position, String)>,
    nodes_before: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        match event {
            Event::Scalar(text, style, anchor, _tag) => {
                let value = match (style, &*text) {
                    (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Value::Null,
                    (ScalarStyle::Plain, _) => Value::Plain(text.into_owned()),
                    _ => Value::Text(text.into_owned()),
                };
                self.nodes += 1;
                self.complete(
                    Node {
                        at: span.into(),
                        value,
                    },
                    anchor,
                    1,
                    span,
                )
            }
            Event::SequenceStart(_, anchor, _) => self.open(Value::List(Vec::new()), anchor, span),
            Event::MappingStart(_, anchor, _) => self.open(Value::Map(Vec::new()), anchor, span),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.stack.pop() else {
                    return Ok(());
                };
                // What is inside was counted when it was complete.
                self.nodes += 1;
                let size = self.nodes - open.nodes_before;
                self.complete(open.node, open.anchor, size, span)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(SyntaxError::new(
                        span,
                        "alias to an anchor that is not complete",
                    ));
                };
                self.nodes += size;
                self.complete(node, 0, size, span)
            }
            Event::DocumentStart(..) if self.root.is_some() => Err(SyntaxError::new(
                span,
                "a second document; a file holds one",
            )),
            _ => Ok(()),
        }
    }

    fn open(&mut self, value: Value, anchor: usize, span: Span) -> Result<(), SyntaxError> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(SyntaxError::new(
                span,
                format!("nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        let node = Node {
            at: span.into(),
            value,
        };
        self.stack.push(Open {
            node,
            anchor,
            key: None,
            nodes_before: self.nodes,
        });
        Ok(())
    }

    fn complete(
        &mut self,
        node: Node,
        anchor: usize,
        size: usize,
        span: Span,
    ) -> Result<(), SyntaxError> {
        if self.nodes > MAX_NODES {
            return Err(SyntaxError::new(
                span,
                "the document is too large when expanded",
            ));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut open.node.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match open.key.take() {
                Some((at, key)) => entries.push(Entry {
                    at,
                    key,
                    value: node,
                }),
                None => {
                    let Some(key) = node.text() else {
                        let reason = format!("a key must be a text, not {}", node.kind());
                        return Err(SyntaxError::new_at(node.at, reason));
                    };
                    if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                        let reason = format!("{key} stands twice, first in line {}", first.at.line);
                        return Err(SyntaxError::new_at(node.at, reason));
                    }
                    open.key = Some((node.at, key.to_owned()));
                }
            },
            Value::Null | Value::Plain(_) | Value::Text(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_follow_paths() {
        let root = parse("a:\n  - b: 1\n  - bC: [x, y]\n").unwrap();
        assert_eq!(
            root.locate("a[1].b_c[1]"),
            Position {
                line: 3,
                column: 13
            }
        );
        assert_eq!(root.locate("a[0].b"), Position { line: 2, column: 5 });
        assert_eq!(
            root.locate("a[0].missing.deeper"),
            Position { line: 2, column: 5 }
        );
        let root = parse("options:\n  a.b.C:\n    x: [1]\n").unwrap();
        assert_eq!(
            root.locate("options[a.b.C].x[0]"),
            Position { line: 3, column: 9 }
        );
    }

    #[test]
    fn json_is_yaml() {
        let root = parse("{\"a\": [1, \"2\", null, true]}").unwrap();
        let Value::List(items) = &root.get("a").unwrap().value else {
            panic!("a list")
        };
        assert_eq!(items[0].value, Value::Plain("1".into()));
        assert_eq!(items[1].value, Value::Text("2".into()));
        assert_eq!(items[2].value, Value::Null);
    }

    #[test]
    fn twice_the_same_key_is_an_error() {
        let error = parse("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!((error.at.line, error.at.column), (3, 1));
        assert!(error.reason.contains("first in line 1"), "{}", error.reason);
    }

    #[test]
    fn depth_does_not_count_as_size() {
        let text = format!("{}x{}", "[".repeat(100), "]".repeat(100));
        parse(&text).unwrap();
    }

    #[test]
    fn aliases_cannot_blow_up() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let alias = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 10].join(", "));
        }
        assert!(parse(&text).unwrap_err().reason.contains("too large"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_structured_text_panics(text in "([a-c*&\\-:\\[\\]{}, \n'\"|>#!%0-9]){0,80}") {
            let _ = parse(&text);
        }
    }
}
