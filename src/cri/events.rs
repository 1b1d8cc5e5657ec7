//! GetContainerEvents: the table `events`, from a position on, as it grows.
//!
//! A stream reads pages by sequence and is woken by commits; a wake-up carries no news. So nothing
//! is dropped for a slow client: it slows its own stream and nobody else's, and what was written
//! while it was away is still in the table. The statuses in a message are read when it is sent:
//! they are as new as the event or newer, never older, and an object that is gone by then is
//! described from the event itself.
//!
//! Where a stream begins, in this order:
//! 1. after `quilt-after-sequence` in the request's metadata;
//! 2. after the event created at `quilt-after-created-at` (ns): event times are unique and in
//!    order, so a client that keeps the `created_at` of its last message loses and repeats nothing;
//! 3. after the last event that a stream of this third kind was given, by this daemon or the one
//!    before it; the first ever begins now.
//!
//! The answer's initial metadata names the position as `quilt-after-sequence`. gRPC has no metadata
//! for single messages and CRI no field for a sequence, hence the second way.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tonic::codegen::BoxStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{CallError, Front, container, sandbox};
use crate::lifecycle::container::State;
use crate::lifecycle::event::{Announced, ContainerDetail};
use crate::lifecycle::sandbox::State as SandboxState;
use crate::proto::cri as v1;
use crate::state::event::Announcement;

/// Streams open at once.
pub(super) const STREAMS: usize = 64;
/// Events read at once.
const PAGE: u32 = 64;
/// How often the position of streams without one is written down.
const KEEP_PERIOD: Duration = Duration::from_secs(1);

const AFTER_SEQUENCE: &str = "quilt-after-sequence";
const AFTER_CREATED_AT: &str = "quilt-after-created-at";

/// What a client says of where it wants to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Sequence(i64),
    CreatedAt(i64),
    Unnamed,
}

impl Position {
    fn of(metadata: &MetadataMap) -> Result<Self, CallError> {
        let number = |key: &'static str| {
            let Some(value) = metadata.get(key) else {
                return Ok(None);
            };
            let number = value.to_str().ok().and_then(|text| text.parse().ok());
            match number.filter(|number: &i64| *number >= 0) {
                Some(number) => Ok(Some(number)),
                None => Err(CallError::invalid(key, "is not a number from 0 on")),
            }
        };
        Ok(match (number(AFTER_SEQUENCE)?, number(AFTER_CREATED_AT)?) {
            (Some(sequence), _) => Self::Sequence(sequence),
            (None, Some(at)) => Self::CreatedAt(at),
            (None, None) => Self::Unnamed,
        })
    }
}

/// Answers with the stream, and with its beginning in the metadata.
pub(super) async fn get(
    front: &Front,
    request: Request<v1::GetEventsRequest>,
) -> Result<Response<BoxStream<v1::ContainerEventResponse>>, Status> {
    let position = Position::of(request.metadata());
    let begin = |front: Front, _, _| async move { Reader::begin(front, position?).await };
    let reader = front.call("GetContainerEvents", request, begin).await?;
    let reader = reader.into_inner();
    let after = reader.after;
    let events = stream::try_unfold(reader, Reader::next);
    let mut response: Response<BoxStream<_>> = Response::new(Box::pin(events));
    let metadata = response.metadata_mut();
    metadata.insert(AFTER_SEQUENCE, after.into());
    Ok(response)
}

/// Writes down how far streams without a position have come, until the daemon ends.
pub async fn keep_given(front: Front) {
    let mut stopped = front.stopped.clone();
    loop {
        if let Err(error) = front.desired.keep_given(&front.store).await {
            tracing::warn!(%error, "cannot remember which events were given; tried again");
        }
        if *stopped.borrow() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(KEEP_PERIOD) => {}
            _ = stopped.changed() => {}
        }
    }
}

/// One client's place in the history.
struct Reader {
    front: Front,
    /// The last event that was passed.
    after: i64,
    named: bool,
    page: VecDeque<Announcement>,
    /// Given back when the client is gone.
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    async fn begin(front: Front, position: Position) -> Result<Self, CallError> {
        let permit = front.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| {
            CallError::TooMany(format!("{STREAMS} event streams are open; close one"))
        })?;
        let after = match position {
            Position::Sequence(sequence) => {
                let newest = front.store.kept_events().await?.newest;
                if sequence > newest {
                    return Err(CallError::Position {
                        key: AFTER_SEQUENCE,
                        asked: sequence,
                        newest,
                    });
                }
                sequence
            }
            Position::CreatedAt(at) => front.store.sequence_at(at).await?,
            Position::Unnamed => front.store.begin_given().await?,
        };
        tracing::info!(after, ?position, "an event stream begins");
        Ok(Self {
            front,
            after,
            named: position != Position::Unnamed,
            page: VecDeque::new(),
            _permit: permit,
        })
    }

    /// Waits for the next event and describes it.
    async fn next(mut self) -> Result<Option<(v1::ContainerEventResponse, Self)>, Status> {
        let event = loop {
            match self.page.pop_front() {
                Some(event) => break event,
                None => self.fill().await?,
            }
        };
        let message = describe(&self.front, &event).await?;
        self.after = event.sequence;
        if !self.named {
            self.front.store.given().advance(event.sequence);
        }
        Ok(Some((message, self)))
    }

    /// Reads the next page, waiting until there is one.
    async fn fill(&mut self) -> Result<(), CallError> {
        let mut stopped = self.front.stopped.clone();
        loop {
            // Armed before the table is read: what is committed after the read wakes it.
            let woken = self.front.store.wakes().next_event();
            let page = self.front.store.announcements(self.after, PAGE).await?;
            self.skip_pruned(page.first().map(|event| event.sequence))
                .await?;
            if !page.is_empty() {
                self.page = page.into();
                return Ok(());
            }
            tokio::select! {
                () = woken => {}
                // An error means that the sender is gone, which is an end as well.
                _ = stopped.wait_for(|stop| *stop) => return Err(CallError::Ending),
            }
        }
    }

    /// Says so when events between this reader's place and the next one have been pruned.
    async fn skip_pruned(&mut self, next: Option<i64>) -> Result<(), CallError> {
        if next == Some(self.after + 1) {
            return Ok(());
        }
        let oldest = self.front.store.kept_events().await?.oldest;
        if oldest > self.after + 1 {
            tracing::warn!(
                after = self.after,
                oldest,
                "an event stream goes on at the oldest event that is kept; those before are pruned"
            );
            self.after = oldest - 1;
        }
        Ok(())
    }
}

/// The message for an event: the pod, and its containers that clients can see.
async fn describe(
    front: &Front,
    event: &Announcement,
) -> Result<v1::ContainerEventResponse, CallError> {
    let of_sandbox = event.detail.container.is_none();
    let pod = front.store.sandbox(&event.sandbox_id).await?;
    let pod =
        pod.filter(|pod| !matches!(pod.state, SandboxState::Preparing | SandboxState::Failed));
    let pod = pod.map_or_else(|| gone_pod(event), sandbox::view::status);
    let mut containers = statuses(front, &event.sandbox_id).await?;
    let known = containers.iter().any(|status| status.id == event.object_id);
    if let Some(detail) = &event.detail.container
        && !known
        && event.announced != Announced::Deleted
    {
        containers.push(gone_container(event, detail));
    }
    if of_sandbox && event.announced == Announced::Deleted {
        containers.clear();
    }
    let kind = match event.announced {
        Announced::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Announced::Started => v1::ContainerEventType::ContainerStartedEvent,
        Announced::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Announced::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    Ok(v1::ContainerEventResponse {
        container_id: event.object_id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(pod),
        containers_statuses: containers,
    })
}

/// The statuses of a pod's containers that clients can see, oldest first.
pub(super) async fn statuses(
    front: &Front,
    pod: &crate::id::SandboxId,
) -> Result<Vec<v1::ContainerStatus>, CallError> {
    let mut containers = front.store.sandbox_containers(pod).await?;
    containers.retain(|known| !matches!(known.state, State::Preparing | State::Error));
    containers.sort_by_key(|known| known.created_at);
    Ok(containers
        .into_iter()
        .map(|known| {
            let log_path = known.log_path.clone();
            container::view::status(known, log_path)
        })
        .collect())
}

fn gone_pod(event: &Announcement) -> v1::PodSandboxStatus {
    let detail = &event.detail;
    v1::PodSandboxStatus {
        id: event.sandbox_id.to_string(),
        metadata: Some(v1::PodSandboxMetadata {
            name: detail.name.clone(),
            uid: detail.uid.clone(),
            namespace: detail.namespace.clone(),
            attempt: detail.attempt,
        }),
        state: v1::PodSandboxState::SandboxNotready.into(),
        created_at: detail.created_at,
        ..Default::default()
    }
}

fn gone_container(event: &Announcement, detail: &ContainerDetail) -> v1::ContainerStatus {
    let state = match event.announced {
        Announced::Created => v1::ContainerState::ContainerCreated,
        Announced::Started => v1::ContainerState::ContainerRunning,
        Announced::Stopped | Announced::Deleted => v1::ContainerState::ContainerExited,
    };
    v1::ContainerStatus {
        id: event.object_id.clone(),
        metadata: Some(v1::ContainerMetadata {
            name: detail.name.clone(),
            attempt: detail.attempt,
        }),
        state: state.into(),
        created_at: detail.created_at,
        started_at: detail.started_at.unwrap_or_default(),
        finished_at: detail.exited_at.unwrap_or_default(),
        exit_code: detail.exit_code.unwrap_or_default(),
        image: Some(v1::ImageSpec {
            image: detail.image.clone(),
            ..Default::default()
        }),
        image_ref: detail.image_id.clone(),
        image_id: detail.image_id.clone(),
        reason: detail.reason.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_a_number_and_the_sequence_comes_first() {
        let mut metadata = MetadataMap::new();
        let position = |metadata: &MetadataMap| Position::of(metadata).ok();
        assert_eq!(position(&metadata), Some(Position::Unnamed));
        metadata.insert(AFTER_CREATED_AT, 5.into());
        assert_eq!(position(&metadata), Some(Position::CreatedAt(5)));
        metadata.insert(AFTER_SEQUENCE, 7.into());
        assert_eq!(position(&metadata), Some(Position::Sequence(7)));
        for bad in ["", "x", "-1", "1.5", "99999999999999999999"] {
            metadata.insert(AFTER_SEQUENCE, bad.parse().expect("a header value"));
            assert_eq!(position(&metadata), None, "{bad:?}");
        }
    }
}
