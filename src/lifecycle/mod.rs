//! Pure rules, one file per noun: what a client may ask of an object in its present state (`admit`)
//! and what the daemon does next about it (`next_step`). No clock, no database, no kernel.

pub mod address;
pub mod allocation;
pub mod attachment;
pub mod bandwidth;
pub mod capability;
pub mod container;
pub mod difference;
pub mod digest;
pub mod docker_auth;
pub mod egress;
pub mod ending;
pub mod event;
pub mod handler;
pub mod hardware;
pub mod hook;
pub mod id_map;
pub mod image;
pub mod image_check;
pub mod job;
pub mod layer;
pub mod limits;
pub mod port;
pub mod process;
pub mod record;
pub mod reference;
pub mod sandbox;
pub mod signal;
pub mod slice;
pub mod spec;
pub mod ulimit;
pub mod usage;

/// Whether a request may be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Write the wish and wait for it.
    Admitted,
    /// It is so already (or was once): answer success and change nothing.
    Already,
    /// It cannot be.
    Refused(Impossible),
}

/// A transition that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{noun} {id} is {from} and cannot become {to}: {because}")]
pub struct Impossible {
    /// `sandbox` or `container`.
    pub noun: &'static str,
    /// Which; the rules themselves know no ids.
    pub id: String,
    /// The state it is in.
    pub from: &'static str,
    /// The state that was asked for.
    pub to: &'static str,
    /// Why not, in words for the client.
    pub because: &'static str,
}

impl Impossible {
    /// The same, about this object.
    #[must_use]
    pub fn of(self, id: impl std::fmt::Display) -> Self {
        Self {
            id: id.to_string(),
            ..self
        }
    }
}

/// Declares an enum that is stored as text, with both directions.
macro_rules! stored_as_text {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word the database holds.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::lifecycle::UnknownWord;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err($crate::lifecycle::UnknownWord(other.to_owned())),
                }
            }
        }
    };
}
pub(crate) use stored_as_text;

/// A stored word that no state has: the database was written by something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a state")]
pub struct UnknownWord(pub String);
