//! Why a call failed, and the one place that turns it into a gRPC status.

use tonic::{Code, Status};

use crate::causes::with_causes;
use crate::lifecycle::{Impossible, image};
use crate::state::{StateError, Trouble};

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A field of the request cannot be what it is.
    #[error("{field}: {why}")]
    Invalid {
        /// Path of the field, as the interface names it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// An image cannot be mounted as the request asks for.
    #[error("{}: {field}: {why}", image::VOLUME_FAILED)]
    ImageVolume {
        /// How kubelet should take it.
        code: Code,
        /// Path of the field, as the interface names it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The request can be met, but not on this node.
    #[error("{field} {why}")]
    Missing {
        /// Path of the field, as the interface names it.
        field: String,
        /// What the node lacks.
        why: String,
    },
    /// There is no such object.
    #[error("{noun} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container`, `image`.
        noun: &'static str,
        /// As the client wrote it.
        id: String,
    },
    /// The beginning of an id fits several.
    #[error("{noun} {prefix:?} is ambiguous: give more of the id")]
    Ambiguous {
        /// `sandbox`, `container`, `image`.
        noun: &'static str,
        /// As the client wrote it.
        prefix: String,
    },
    /// It cannot follow from the present state.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// Time ran out; the work goes on.
    #[error(
        "deadline exceeded while {noun} {id} was at stage \"{stage}\"; the work goes on, ask again"
    )]
    Deadline {
        /// What was waited for.
        noun: &'static str,
        /// Which.
        id: String,
        /// How far it had come.
        stage: String,
    },
    /// Time ran out before the call came to wait for the work: the database is slow or locked.
    #[error("deadline exceeded before {rpc} was under way; ask again")]
    Late {
        /// The call.
        rpc: &'static str,
    },
    /// A command ran longer than its time-out.
    #[error("command {command:?} timed out after {seconds:.1} s and was killed")]
    ExecTimeout {
        /// The command.
        command: String,
        /// How long it ran.
        seconds: f64,
    },
    /// The work itself failed.
    #[error("{0}")]
    Failed(String),
    /// A client withdrew the object while another waited for it.
    #[error("{noun} {id} was removed before it was done")]
    Withdrawn {
        /// What was waited for.
        noun: &'static str,
        /// Which.
        id: String,
    },
    /// An image could not be pulled.
    #[error("{message}")]
    Pull {
        /// How kubelet should take it.
        code: Code,
        /// What failed, with what.
        message: String,
    },
    /// More is asked for at once than is given.
    #[error("{0}")]
    TooMany(String),
    /// A position that no event has had yet.
    #[error("{key}: {asked} is beyond the newest event, which is {newest}; begin without it")]
    Position {
        /// How the client named it.
        key: &'static str,
        /// What it named.
        asked: i64,
        /// What there is.
        newest: i64,
    },
    /// The daemon ends.
    #[error("the daemon is ending; ask again")]
    Ending,
    /// This part of the interface is not built.
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
    /// The database failed.
    #[error(transparent)]
    State(StateError),
    /// The shim is away; it is being started anew.
    #[error("the shim is not connected; it is being started, ask again")]
    NoShim,
}

impl From<StateError> for CallError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Impossible(impossible) => Self::Impossible(impossible),
            StateError::NotFound { noun, id } => Self::NotFound { noun, id },
            error => Self::State(error),
        }
    }
}

impl CallError {
    /// An invalid field.
    pub(super) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }

    /// An invalid field of a mount that is an image.
    pub(super) fn image_volume(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::ImageVolume {
            code: Code::InvalidArgument,
            field: field.into(),
            why: why.into(),
        }
    }

    /// What clients are told.
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Invalid { .. }
            | Self::Ambiguous { .. }
            | Self::State(StateError::AddressUnfit { .. }) => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Missing { .. }
            | Self::Impossible(_)
            | Self::State(
                StateError::Transition { .. }
                | StateError::PortTaken { .. }
                | StateError::AddressTaken { .. },
            ) => Code::FailedPrecondition,
            Self::Deadline { .. } | Self::Late { .. } | Self::ExecTimeout { .. } => {
                Code::DeadlineExceeded
            }
            Self::Failed(_) => Code::Unknown,
            Self::Withdrawn { .. } => Code::Aborted,
            Self::Pull { code, .. } | Self::ImageVolume { code, .. } => *code,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::State(StateError::AddressesExhausted { .. }) => Code::ResourceExhausted,
            Self::TooMany(_) => Code::ResourceExhausted,
            Self::Position { .. } => Code::OutOfRange,
            Self::Ending => Code::Unavailable,
            Self::State(
                StateError::Begin { .. }
                | StateError::Busy { .. }
                | StateError::AddressLeaving { .. }
                | StateError::NetworkNotReady(_)
                | StateError::Closed,
            )
            | Self::NoShim => Code::Unavailable,
            Self::State(error) => match error.trouble() {
                Some(Trouble::Full) => Code::ResourceExhausted,
                Some(_) => Code::Unavailable,
                None => Code::Internal,
            },
        }
    }
}

/// The code's name, for a metric's label.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Self::new(error.code(), with_causes(&error))
    }
}
