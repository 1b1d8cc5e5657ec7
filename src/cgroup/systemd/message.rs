//! D-Bus messages, as far as calls to systemd need them: written from a few types, and read with
//! bounds (D-Bus specification, "Message Protocol").

/// Longest message that is read. systemd's answers have some hundred bytes.
const MESSAGE_MAX: usize = 256 * 1024;
/// Length of the part of a header that is always the same: with the length of the fields.
pub(super) const FIXED: usize = 16;

/// A method call.
const CALL: u8 = 1;
/// The answer to one.
pub(super) const RETURN: u8 = 2;
/// A refusal.
pub(super) const ERROR: u8 = 3;
/// News that nobody answers.
pub(super) const SIGNAL: u8 = 4;

/// The receiver is not to be started for this message.
const NO_AUTO_START: u8 = 2;

/// Whom a call is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method {
    pub(super) destination: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
    pub(super) name: &'static str,
}

/// A value of one of the types that systemd's properties have here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Bool(bool),
    Text(String),
    Number(u64),
    Numbers(Vec<u32>),
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Text(_) => "s",
            Self::Number(_) => "t",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// Properties of a unit, by name.
pub(super) type Properties = Vec<(&'static str, Value)>;

/// Bytes in the order of this machine, each value aligned from the beginning.
#[derive(Debug, Default)]
pub(super) struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    pub(super) fn text(&mut self, value: &str) {
        self.u32(length(value.len()));
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, value: &str) {
        // All of ours are some letters long.
        self.0.push(u8::try_from(value.len()).unwrap_or_default());
        self.0.extend(value.as_bytes());
        self.0.push(0);
    }

    /// An array whose elements begin at multiples of `align`.
    fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.align(align);
        let begin = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - begin).to_le_bytes();
        self.0[at..at + 4].copy_from_slice(&bytes);
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::Text(value) => self.text(value),
            Value::Number(value) => {
                self.align(8);
                self.0.extend(value.to_le_bytes());
            }
            Value::Numbers(values) => {
                self.array(4, |body| values.iter().for_each(|value| body.u32(*value)));
            }
            Value::Bytes(bytes) => self.array(1, |body| body.0.extend(bytes)),
        }
    }

    /// `a(sv)`
    pub(super) fn properties(&mut self, properties: &Properties) {
        self.array(8, |body| {
            for (name, value) in properties {
                body.align(8);
                body.text(name);
                body.variant(value);
            }
        });
    }

    /// An array of structures that has none.
    pub(super) fn no_structures(&mut self) {
        self.array(8, |_| {});
    }
}

/// What is written here never comes near 4 GiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A whole call. `signature` says what is in the body.
pub(super) fn call(serial: u32, method: Method, signature: &str, body: &Body) -> Vec<u8> {
    let mut whole = Body(vec![b'l', CALL, NO_AUTO_START, 1]);
    whole.u32(length(body.0.len()));
    whole.u32(serial);
    whole.array(8, |fields| {
        let mut field = |code: u8, kind: &str, value: &str| {
            fields.align(8);
            fields.0.push(code);
            fields.signature(kind);
            match kind {
                "g" => fields.signature(value),
                _ => fields.text(value),
            }
        };
        field(1, "o", method.path);
        field(2, "s", method.interface);
        field(3, "s", method.name);
        field(6, "s", method.destination);
        if !signature.is_empty() {
            field(8, "g", signature);
        }
    });
    whole.align(8);
    whole.0.extend(&body.0);
    whole.0
}

/// A message that has come in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: u8,
    /// To which call it is the answer.
    pub(super) reply_to: Option<u32>,
    pub(super) member: String,
    /// The name of an error.
    pub(super) error: String,
    pub(super) signature: String,
    body: Vec<u8>,
    big: bool,
}

/// How many bytes follow the first [`FIXED`] ones.
pub(super) fn rest(fixed: &[u8; FIXED]) -> Result<usize, &'static str> {
    let big = is_big(fixed[0])?;
    if fixed[3] != 1 {
        return Err("is of another version of the protocol");
    }
    let number = |at: usize| word(fixed, at, big).unwrap_or(u32::MAX) as usize;
    let (body, fields) = (number(4), number(12));
    let whole = fields
        .checked_next_multiple_of(8)
        .and_then(|fields| fields.checked_add(body));
    whole
        .filter(|whole| *whole <= MESSAGE_MAX)
        .ok_or("is longer than 256 KiB")
}

impl Message {
    /// Reads a message from its first [`FIXED`] bytes and all that follow.
    pub(super) fn parse(fixed: &[u8; FIXED], rest: &[u8]) -> Result<Self, &'static str> {
        let big = is_big(fixed[0])?;
        let fields = word(fixed, 12, big).ok_or(SHORT)? as usize;
        let body = fields.next_multiple_of(8);
        let mut message = Self {
            kind: fixed[1],
            big,
            body: rest.get(body..).ok_or(SHORT)?.to_vec(),
            ..Self::default()
        };
        // Before the fields are 16 bytes, so they are aligned as they would be from the beginning.
        let mut reader = Reader {
            bytes: rest.get(..fields).ok_or(SHORT)?,
            at: 0,
            big,
        };
        while reader.at < fields {
            reader.align(8);
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind.as_str()) {
                (5, "u") => message.reply_to = Some(reader.u32()?),
                (3, "s") => message.member = reader.text()?,
                (4, "s") => message.error = reader.text()?,
                (8, "g") => message.signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.u32()?),
                _ => return Err("has a header field of an unknown type"),
            }
        }
        Ok(message)
    }

    /// The values of the body.
    pub(super) fn values(&self) -> Reader<'_> {
        Reader {
            bytes: &self.body,
            at: 0,
            big: self.big,
        }
    }
}

const SHORT: &str = "ends in the middle";

fn is_big(order: u8) -> Result<bool, &'static str> {
    match order {
        b'l' => Ok(false),
        b'B' => Ok(true),
        _ => Err("does not begin with an order of bytes"),
    }
}

fn word(bytes: &[u8], at: usize, big: bool) -> Option<u32> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(match big {
        true => u32::from_be_bytes(four),
        false => u32::from_le_bytes(four),
    })
}

/// Takes values from bytes, one after the other.
#[derive(Debug)]
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    big: bool,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        let byte = self.bytes.get(self.at).ok_or(SHORT)?;
        self.at += 1;
        Ok(*byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        self.align(4);
        let value = word(self.bytes, self.at, self.big).ok_or(SHORT)?;
        self.at += 4;
        Ok(value)
    }

    /// A string or an object path.
    pub(super) fn text(&mut self) -> Result<String, &'static str> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(super) fn signature(&mut self) -> Result<String, &'static str> {
        let length = self.byte()?.into();
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<String, &'static str> {
        let end = self.at.checked_add(length).ok_or(SHORT)?;
        let bytes = self.bytes.get(self.at..end).ok_or(SHORT)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "has text that is none")?;
        if self.bytes.get(end) != Some(&0) {
            return Err("has text without an end");
        }
        self.at = end + 1;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const METHOD: Method = Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        name: "Hello",
    };

    fn split(message: &[u8]) -> ([u8; FIXED], &[u8]) {
        let (fixed, rest) = message.split_at(FIXED);
        (fixed.try_into().unwrap(), rest)
    }

    #[test]
    fn a_call_is_written_as_the_specification_has_it() {
        let call = call(7, METHOD, "", &Body::default());
        // Read off by hand: order, call, flag, version; no body; serial; length of the fields.
        assert_eq!(call[..12], [b'l', 1, 2, 1, 0, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(call.len() % 8, 0);
        assert_eq!(call[16..20], [1, 1, b'o', 0]);
        assert_eq!(call[20..24], [21, 0, 0, 0]);
        assert_eq!(&call[24..46], b"/org/freedesktop/DBus\0");
        let (fixed, tail) = split(&call);
        assert_eq!(rest(&fixed), Ok(tail.len()));
        let read = Message::parse(&fixed, tail).unwrap();
        assert_eq!((read.kind, read.member.as_str()), (CALL, "Hello"));
    }

    #[test]
    fn properties_are_aligned_and_counted() {
        let mut body = Body::default();
        body.properties(&vec![
            ("A", Value::Bool(true)),
            ("BB", Value::Number(u64::MAX)),
            ("C", Value::Numbers(vec![1, 2])),
            ("D", Value::Bytes(vec![3])),
        ]);
        let bytes = body.0;
        let one = [1, 0, 0, 0, b'A', 0, 1, b'b', 0, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(bytes[..8], [81, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..24], one);
        let two = [2, 0, 0, 0, b'B', b'B', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes[24..40], two);
        assert_eq!(bytes[40..48], [255; 8]);
        assert_eq!(bytes.len(), 8 + 81);
        let last = [1, 0, 0, 0, b'D', 0, 2, b'a', b'y', 0, 0, 0, 1, 0, 0, 0, 3];
        assert_eq!(bytes[72..], last);
    }

    proptest! {
        #[test]
        fn nothing_that_comes_in_does_harm(
            order in prop::sample::select(vec![b'l', b'B', 0]),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            fields in 0_u32..220,
        ) {
            let mut fixed = [0; FIXED];
            fixed[0] = order;
            fixed[3] = 1;
            let words = if order == b'B' { fields.to_be_bytes() } else { fields.to_le_bytes() };
            fixed[12..].copy_from_slice(&words);
            let _ = rest(&fixed);
            if let Ok(message) = Message::parse(&fixed, &bytes) {
                let mut values = message.values();
                while values.text().is_ok() {}
            }
        }

        #[test]
        fn a_message_is_never_taken_for_a_longer_one(
            body in any::<u32>(), fields in any::<u32>(),
        ) {
            let mut fixed = [0; FIXED];
            fixed[0] = b'l';
            fixed[3] = 1;
            fixed[4..8].copy_from_slice(&body.to_le_bytes());
            fixed[12..].copy_from_slice(&fields.to_le_bytes());
            prop_assert!(rest(&fixed).is_err() || rest(&fixed).unwrap() <= MESSAGE_MAX);
        }
    }
}
