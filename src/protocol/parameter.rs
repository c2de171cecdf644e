//! Parameters: named values that viewers may read and set.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::DecodeError;
use super::wire::Text;

/// A parameter: a named value.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Name of the parameter.
    pub name: String,
    /// Value of the parameter; `None` if it has none. In a request to set the parameter, `None` deletes it.
    pub value: Option<ParameterValue>,
}

/// The value of a parameter.
///
/// JSON alone does not distinguish a float from an integer, or bytes from text. So a parameter names its type where
/// that is needed: `float64`, `float64_array`, or `byte_array`, whose value is base64. Each of these types has a
/// variant, and the type follows from the variant. Inside an array or a dictionary no type is named, so some values are
/// read back as another variant: bytes as a string, an empty float array as an empty array, and an array of nothing but
/// numbers as a float array if one of them is a float.
///
/// JSON has no NaN and no infinities. They are written as the strings `NaN`, `Infinity` and `-Infinity`, as protobuf
/// writes them in JSON. These strings are read back as floats wherever a float may stand: with the type `float64`, in a
/// `float64_array`, and inside an array or a dictionary. Inside an array or a dictionary, every string of that form is
/// therefore read as a float. A `null` from a peer is read as NaN in an array, where many peers write it for NaN, and
/// as no entry in a dictionary.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ParameterValue {
    /// An integer.
    Integer(i64),
    /// A float. An integer outside the range of `i64` is also read as a float.
    #[serde(serialize_with = "as_float")]
    Float64(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    String(String),
    /// Bytes.
    #[serde(serialize_with = "as_base64")]
    Bytes(Bytes),
    /// An array of floats. An array without a type is read as one if it holds nothing but numbers and at least one of
    /// them is not an integer.
    #[serde(serialize_with = "as_floats")]
    Float64Array(Vec<f64>),
    /// Any other array.
    Array(Vec<Self>),
    /// A dictionary.
    Dict(BTreeMap<String, Self>),
}

/// The floats that JSON can't represent, and the strings that stand for them.
const NAMED: [(f64, &str); 3] = [(f64::NAN, "NaN"), (f64::INFINITY, "Infinity"), (f64::NEG_INFINITY, "-Infinity")];

fn name_of(float: f64) -> Option<&'static str> {
    let named = NAMED.iter().find(|(named, _)| *named == float || (named.is_nan() && float.is_nan()));
    named.map(|(_, name)| *name)
}

fn float_of(text: &str) -> Option<f64> {
    NAMED.iter().find(|(_, name)| *name == text).map(|(named, _)| *named)
}

fn as_float<S: Serializer>(float: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match name_of(*float) {
        Some(name) => serializer.serialize_str(name),
        None => serializer.serialize_f64(*float),
    }
}

fn as_floats<S: Serializer>(floats: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(floats.iter().map(|float| ParameterValue::Float64(*float)))
}

fn as_base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

impl Parameter {
    /// Makes a parameter with a value.
    pub fn new(name: impl Into<String>, value: ParameterValue) -> Self {
        Self { name: name.into(), value: Some(value) }
    }
}

/// A parameter in its JSON form. `V` is a borrowed value for writing, and any JSON value for reading.
#[derive(Debug, Serialize, Deserialize)]
struct WireParameter<S, V> {
    name: S,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_name: Option<S>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<V>,
}

/// A message of parameters in its JSON form, for either direction.
#[derive(Debug, Serialize)]
pub(super) struct WireParameters<'a> {
    parameters: Vec<WireParameter<&'a str, &'a ParameterValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl<'a> WireParameters<'a> {
    pub(super) fn new(id: Option<&'a String>, parameters: &'a [Parameter]) -> Self {
        Self { parameters: parameters.iter().map(Into::into).collect(), id: id.map(String::as_str) }
    }
}

/// Reads the id of a message of parameters, and those parameters that can be read. For each of the others an error is
/// appended to `faults`.
pub(super) fn read_all(
    text: &Text<'_>,
    faults: &mut Vec<DecodeError>,
) -> Result<(Option<String>, Vec<Parameter>), DecodeError> {
    let id = text.id()?;
    let parameters =
        text.list("parameters", "parameter", faults, |parameter: WireParameter<_, _>| parameter.try_into())?;
    Ok((id, parameters))
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
        // A string outside arrays and dictionaries is a string: a float would name its type.
        (None, Value::String(text)) => Ok(ParameterValue::String(text)),
        (None, value) => untyped(value),
        (Some(FLOAT64), Value::Number(number)) => {
            number.as_f64().map(ParameterValue::Float64).ok_or("float64 out of range")
        }
        (Some(FLOAT64), Value::String(text)) => {
            float_of(&text).map(ParameterValue::Float64).ok_or("float64 is not a number")
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

/// Reads the items of an array as floats. `None` if an item is not a number, `null`, or one of the [`NAMED`] strings.
fn floats(items: &[Value]) -> Option<Vec<f64>> {
    let float = |item: &Value| match item {
        Value::Null => Some(f64::NAN),
        Value::String(text) => float_of(text),
        item => item.as_f64(),
    };
    items.iter().map(float).collect()
}

/// Whether `item` is a float, or an integer outside the range of `i64`.
fn is_float(item: &Value) -> bool {
    match item {
        Value::String(text) => float_of(text).is_some(),
        item => item.is_number() && item.as_i64().is_none(),
    }
}

/// Reads a value without a type. The recursion is no deeper than the JSON parser allowed.
fn untyped(value: Value) -> Result<ParameterValue, &'static str> {
    Ok(match value {
        Value::Null => ParameterValue::Float64(f64::NAN),
        Value::Bool(truth) => ParameterValue::Bool(truth),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => ParameterValue::Integer(integer),
            None => ParameterValue::Float64(number.as_f64().ok_or("number out of range")?),
        },
        Value::String(text) => float_of(&text).map_or(ParameterValue::String(text), ParameterValue::Float64),
        Value::Array(items) => {
            if items.iter().any(is_float)
                && let Some(floats) = floats(&items)
            {
                return Ok(ParameterValue::Float64Array(floats));
            }
            ParameterValue::Array(items.into_iter().map(untyped).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let fields = fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| Ok::<_, &'static str>((key, untyped(value)?)));
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
    fn floats_that_json_cannot_carry_go_out_as_texts() {
        assert_eq!(encode(ParameterValue::Float64(f64::NAN)), r#"{"name":"p","type":"float64","value":"NaN"}"#);
        let infinite = ParameterValue::Float64Array(vec![1.0, f64::INFINITY, f64::NEG_INFINITY]);
        let json = r#"{"name":"p","type":"float64_array","value":[1.0,"Infinity","-Infinity"]}"#;
        assert_eq!((encode(infinite.clone()).as_str(), decode(json)), (json, Ok(Some(infinite))));
        // A string outside arrays and dictionaries is a string.
        assert_eq!(decode(r#"{"name":"p","value":"NaN"}"#), Ok(Some(ParameterValue::String("NaN".into()))));
    }

    #[test]
    fn a_null_from_a_peer_is_absent_or_not_a_number() {
        assert_eq!(decode(r#"{"name":"p","type":"float64","value":null}"#), Ok(None));
        assert_eq!(decode(r#"{"name":"p","type":null,"value":1}"#), Ok(Some(ParameterValue::Integer(1))));
        let dict = ParameterValue::Dict(BTreeMap::from([("b".to_owned(), ParameterValue::Integer(1))]));
        assert_eq!(decode(r#"{"name":"p","value":{"a":null,"b":1}}"#), Ok(Some(dict)));
        let nan_at = |json: &str| match decode(json) {
            Ok(Some(ParameterValue::Float64Array(read))) => read.iter().position(|float| float.is_nan()),
            Ok(Some(ParameterValue::Array(read))) => {
                read.iter().position(|item| matches!(item, ParameterValue::Float64(float) if float.is_nan()))
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(nan_at(r#"{"name":"p","type":"float64_array","value":[1,null]}"#), Some(1));
        assert_eq!(nan_at(r#"{"name":"p","value":[null,"x"]}"#), Some(0));
    }

    /// A random value with up to `depth` levels of arrays and dictionaries.
    fn any(random: &mut fastrand::Rng, depth: u8) -> ParameterValue {
        let float = |random: &mut fastrand::Rng| match random.usize(..8) {
            at @ 0..3 => NAMED[at].0,
            3 => f64::from(random.i8(..)),
            _ => f64::from_bits(random.u64(..)),
        };
        let texts = ["", "x", "NaN", "Infinity", "-Infinity", "nan", "ü"];
        let len = random.usize(..4);
        match random.usize(..if depth > 0 { 8 } else { 6 }) {
            0 => ParameterValue::Integer(random.i64(..)),
            1 => ParameterValue::Float64(float(random)),
            2 => ParameterValue::Bool(random.bool()),
            3 => ParameterValue::String(texts[random.usize(..texts.len())].to_owned()),
            4 => ParameterValue::Bytes(Bytes::from(vec![random.u8(..); len])),
            5 => ParameterValue::Float64Array((0..len).map(|_| float(random)).collect()),
            6 => ParameterValue::Array((0..len).map(|_| any(random, depth - 1)).collect()),
            _ => ParameterValue::Dict((0..len).map(|n| (n.to_string(), any(random, depth - 1))).collect()),
        }
    }

    /// The value that `value` is read back as, according to the documentation of [`ParameterValue`].
    fn as_read(value: ParameterValue, is_nested: bool) -> ParameterValue {
        use ParameterValue::{Array, Bytes, Dict, Float64, Float64Array, Integer, String};
        match value {
            String(text) if is_nested => float_of(&text).map_or(String(text), Float64),
            Bytes(bytes) if is_nested => as_read(String(STANDARD.encode(&bytes)), true),
            Float64Array(floats) if is_nested && floats.is_empty() => Array(vec![]),
            Array(items) => {
                let items: Vec<_> = items.into_iter().map(|item| as_read(item, true)).collect();
                let floats = items.iter().map(|item| match item {
                    Float64(float) => Some(*float),
                    Integer(integer) => Some(*integer as f64),
                    _ => None,
                });
                let has_float = items.iter().any(|item| matches!(item, Float64(_)));
                floats.collect::<Option<_>>().filter(|_| has_float).map_or(Array(items), Float64Array)
            }
            Dict(fields) => Dict(fields.into_iter().map(|(key, value)| (key, as_read(value, true))).collect()),
            other => other,
        }
    }

    #[test]
    fn every_value_is_read_back() {
        let mut random = fastrand::Rng::with_seed(19);
        let mut named = 0;
        for _ in 0..20_000 {
            let value = any(&mut random, 3);
            let json = encode(value.clone());
            let read = decode(&json).unwrap_or_else(|error| panic!("{error}: {json}")).expect("it has a value");
            // Compared by their debug texts, because a NaN equals nothing. Only the bits of a NaN are lost.
            let expected = as_read(value, false);
            assert_eq!(format!("{read:?}"), format!("{expected:?}"), "{json}");
            // A value that was read once is encoded as the expected one.
            assert_eq!(encode(read), encode(expected));
            named += usize::from(json.contains(r#""NaN""#));
        }
        assert!(named > 1000, "{named}");
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
            r#"{"name":"p","type":"float64","value":"nan"}"#,
        ] {
            assert!(matches!(decode(json), Err(DecodeError::InvalidParameter { .. })), "{json}");
        }
    }
}
