//! Attributes and messages of nf_tables and conntrack, as bytes.
//!
//! Netfilter's numbers are big-endian, unlike route netlink's (libmnl's and the kernel's
//! `linux/netlink.h`); lengths of attributes are the machine's.

use netlink_packet_core::NlasIterator;

/// `NLA_F_NESTED` of `linux/netlink.h`.
const NESTED: u16 = 1 << 15;
/// `NLA_HDRLEN`.
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// `struct nfgenmsg` of `linux/netfilter/nfnetlink.h`.
pub(super) const GENERIC_HEADER_BYTES: usize = 4;

/// Attributes one after another.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute as it is.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a C string.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// A message of a netfilter subsystem.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// `NFNL_SUBSYS_…` in the upper byte, what is asked for in the lower one.
    pub(super) kind: u16,
    /// Beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(super) flags: u16,
    payload: Vec<u8>,
}

impl Message {
    pub(super) fn new(kind: u16, flags: u16, family: u8, body: &Attributes) -> Self {
        Self::with_resource(kind, flags, (family, 0), body)
    }

    /// `resource` is what the bounds of a transaction name: its subsystem.
    pub(super) fn with_resource(
        kind: u16,
        flags: u16,
        (family, resource): (u8, u16),
        body: &Attributes,
    ) -> Self {
        // NFNETLINK_V0.
        let mut payload = vec![family, 0];
        payload.extend(resource.to_be_bytes());
        payload.extend(&body.0);
        Self {
            kind,
            flags,
            payload,
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }
}

/// All attributes, up to the first torn one.
fn each(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .filter_map(|attribute| {
            let end = ATTRIBUTE_HEADER_BYTES + attribute.value_length();
            let value = attribute.into_inner().get(ATTRIBUTE_HEADER_BYTES..end)?;
            Some((attribute.kind() & !NESTED, value))
        })
}

/// The value of the first attribute of this kind.
pub(in crate::network) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each(attributes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The values of all attributes of a list.
pub(super) fn list(attributes: &[u8]) -> Vec<&[u8]> {
    each(attributes).map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_found_again() {
        let inner = Attributes::new().number(7, 0x0102_0304).text(8, "abc");
        let all = Attributes::new().bytes(1, &[9]).nested(2, &inner);
        assert_eq!(all.0.len() % 4, 0);
        assert_eq!(find(&all.0, 1), Some(&[9][..]));
        let nested = find(&all.0, 2).unwrap();
        assert_eq!(find(nested, 7), Some(&[1, 2, 3, 4][..]));
        assert_eq!(find(nested, 8), Some(&b"abc\0"[..]));
        assert_eq!(find(nested, 9), None);
        assert_eq!(list(nested).len(), 2);
    }

    #[test]
    fn torn_attributes_end_the_list() {
        assert_eq!(find(&[200, 0, 1, 0], 1), None);
        assert!(list(&[1]).is_empty());
    }
}
