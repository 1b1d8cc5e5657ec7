//! Recorded requests (JSON with the field names of the API) into protobuf's wire form, guided by
//! the descriptors of the API. Strict: a field or an enum value that the API does not have is an
//! error.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value};

/// Written by `build.rs`.
static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The API, as its descriptors say it.
pub(crate) struct Api(FileDescriptorSet);

impl Api {
    pub(crate) fn load() -> Self {
        Self(FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors of build.rs"))
    }

    /// The wire form of `value` as `message` (a name inside the package `runtime.v1`).
    pub(crate) fn encode(&self, message: &str, value: &Value) -> Result<Vec<u8>, String> {
        let name = format!(".runtime.v1.{message}");
        let descriptor = self
            .message(&name)
            .ok_or_else(|| format!("no message {name}"))?;
        self.message_bytes(descriptor, value, message)
    }

    /// All fields below `message` that are no messages themselves, as paths: a list ends in `[]`,
    /// a map is one field, and a number in a message of its own is a number.
    pub(crate) fn fields(&self, message: &str) -> Vec<String> {
        let name = format!(".runtime.v1.{message}");
        let descriptor = self.message(&name).expect("a message of the API");
        let mut all = Vec::new();
        self.fields_below(descriptor, "", &mut all);
        all
    }

    fn fields_below(&self, message: &DescriptorProto, above: &str, all: &mut Vec<String>) {
        for field in &message.field {
            let path = format!("{above}{}", field.name());
            if self.map_entry(field).is_some() {
                all.push(path);
                continue;
            }
            let list = if field.label() == Label::Repeated {
                "[]"
            } else {
                ""
            };
            let is_message = field.r#type() == Type::Message;
            let inner = is_message
                .then(|| self.message(field.type_name()))
                .flatten();
            match inner.filter(|inner| inner.name() != "Int64Value") {
                Some(inner) => self.fields_below(inner, &format!("{path}{list}."), all),
                None => all.push(format!("{path}{list}")),
            }
        }
    }

    fn message_bytes(
        &self,
        message: &DescriptorProto,
        value: &Value,
        path: &str,
    ) -> Result<Vec<u8>, String> {
        let object = value
            .as_object()
            .ok_or_else(|| format!("{path}: not an object"))?;
        let mut out = Vec::new();
        for (key, value) in object {
            let path = format!("{path}.{key}");
            let field = message.field.iter().find(|field| field.name() == key);
            let field = field.ok_or_else(|| format!("{path}: not in the API"))?;
            self.field(field, value, &path, &mut out)?;
        }
        Ok(out)
    }

    fn field(
        &self,
        field: &FieldDescriptorProto,
        value: &Value,
        path: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        if let Some(entry) = self.map_entry(field) {
            let object = value
                .as_object()
                .ok_or_else(|| format!("{path}: not a map"))?;
            for (key, value) in object {
                let pair = Map::from_iter([
                    ("key".to_owned(), Value::from(key.as_str())),
                    ("value".to_owned(), value.clone()),
                ]);
                let bytes = self.message_bytes(entry, &Value::Object(pair), path)?;
                delimited(field, &bytes, out);
            }
            return Ok(());
        }
        if field.label() == Label::Repeated {
            let items = value
                .as_array()
                .ok_or_else(|| format!("{path}: not a list"))?;
            if matches!(field.r#type(), Type::Message | Type::String | Type::Bytes) {
                return items
                    .iter()
                    .try_for_each(|item| self.single(field, item, path, out));
            }
            // Numbers travel packed.
            let mut packed = Vec::new();
            for item in items {
                let number = self.number(field, item);
                encode_varint(
                    number.ok_or_else(|| format!("{path}: {item}"))?,
                    &mut packed,
                );
            }
            delimited(field, &packed, out);
            return Ok(());
        }
        self.single(field, value, path, out)
    }

    fn single(
        &self,
        field: &FieldDescriptorProto,
        value: &Value,
        path: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let wrong = || format!("{path}: {value} is not {:?}", field.r#type());
        match field.r#type() {
            Type::Message => {
                let message = self.message(field.type_name()).ok_or_else(wrong)?;
                delimited(field, &self.message_bytes(message, value, path)?, out);
            }
            // Recorded bytes are shown as text.
            Type::String | Type::Bytes => {
                delimited(field, value.as_str().ok_or_else(wrong)?.as_bytes(), out);
            }
            _ => {
                encode_key(field.number().cast_unsigned(), WireType::Varint, out);
                encode_varint(self.number(field, value).ok_or_else(wrong)?, out);
            }
        }
        Ok(())
    }

    /// A value of a type that travels as a varint.
    fn number(&self, field: &FieldDescriptorProto, value: &Value) -> Option<u64> {
        match field.r#type() {
            Type::Bool => value.as_bool().map(u64::from),
            Type::Enum => self.enum_value(field, value),
            Type::Int32 | Type::Int64 | Type::Uint32 | Type::Uint64 => {
                // 64-bit numbers are strings in JSON, and negative ones are ten bytes on the wire.
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                let signed = text.parse::<i64>().map(i64::cast_unsigned);
                signed.or_else(|_| text.parse()).ok()
            }
            _ => None,
        }
    }

    fn enum_value(&self, field: &FieldDescriptorProto, value: &Value) -> Option<u64> {
        let name = field.type_name();
        let package = ".runtime.v1.";
        let mut parts: Vec<_> = name.strip_prefix(package)?.split('.').collect();
        let leaf = parts.pop()?;
        let scope = (!parts.is_empty()).then(|| format!("{package}{}", parts.join(".")));
        let enums = match scope {
            Some(scope) => &self.message(&scope)?.enum_type,
            None => &self.file()?.enum_type,
        };
        let found = enums.iter().find(|e| e.name() == leaf)?;
        let wanted = value.as_str()?;
        let value = found.value.iter().find(|v| v.name() == wanted)?;
        Some(i64::from(value.number()).cast_unsigned())
    }

    fn map_entry(&self, field: &FieldDescriptorProto) -> Option<&DescriptorProto> {
        let message =
            (field.r#type() == Type::Message).then(|| self.message(field.type_name()))??;
        message
            .options
            .as_ref()
            .is_some_and(|options| options.map_entry())
            .then_some(message)
    }

    /// A message by its full name, which may be nested.
    fn message(&self, name: &str) -> Option<&DescriptorProto> {
        let mut parts = name.strip_prefix(".runtime.v1.")?.split('.');
        let first = parts.next()?;
        let top = self.file()?.message_type.iter().find(|m| m.name() == first);
        parts.fold(top, |found, part| {
            found?.nested_type.iter().find(|m| m.name() == part)
        })
    }

    fn file(&self) -> Option<&prost_types::FileDescriptorProto> {
        self.0
            .file
            .iter()
            .find(|file| file.package() == "runtime.v1")
    }
}

fn delimited(field: &FieldDescriptorProto, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(
        field.number().cast_unsigned(),
        WireType::LengthDelimited,
        out,
    );
    encode_varint(bytes.len() as u64, out);
    out.extend(bytes);
}

#[test]
fn what_the_api_does_not_have_is_an_error() {
    let api = Api::load();
    let bad = serde_json::json!({"config": {"metadata": {"nam": "x"}}});
    let error = api
        .encode("RunPodSandboxRequest", &bad)
        .expect_err("an unknown field");
    assert_eq!(
        error,
        "RunPodSandboxRequest.config.metadata.nam: not in the API"
    );
    let bad = serde_json::json!({"config": {"linux": {"security_context": {
        "namespace_options": {"pid": "SOMETIMES"}}}}});
    assert!(api.encode("RunPodSandboxRequest", &bad).is_err());
}
