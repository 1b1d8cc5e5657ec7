//! What happens to pods and containers, in the words of those who want to know.

use serde::{Deserialize, Serialize};

use super::stored_as_text;

stored_as_text! {
    /// How CRI announces an event to its subscribers (`ContainerEventType`).
    Announced {
        /// It is there, and not running.
        Created = "created",
        /// It runs.
        Started = "started",
        /// It has ended.
        Stopped = "stopped",
        /// Its record is gone.
        Deleted = "deleted",
    }
}

stored_as_text! {
    /// Who wants a running container to end. A container that nobody stopped ended by itself, or
    /// was killed by the kernel; then its exit says so (`OOMKilled`).
    Stopper {
        /// StopContainer.
        StopContainer = "StopContainer",
        /// RemoveContainer.
        RemoveContainer = "RemoveContainer",
        /// StopPodSandbox.
        StopPod = "StopPodSandbox",
        /// RemovePodSandbox.
        RemovePod = "RemovePodSandbox",
        /// The daemon, because nobody came back for the pod.
        Abandoned = "abandoned",
    }
}

/// What an announced event keeps of its pod and container, for readers that come when their rows
/// are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDetail {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod uid.
    pub uid: String,
    /// How often the pod's sandbox has been made anew.
    pub attempt: u32,
    /// When the sandbox was asked for, ns since 1970.
    pub created_at: i64,
    /// The container, if the event is about one.
    pub container: Option<ContainerDetail>,
}

/// The container of an [`EventDetail`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDetail {
    /// Its name in the pod.
    pub name: String,
    /// How often it has been made anew.
    pub attempt: u32,
    /// Its image as the client named it.
    pub image: String,
    /// Id of its image.
    pub image_id: String,
    /// When it was asked for, ns since 1970.
    pub created_at: i64,
    /// When its process started, ns since 1970.
    pub started_at: Option<i64>,
    /// When its process ended, ns since 1970.
    pub exited_at: Option<i64>,
    /// How: 0 to 255, 128 + signal.
    pub exit_code: Option<i32>,
    /// One word for why.
    pub reason: String,
}
