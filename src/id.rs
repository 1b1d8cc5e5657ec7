//! Typed ids: 64 lowercase hex digits for sandboxes and containers (cAdvisor and kubelet find a
//! container by a cgroup whose name holds exactly that), and the keys of the job queue.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of a sandbox or container id.
pub const ID_LENGTH: usize = 64;

/// An id is 64 lowercase hex digits; this text is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: 64 lowercase hex digits are wanted")]
pub struct InvalidId(pub String);

fn is_hex(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A random name: 64 hex digits that nothing else has.
///
/// # Panics
/// When the kernel refuses random bytes, without which nothing here is safe.
#[must_use]
pub fn random_name() -> String {
    let mut bytes = [0_u8; ID_LENGTH / 2];
    let mut filled = 0;
    while filled < bytes.len() {
        // getrandom(2) fails only before the kernel's pool is ready, and then waits by default.
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("the kernel gives no random bytes: {error}"),
        }
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// A new random id (256 bits from getrandom(2)).
            ///
            /// # Panics
            /// When the kernel refuses random bytes, without which nothing here is safe.
            #[must_use]
            pub fn random() -> Self {
                Self(random_name())
            }

            /// The 64 hex digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 12 digits, as people quote ids.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                if text.len() == ID_LENGTH && is_hex(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidId(text))
                }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(
    /// The id of a pod sandbox.
    SandboxId
);
hex_id!(
    /// The id of a container.
    ContainerId
);

/// What a job is about. The queue holds these and nothing else (invariant I3).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// A pod sandbox.
    Sandbox(SandboxId),
    /// A container.
    Container(ContainerId),
    /// An image, by its id (`sha256:…`).
    Image(String),
    /// A pull, by its normalised reference.
    Pull(String),
    /// A row of `cleanup_tasks`.
    Cleanup(i64),
    /// The networks that wait for a pod, all of them.
    Prepared,
    /// A pod's attachment to a network that plugins make.
    Attachment(SandboxId),
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id) => write!(f, "sandbox/{id}"),
            Self::Container(id) => write!(f, "container/{id}"),
            Self::Image(id) => write!(f, "image/{id}"),
            Self::Pull(reference) => write!(f, "pull/{reference}"),
            Self::Cleanup(id) => write!(f, "cleanup/{id}"),
            Self::Prepared => f.write_str("prepared/networks"),
            Self::Attachment(id) => write!(f, "attachment/{id}"),
        }
    }
}

impl std::str::FromStr for ObjectKey {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(text.to_owned());
        let (kind, rest) = text.split_once('/').ok_or_else(invalid)?;
        match kind {
            "sandbox" => Ok(Self::Sandbox(rest.to_owned().try_into()?)),
            "container" => Ok(Self::Container(rest.to_owned().try_into()?)),
            "image" => Ok(Self::Image(rest.to_owned())),
            "pull" => Ok(Self::Pull(rest.to_owned())),
            "cleanup" => rest.parse().map(Self::Cleanup).map_err(|_| invalid()),
            "prepared" if rest == "networks" => Ok(Self::Prepared),
            "attachment" => Ok(Self::Attachment(rest.to_owned().try_into()?)),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_valid_and_differ() {
        let one = ContainerId::random();
        assert!(ContainerId::try_from(one.to_string()).is_ok());
        assert_ne!(one, ContainerId::random());
    }

    #[test]
    fn what_is_not_64_lowercase_hex_digits_is_refused() {
        for text in ["", "abc", &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert!(SandboxId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_survive_being_written_and_read() {
        let keys = [
            ObjectKey::Sandbox(SandboxId::random()),
            ObjectKey::Container(ContainerId::random()),
            ObjectKey::Image("sha256:00".into()),
            ObjectKey::Pull("host/repo:tag".into()),
            ObjectKey::Cleanup(7),
            ObjectKey::Prepared,
            ObjectKey::Attachment(SandboxId::random()),
        ];
        for key in keys {
            assert_eq!(key.to_string().parse::<ObjectKey>(), Ok(key));
        }
    }
}
