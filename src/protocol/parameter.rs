//! Parameters: named values that viewers may read and set.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::DecodeError;
use super::wire::Text;

/// A named value.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its value; `None` if it has none, which in a request to set it means: delete it.
    pub value: Option<ParameterValue>,
}

/// The value of a parameter.
///
/// JSON alone doesn't tell a float from an integer, nor bytes from text, so a parameter names its
/// type where that is needed: `float64`, `float64_array` and `byte_array`, the last as base64.
/// There is a variant for each, and the type follows from the variant. Inside an array or a
/// dictionary no type is named, and so some values come back as what they look like: bytes as a
/// string, an empty float array as an empty array.
///
/// JSON has no NaN and no infinities: they go out as `null`, which a reader takes for NaN inside a
/// float array, and otherwise for no value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ParameterValue {
    /// An integer.
    Integer(i64),
    /// A float; also what an integer beyond `i64` is read as.
    Float64(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(String),
    /// Bytes.
    #[serde(serialize_with = "as_base64")]
    Bytes(Bytes),
    /// Numbers of which at least one is not an integer.
    Float64Array(Vec<f64>),
    /// Any other array.
    Array(Vec<Self>),
    /// A dictionary.
    Dict(BTreeMap<String, Self>),
}

fn as_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

impl Parameter {
    /// Makes a parameter that has a value.
    pub fn new(name: impl Into<String>, value: ParameterValue) -> Self {
        Self { name: name.into(), value: Some(value) }
    }
}

/// A parameter as it stands in JSON; `V` is borrowed for writing, raw JSON for reading.
#[derive(Debug, Serialize, Deserialize)]
struct WireParameter<S, V> {
    name: S,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_name: Option<S>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<V>,
}

/// A message of parameters as it stands in JSON, in either direction.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireParameters<S, V> {
    parameters: Vec<WireParameter<S, V>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<S>,
}

impl<'a> WireParameters<&'a str, &'a ParameterValue> {
    pub(super) fn new(id: Option<&'a String>, parameters: &'a [Parameter]) -> Self {
        Self { parameters: parameters.iter().map(Into::into).collect(), id: id.map(String::as_str) }
    }
}

impl WireParameters<String, Value> {
    pub(super) fn read(text: &Text<'_>) -> Result<(Option<String>, Vec<Parameter>), DecodeError> {
        let wire: Self = text.read()?;
        let parameters = wire.parameters.into_iter().map(Parameter::try_from);
        Ok((wire.id, parameters.collect::<Result<_, _>>()?))
    }
}

const FLOAT64: &str = "float64";
const FLOAT64_ARRAY: &str = "float64_array";
const BYTE_ARRAY: &str = "byte_array";

impl<'a> From<&'a Parameter> for WireParameter<&'a str, &'a ParameterValue> {
    fn from(parameter: &'a Parameter) -> Self {
        let type_name = match parameter.value {
            Some(ParameterValue::Float64(_)) => Some(FLOAT64),
            Some(ParameterValue::Float64Array(_)) => Some(FLOAT64_ARRAY),
            Some(ParameterValue::Bytes(_)) => Some(BYTE_ARRAY),
            _ => None,
        };
        Self { name: &parameter.name, type_name, value: parameter.value.as_ref() }
    }
}

impl TryFrom<WireParameter<String, Value>> for Parameter {
    type Error = DecodeError;

    fn try_from(wire: WireParameter<String, Value>) -> Result<Self, DecodeError> {
        let WireParameter { name, type_name, value } = wire;
        let value = match value {
            None => None,
            Some(value) => match read(type_name.as_deref(), value) {
                Ok(value) => Some(value),
                Err(reason) => return Err(DecodeError::parameter(&name, reason)),
            },
        };
        Ok(Self { name, value })
    }
}

fn read(type_name: Option<&str>, value: Value) -> Result<ParameterValue, &'static str> {
    match (type_name, value) {
        (None, value) => untyped(value),
        (Some(FLOAT64), Value::Number(number)) => {
            number.as_f64().map(ParameterValue::Float64).ok_or("float64 out of range")
        }
        (Some(FLOAT64), _) => Err("float64 is not a number"),
        (Some(FLOAT64_ARRAY), Value::Array(items)) => {
            floats(&items).map(ParameterValue::Float64Array).ok_or("float64_array has an item that is not a number")
        }
        (Some(FLOAT64_ARRAY), _) => Err("float64_array is not an array"),
        (Some(BYTE_ARRAY), Value::String(text)) => {
            let bytes = STANDARD.decode(text).map_err(|_| "byte_array is not base64")?;
            Ok(ParameterValue::Bytes(bytes.into()))
        }
        (Some(BYTE_ARRAY), _) => Err("byte_array is not text"),
        (Some(_), _) => Err("unknown type"),
    }
}

/// `None` if an item is neither a number nor the `null` that stands for a NaN.
fn floats(items: &[Value]) -> Option<Vec<f64>> {
    items.iter().map(|item| if item.is_null() { Some(f64::NAN) } else { item.as_f64() }).collect()
}

/// Recurses no deeper than the JSON parser allowed.
fn untyped(value: Value) -> Result<ParameterValue, &'static str> {
    Ok(match value {
        Value::Null => return Err("null inside a value"),
        Value::Bool(truth) => ParameterValue::Bool(truth),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => ParameterValue::Integer(integer),
            None => ParameterValue::Float64(number.as_f64().ok_or("number out of range")?),
        },
        Value::String(text) => ParameterValue::String(text),
        Value::Array(items) => {
            if items.iter().any(|item| item.is_number() && item.as_i64().is_none())
                && let Some(floats) = floats(&items)
            {
                return Ok(ParameterValue::Float64Array(floats));
            }
            ParameterValue::Array(items.into_iter().map(untyped).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| Ok::<_, &'static str>((key, untyped(value)?)));
            ParameterValue::Dict(fields.collect::<Result<_, _>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(json: &str) -> Result<Option<ParameterValue>, DecodeError> {
        let wire: WireParameter<String, Value> = serde_json::from_str(json).unwrap();
        Parameter::try_from(wire).map(|parameter| parameter.value)
    }

    fn encode(value: ParameterValue) -> String {
        serde_json::to_string(&WireParameter::from(&Parameter::new("p", value))).unwrap()
    }

    #[test]
    fn the_type_decides_what_a_number_is() {
        let typed = decode(r#"{"name":"p","type":"float64","value":3}"#);
        assert_eq!(typed, Ok(Some(ParameterValue::Float64(3.0))));
        let typed = decode(r#"{"name":"p","type":"float64_array","value":[1,2]}"#);
        assert_eq!(typed, Ok(Some(ParameterValue::Float64Array(vec![1.0, 2.0]))));
        let typed = decode(r#"{"name":"p","type":"float64_array","value":[]}"#);
        assert_eq!(typed, Ok(Some(ParameterValue::Float64Array(vec![]))));
        let untyped = decode(r#"{"name":"p","value":[1,2.5]}"#);
        assert_eq!(untyped, Ok(Some(ParameterValue::Float64Array(vec![1.0, 2.5]))));
        let untyped = decode(r#"{"name":"p","value":[1.5,"x"]}"#);
        let mixed = vec![ParameterValue::Float64(1.5), ParameterValue::String("x".into())];
        assert_eq!(untyped, Ok(Some(ParameterValue::Array(mixed))));
        let huge = decode(r#"{"name":"p","value":18446744073709551615}"#);
        assert_eq!(huge, Ok(Some(ParameterValue::Float64(18_446_744_073_709_551_615.0))));
    }

    #[test]
    fn a_nan_goes_out_as_null() {
        assert_eq!(encode(ParameterValue::Float64(f64::NAN)), r#"{"name":"p","type":"float64","value":null}"#);
        assert_eq!(decode(r#"{"name":"p","type":"float64","value":null}"#), Ok(None));
        let json = encode(ParameterValue::Float64Array(vec![1.0, f64::INFINITY]));
        let Ok(Some(ParameterValue::Float64Array(read))) = decode(&json) else {
            panic!("{json}");
        };
        assert!(read[0] == 1.0 && read[1].is_nan());
    }

    #[test]
    fn a_value_must_go_with_its_type() {
        for json in [
            r#"{"name":"p","type":"float64","value":"1"}"#,
            r#"{"name":"p","type":"float64_array","value":["1"]}"#,
            r#"{"name":"p","type":"float64_array","value":1}"#,
            r#"{"name":"p","type":"byte_array","value":"?"}"#,
            r#"{"name":"p","type":"byte_array","value":[1]}"#,
            r#"{"name":"p","type":"complex","value":1}"#,
            r#"{"name":"p","value":[null]}"#,
        ] {
            assert!(matches!(decode(json), Err(DecodeError::InvalidParameter { .. })), "{json}");
        }
    }
}
