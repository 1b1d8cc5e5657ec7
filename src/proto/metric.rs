//! `runtime.v1.Metric`, by hand: a node has ten thousand of them, which have most of their labels
//! in common. Those are encoded once for all metrics of a pod or container, and copied as they are.
//!
//! On the wire it is the message of `proto/cri/api.proto`, which the test below compares.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use prost::encoding::wire_type::WireType;
use prost::encoding::{
    DecodeContext, encode_key, encode_varint, encoded_len_varint, int32, int64, key_len, message,
    skip_field, string,
};
use prost::{DecodeError, Message};

use super::cri::UInt64Value;

const NAME: u32 = 1;
const TIMESTAMP: u32 = 2;
const METRIC_TYPE: u32 = 3;
const LABEL_VALUES: u32 = 4;
const VALUE: u32 = 5;

/// One value of a metric.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metric {
    /// Its name, as in the descriptors.
    pub name: Cow<'static, str>,
    /// When it was read, ns since 1970.
    pub timestamp: i64,
    /// A `MetricType`.
    pub metric_type: i32,
    /// The first of its label values; none in one that was decoded.
    pub common: Labels,
    /// The others.
    pub label_values: Vec<String>,
    /// The value.
    pub value: Option<UInt64Value>,
}

/// Label values that several metrics begin with, as they are on the wire.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels(Arc<[u8]>);

impl Labels {
    /// These, in this order.
    #[must_use]
    pub fn new(values: &[String]) -> Self {
        let mut bytes = Vec::with_capacity(string::encoded_len_repeated(LABEL_VALUES, values));
        string::encode_repeated(LABEL_VALUES, values, &mut bytes);
        Self(bytes.into())
    }
}

impl Message for Metric {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.name.is_empty() {
            encode_key(NAME, WireType::LengthDelimited, buf);
            encode_varint(self.name.len() as u64, buf);
            buf.put_slice(self.name.as_bytes());
        }
        if self.timestamp != 0 {
            int64::encode(TIMESTAMP, &self.timestamp, buf);
        }
        if self.metric_type != 0 {
            int32::encode(METRIC_TYPE, &self.metric_type, buf);
        }
        buf.put_slice(&self.common.0);
        string::encode_repeated(LABEL_VALUES, &self.label_values, buf);
        if let Some(value) = &self.value {
            message::encode(VALUE, value, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            NAME => string::merge(wire_type, self.name.to_mut(), buf, ctx),
            TIMESTAMP => int64::merge(wire_type, &mut self.timestamp, buf, ctx),
            METRIC_TYPE => int32::merge(wire_type, &mut self.metric_type, buf, ctx),
            LABEL_VALUES => string::merge_repeated(wire_type, &mut self.label_values, buf, ctx),
            VALUE => {
                let value = self.value.get_or_insert_default();
                message::merge(wire_type, value, buf, ctx)
            }
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let name = match self.name.len() {
            0 => 0,
            length => key_len(NAME) + encoded_len_varint(length as u64) + length,
        };
        let timestamp = match self.timestamp {
            0 => 0,
            _ => int64::encoded_len(TIMESTAMP, &self.timestamp),
        };
        let metric_type = match self.metric_type {
            0 => 0,
            _ => int32::encoded_len(METRIC_TYPE, &self.metric_type),
        };
        let value = self.value.as_ref();
        name + timestamp
            + metric_type
            + self.common.0.len()
            + string::encoded_len_repeated(LABEL_VALUES, &self.label_values)
            + value.map_or(0, |value| message::encoded_len(VALUE, value))
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the generator would have it.
    #[derive(Clone, PartialEq, Message)]
    struct Generated {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(int64, tag = "2")]
        timestamp: i64,
        #[prost(int32, tag = "3")]
        metric_type: i32,
        #[prost(string, repeated, tag = "4")]
        label_values: Vec<String>,
        #[prost(message, optional, tag = "5")]
        value: Option<UInt64Value>,
    }

    /// Name, time, type, labels in common, own ones, value.
    type Case = (
        &'static str,
        i64,
        i32,
        &'static [&'static str],
        &'static [&'static str],
        Option<u64>,
    );

    fn strings(from: &[&str]) -> Vec<String> {
        from.iter().map(|&each| each.to_owned()).collect()
    }

    #[test]
    fn it_is_the_message_of_the_api() {
        let descriptors = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let set = prost_types::FileDescriptorSet::decode(&descriptors[..]).unwrap();
        let messages = set.file.iter().flat_map(|file| &file.message_type);
        let metric = messages.clone().find(|message| message.name() == "Metric");
        let fields = metric.unwrap().field.iter();
        let fields: Vec<_> = fields.map(|field| (field.name(), field.number())).collect();
        let known = [
            ("name", 1),
            ("timestamp", 2),
            ("metric_type", 3),
            ("label_values", 4),
            ("value", 5),
        ];
        assert_eq!(fields, known);
    }

    #[test]
    fn its_bytes_are_those_of_the_generated_one() {
        let cases: [Case; 4] = [
            ("", 0, 0, &[], &[], None),
            ("a", 1, 0, &["x", "", "z"], &[], Some(0)),
            ("b", -1, 1, &[], &["own"], Some(u64::MAX)),
            ("c", i64::MAX, 1, &["x"], &["", "own"], Some(1)),
        ];
        for (name, timestamp, metric_type, common, own, value) in cases {
            let value = value.map(|value| UInt64Value { value });
            let metric = Metric {
                name: name.into(),
                timestamp,
                metric_type,
                common: Labels::new(&strings(common)),
                label_values: strings(own),
                value,
            };
            let generated = Generated {
                name: name.to_owned(),
                timestamp,
                metric_type,
                label_values: strings(&[common, own].concat()),
                value,
            };
            let bytes = metric.encode_to_vec();
            assert_eq!(bytes, generated.encode_to_vec());
            assert_eq!(bytes.len(), metric.encoded_len());
            let decoded = Metric::decode(&bytes[..]).unwrap();
            assert_eq!(decoded.label_values, generated.label_values);
            assert_eq!(decoded.encode_to_vec(), bytes);
        }
    }
}
