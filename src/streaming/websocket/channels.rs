//! The subprotocols of Kubernetes over WebSocket: channels among messages, each with a number in
//! front. Pure.
//!
//! | name | a message | status on the error channel |
//! |---|---|---|
//! | `v5.channel.k8s.io` | number, bytes; `255, number` ends that channel | JSON |
//! | `v4.channel.k8s.io` | number, bytes | JSON |
//! | `channel.k8s.io`, none at all | number, bytes | text |
//! | `v4.base64.channel.k8s.io` | digit, base64 | JSON |
//! | `base64.channel.k8s.io` | digit, base64 | text |
//!
//! After the digits the characters that follow in ASCII stand for channels, as in Kubernetes' own
//! servers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

/// The number that ends a channel (v5).
const CLOSE: u8 = 255;
/// The character for channel 0 in front of base64, and the last one that stands for any.
const FIRST: u8 = b'0';
const LAST: u8 = b'~';

/// How channels are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subprotocol {
    name: &'static str,
    base64: bool,
    closes: bool,
    json_status: bool,
}

const fn protocol(name: &'static str, base64: bool, json_status: bool) -> Subprotocol {
    Subprotocol {
        name,
        base64,
        closes: false,
        json_status,
    }
}

/// Those that are spoken, the best first.
const SPOKEN: [Subprotocol; 5] = [
    Subprotocol {
        closes: true,
        ..protocol("v5.channel.k8s.io", false, true)
    },
    protocol("v4.channel.k8s.io", false, true),
    protocol("v4.base64.channel.k8s.io", true, true),
    protocol("channel.k8s.io", false, false),
    protocol("base64.channel.k8s.io", true, false),
];

/// What a client gets that names none.
const UNNAMED: Subprotocol = protocol("", false, false);

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Bytes on a channel.
    Bytes(u8, Bytes),
    /// Nothing follows on a channel.
    End(u8),
}

/// A message that is not of the subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message that does not fit the subprotocol: {0}")]
pub struct Unfit(&'static str);

impl Subprotocol {
    /// The best of those a client offers; without an offer the oldest. `None`: none is spoken here.
    #[must_use]
    pub fn choose<'a>(offered: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let offered: Vec<&str> = offered.into_iter().collect();
        if offered.is_empty() {
            return Some(UNNAMED);
        }
        SPOKEN
            .into_iter()
            .find(|spoken| offered.contains(&spoken.name))
    }

    /// The names of all.
    pub fn spoken() -> impl Iterator<Item = &'static str> {
        SPOKEN.into_iter().map(Self::name)
    }

    /// As the client named it; empty when it named none.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Whether the error channel carries a JSON status, success as well, or the text of an error.
    #[must_use]
    pub fn has_json_status(self) -> bool {
        self.json_status
    }

    /// How many channels there may be.
    #[must_use]
    pub fn channels(self) -> usize {
        usize::from(if self.base64 { LAST - FIRST + 1 } else { CLOSE })
    }

    /// Puts bytes of a channel into a message. It must be one of [`Self::channels`].
    #[must_use]
    pub fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + bytes.len() * 4 / 3 + 4);
            text.push(char::from(FIRST.saturating_add(channel)));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }

    /// What the payload of a message says; `None` for one that says nothing.
    ///
    /// # Errors
    /// [`Unfit`]: a number or an encoding that is none.
    pub fn decode(self, mut payload: Bytes) -> Result<Option<Said>, Unfit> {
        let Some(&first) = payload.first() else {
            return Ok(None);
        };
        let rest = payload.split_off(1);
        if self.base64 {
            let channel = first
                .checked_sub(FIRST)
                .filter(|_| first.is_ascii_graphic());
            let channel = channel.ok_or(Unfit("its channel is none"))?;
            let bytes = STANDARD.decode(rest.trim_ascii());
            let bytes = bytes.map_err(|_| Unfit("it is not base64"))?;
            return Ok(Some(Said::Bytes(channel, bytes.into())));
        }
        if self.closes && first == CLOSE {
            let channel = rest.first().ok_or(Unfit("it ends no channel"))?;
            return Ok(Some(Said::End(*channel)));
        }
        Ok(Some(Said::Bytes(first, rest)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_best_offer_is_taken_whatever_its_place() {
        let choose = |offered: &[&str]| Subprotocol::choose(offered.iter().copied());
        let name = |offered| choose(offered).map(Subprotocol::name);
        assert_eq!(name(&[]), Some(""));
        assert_eq!(
            name(&["v4.channel.k8s.io", "v5.channel.k8s.io"]),
            Some("v5.channel.k8s.io")
        );
        assert_eq!(
            name(&["base64.channel.k8s.io"]),
            Some("base64.channel.k8s.io")
        );
        assert_eq!(name(&["v6.channel.k8s.io", "chat"]), None);
        assert!(
            choose(&["v4.base64.channel.k8s.io"])
                .unwrap()
                .has_json_status()
        );
        assert!(!choose(&[]).unwrap().has_json_status());
    }

    #[test]
    fn only_v5_ends_channels() {
        let [v5, v4, ..] = SPOKEN;
        let end = Bytes::from_static(&[255, 0]);
        assert_eq!(v5.decode(end.clone()), Ok(Some(Said::End(0))));
        let bytes = Said::Bytes(255, Bytes::from_static(&[0]));
        assert_eq!(v4.decode(end), Ok(Some(bytes)));
        assert!(v5.decode(Bytes::from_static(&[255])).is_err());
    }

    #[test]
    fn an_empty_message_says_nothing() {
        for spoken in SPOKEN {
            assert_eq!(spoken.decode(Bytes::new()), Ok(None), "{spoken:?}");
        }
        let base64 = SPOKEN[2];
        assert!(base64.decode(Bytes::from_static(b"/")).is_err());
        assert!(base64.decode(Bytes::from_static(b"0?")).is_err());
        let empty = Said::Bytes(0, Bytes::new());
        assert_eq!(base64.decode(Bytes::from_static(b"0")), Ok(Some(empty)));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            which in 0..SPOKEN.len(),
            channel in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let spoken = SPOKEN[which];
            let channel = u8::try_from(channel.index(spoken.channels())).unwrap();
            let message = spoken.encode(channel, &bytes);
            prop_assert_eq!(message.is_text(), spoken.base64);
            let said = spoken.decode(message.into_data());
            prop_assert_eq!(said, Ok(Some(Said::Bytes(channel, bytes.into()))));
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(
            which in 0..SPOKEN.len(),
            bytes in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = SPOKEN[which].decode(bytes.into());
        }
    }
}
