//! Dynamic metadata as services see it (`google.protobuf.Struct`), and back.

use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value as PbValue};
use serde_json::{Map, Number, Value};

/// Of an object; anything else is empty.
pub(super) fn of_json(value: &Value) -> Struct {
    let fields = value.as_object().into_iter().flatten();
    Struct {
        fields: fields
            .map(|(key, value)| (key.clone(), one(value)))
            .collect(),
    }
}

fn one(value: &Value) -> PbValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => Kind::ListValue(ListValue {
            values: list.iter().map(one).collect(),
        }),
        Value::Object(_) => Kind::StructValue(of_json(value)),
    };
    PbValue { kind: Some(kind) }
}

/// As JSON.
pub(super) fn to_json(message: Struct) -> Value {
    let fields = message.fields.into_iter();
    let object: Map<String, Value> = fields.map(|(key, value)| (key, plain(value))).collect();
    Value::Object(object)
}

fn plain(value: PbValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => truth.into(),
        Some(Kind::NumberValue(number)) => Number::from_f64(number).into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(plain).collect(),
        Some(Kind::StructValue(fields)) => to_json(fields),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let value = json!({ "a": [1.0, "x", null, true], "b": { "c": 2.5 } });
        assert_eq!(to_json(of_json(&value)), value);
    }
}
