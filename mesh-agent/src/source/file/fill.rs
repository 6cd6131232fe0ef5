//! A tree into a protobuf message, by the rules of protobuf's JSON, with the place of every
//! mistake.

use bytes::Bytes;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    MessageDescriptor, Value as Field,
};

use crate::config::error::{Problem, join, nearest};

use super::tree::{Node, Value};

/// Reads a message. Problems carry paths from the message down.
pub fn message(
    descriptor: &MessageDescriptor,
    node: &Node,
    problems: &mut Vec<Problem>,
) -> DynamicMessage {
    let mut filler = Filler { problems };
    filler.message(descriptor, node, "")
}

struct Filler<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Filler<'_> {
    fn problem(&mut self, path: &str, reason: impl Into<String>) {
        self.problems.push(Problem::new(path, reason));
    }

    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
        path: &str,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => return message,
            _ => {
                let wanted = descriptor.name();
                self.problem(
                    path,
                    format!("must be a mapping ({wanted}), not {}", node.kind()),
                );
                return message;
            }
        };
        for entry in entries {
            let name = &entry.key;
            let field = descriptor
                .get_field_by_name(name)
                .or_else(|| descriptor.get_field_by_json_name(name));
            let Some(field) = field else {
                let fields: Vec<_> = descriptor.fields().collect();
                let known = nearest(name, fields.iter().map(FieldDescriptor::name));
                let problem = Problem::new(
                    join(path, name),
                    format!("unknown field of {}", descriptor.full_name()),
                );
                self.problems.push(match known {
                    Some(known) => problem.remedy(format!("did you mean {known}?")),
                    None => problem,
                });
                continue;
            };
            if entry.value.value == Value::Null {
                continue;
            }
            let below = join(path, field.name());
            if let Some(oneof) = field.containing_oneof()
                && oneof
                    .fields()
                    .any(|other| other != field && message.has_field(&other))
            {
                self.problem(
                    &below,
                    format!("only one field of {} may be set", oneof.name()),
                );
                continue;
            }
            if message.has_field(&field) {
                self.problem(&below, "stands twice, under both of its spellings");
                continue;
            }
            if let Some(value) = self.field(&field, &entry.value, &below)
                && let Err(error) = message.try_set_field(&field, value)
            {
                self.problem(&below, error.to_string());
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, node: &Node, path: &str) -> Option<Field> {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                return None;
            };
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            let Value::Map(entries) = &node.value else {
                self.problem(path, format!("must be a mapping, not {}", node.kind()));
                return None;
            };
            let map = entries
                .iter()
                .filter_map(|entry| {
                    let path = format!("{path}[{}]", entry.key);
                    let key = map_key(&key.kind(), &entry.key).or_else(|| {
                        self.problem(&path, "is not a key of this map");
                        None
                    })?;
                    Some((key, self.value(&value.kind(), &entry.value, &path)?))
                })
                .collect();
            return Some(Field::Map(map));
        }
        if field.is_list() {
            let Value::List(items) = &node.value else {
                let reason = format!("must be a list, not {}", node.kind());
                self.problems.push(
                    Problem::new(path, reason).remedy("put a dash in front of every element"),
                );
                return None;
            };
            let items = items
                .iter()
                .enumerate()
                .filter_map(|(index, item)| {
                    self.value(&field.kind(), item, &format!("{path}[{index}]"))
                })
                .collect();
            return Some(Field::List(items));
        }
        self.value(&field.kind(), node, path)
    }

    fn value(&mut self, kind: &Kind, node: &Node, path: &str) -> Option<Field> {
        match kind {
            Kind::Message(descriptor) => self.well_known(descriptor, node, path),
            Kind::Enum(descriptor) => self.enumeration(descriptor, node, path),
            kind => {
                let Some(text) = node.text() else {
                    self.problem(
                        path,
                        format!("must be {}, not {}", scalar(kind), node.kind()),
                    );
                    return None;
                };
                let value = scalar_value(kind, text, matches!(node.value, Value::Text(_)));
                if value.is_none() {
                    self.problem(path, format!("must be {}, not {text:?}", scalar(kind)));
                }
                value
            }
        }
    }

    fn enumeration(
        &mut self,
        descriptor: &EnumDescriptor,
        node: &Node,
        path: &str,
    ) -> Option<Field> {
        let text = node.text().unwrap_or_default();
        if let Some(value) = descriptor.get_value_by_name(text) {
            return Some(Field::EnumNumber(value.number()));
        }
        if let Ok(number) = text.parse()
            && descriptor.get_value(number).is_some()
        {
            return Some(Field::EnumNumber(number));
        }
        let values: Vec<_> = descriptor.values().collect();
        let names: Vec<&str> = values
            .iter()
            .map(prost_reflect::EnumValueDescriptor::name)
            .collect();
        self.problem(
            path,
            format!("must be one of {}, not {text:?}", names.join(", ")),
        );
        None
    }

    /// Messages that JSON writes in a form of their own.
    fn well_known(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
        path: &str,
    ) -> Option<Field> {
        let name = descriptor.full_name();
        match name {
            "google.protobuf.Any" => return self.any(descriptor, node, path),
            "google.protobuf.Duration" => return self.duration(descriptor, node, path),
            "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.ListValue" => {
                let value = if name == "google.protobuf.Value" {
                    json_value(descriptor, node)
                } else if name == "google.protobuf.Struct" {
                    json_struct(descriptor, node)
                } else {
                    json_list(descriptor, node)
                };
                return Some(Field::Message(value));
            }
            _ => {}
        }
        if name.starts_with("google.protobuf.") && name.ends_with("Value") {
            let field = descriptor.get_field_by_name("value")?;
            let value = self.value(&field.kind(), node, path)?;
            let mut wrapper = DynamicMessage::new(descriptor.clone());
            wrapper.set_field(&field, value);
            return Some(Field::Message(wrapper));
        }
        Some(Field::Message(self.message(descriptor, node, path)))
    }

    fn duration(
        &mut self,
        descriptor: &MessageDescriptor,
        node: &Node,
        path: &str,
    ) -> Option<Field> {
        let Some((seconds, nanos)) = node.text().and_then(parse_duration) else {
            let reason = "must be a duration in seconds, such as 0.25s or 15s";
            self.problem(path, reason);
            return None;
        };
        let mut message = DynamicMessage::new(descriptor.clone());
        message.set_field_by_name("seconds", Field::I64(seconds));
        message.set_field_by_name("nanos", Field::I32(nanos));
        Some(Field::Message(message))
    }

    fn any(&mut self, descriptor: &MessageDescriptor, node: &Node, path: &str) -> Option<Field> {
        let Value::Map(entries) = &node.value else {
            self.problem(
                path,
                format!("must be a mapping with @type, not {}", node.kind()),
            );
            return None;
        };
        let Some(url) = node.get("@type").and_then(Node::text) else {
            self.problems.push(
                Problem::new(path, "@type is missing")
                    .remedy("add @type: type.googleapis.com/ and the message's full name"),
            );
            return None;
        };
        let type_name = url.rsplit('/').next().unwrap_or(url);
        let Some(inner) = descriptor.parent_pool().get_message_by_name(type_name) else {
            self.problems
                .push(unknown_type(descriptor.parent_pool(), path, type_name));
            return None;
        };
        let rest = Node {
            at: node.at,
            value: Value::Map(
                entries
                    .iter()
                    .filter(|entry| entry.key != "@type")
                    .cloned()
                    .collect(),
            ),
        };
        let message = self.message(&inner, &rest, path);
        let mut any = DynamicMessage::new(descriptor.clone());
        let url = format!("type.googleapis.com/{type_name}");
        any.set_field_by_name("type_url", Field::String(url));
        any.set_field_by_name("value", Field::Bytes(message.encode_to_vec().into()));
        Some(Field::Message(any))
    }
}

fn unknown_type(pool: &DescriptorPool, path: &str, type_name: &str) -> Problem {
    let last = type_name.rsplit('.').next().unwrap_or(type_name);
    let messages: Vec<MessageDescriptor> = pool.all_messages().collect();
    let near = messages
        .iter()
        .find(|message| message.name() == last)
        .map(MessageDescriptor::full_name)
        .or_else(|| nearest(type_name, messages.iter().map(MessageDescriptor::full_name)));
    let problem = Problem::new(
        join(path, "@type"),
        format!("{type_name} is not a message known here"),
    );
    match near {
        Some(near) => problem.remedy(format!("did you mean {near}?")),
        None => problem.remedy("docs/configuration.md lists the extensions that are there"),
    }
}

fn scalar(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "true or false",
        Kind::String => "a text",
        Kind::Bytes => "bytes in base64",
        Kind::Double | Kind::Float => "a number",
        Kind::Uint32 | Kind::Fixed32 | Kind::Uint64 | Kind::Fixed64 => "a whole number from 0",
        _ => "a whole number",
    }
}

fn scalar_value(kind: &Kind, text: &str, quoted: bool) -> Option<Field> {
    Some(match kind {
        Kind::Bool if !quoted => Field::Bool(match text {
            "true" | "True" | "TRUE" => true,
            "false" | "False" | "FALSE" => false,
            _ => return None,
        }),
        Kind::String => Field::String(text.to_owned()),
        Kind::Bytes => Field::Bytes(base64(text)?),
        Kind::Double => Field::F64(text.parse().ok()?),
        Kind::Float => Field::F32(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Field::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Field::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => Field::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => Field::U64(text.parse().ok()?),
        _ => return None,
    })
}

fn map_key(kind: &Kind, text: &str) -> Option<MapKey> {
    Some(match kind {
        Kind::String => MapKey::String(text.to_owned()),
        Kind::Bool => MapKey::Bool(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => MapKey::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => MapKey::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => MapKey::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => MapKey::U64(text.parse().ok()?),
        _ => return None,
    })
}

/// `1.5s` into seconds and nanoseconds. Also Go's `ms`, `m` and `h`, which Envoy does not take,
/// are not taken.
fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (sign, number) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number),
    };
    let (seconds, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    let seconds: i64 = seconds.parse().ok()?;
    (seconds <= 315_576_000_000).then_some((sign * seconds, sign as i32 * nanos))
}

/// Standard or URL-safe base64, padding optional.
fn base64(text: &str) -> Option<Bytes> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out.into())
}

fn json_struct(descriptor: &MessageDescriptor, node: &Node) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let pool = descriptor.parent_pool();
    if let Some(value) = pool.get_message_by_name("google.protobuf.Value") {
        let fields = node
            .entries()
            .iter()
            .map(|entry| {
                let field = Field::Message(json_value(&value, &entry.value));
                (MapKey::String(entry.key.clone()), field)
            })
            .collect();
        message.set_field_by_name("fields", Field::Map(fields));
    }
    message
}

fn json_list(descriptor: &MessageDescriptor, node: &Node) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let value = descriptor
        .parent_pool()
        .get_message_by_name("google.protobuf.Value");
    if let (Some(value), Value::List(items)) = (value, &node.value) {
        let items = items
            .iter()
            .map(|item| Field::Message(json_value(&value, item)))
            .collect();
        message.set_field_by_name("values", Field::List(items));
    }
    message
}

fn json_value(descriptor: &MessageDescriptor, node: &Node) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    let pool = descriptor.parent_pool();
    match &node.value {
        Value::Null => message.set_field_by_name("null_value", Field::EnumNumber(0)),
        Value::Plain(text) => match (text.parse::<f64>(), text.parse::<bool>()) {
            (Ok(number), _) => message.set_field_by_name("number_value", Field::F64(number)),
            (_, Ok(truth)) => message.set_field_by_name("bool_value", Field::Bool(truth)),
            _ => message.set_field_by_name("string_value", Field::String(text.clone())),
        },
        Value::Text(text) => message.set_field_by_name("string_value", Field::String(text.clone())),
        Value::List(_) => {
            if let Some(list) = pool.get_message_by_name("google.protobuf.ListValue") {
                message.set_field_by_name("list_value", Field::Message(json_list(&list, node)));
            }
        }
        Value::Map(_) => {
            if let Some(object) = pool.get_message_by_name("google.protobuf.Struct") {
                message
                    .set_field_by_name("struct_value", Field::Message(json_struct(&object, node)));
            }
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("15s"), Some((15, 0)));
        assert_eq!(parse_duration("0.25s"), Some((0, 250_000_000)));
        assert_eq!(parse_duration("-1.5s"), Some((-1, -500_000_000)));
        for bad in ["15", "15ms", "s", "1.s5", "1.0000000001s", "+1s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn base64_with_and_without_padding() {
        assert_eq!(base64("aGVsbG8=").unwrap(), "hello");
        assert_eq!(base64("aGVsbG8").unwrap(), "hello");
        assert!(base64("a b").is_none());
    }
}
