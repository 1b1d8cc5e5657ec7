//! A subscriber of the daemon's events that remembers what it was told.

use std::time::Duration;

use k8s_cri::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest};
use tonic::{Request, Status, Streaming};

use super::Cri;
use super::wait::BOUND;

/// One open stream.
pub(crate) struct Reader {
    stream: Streaming<ContainerEventResponse>,
    /// Where the daemon says that it begins.
    pub(crate) after: i64,
}

/// Opens a stream; `position` is a key of the request's metadata with its value.
pub(crate) async fn subscribe(
    cri: &Cri,
    position: Option<(&'static str, i64)>,
) -> Result<Reader, Status> {
    let mut request = Request::new(GetEventsRequest {});
    if let Some((key, value)) = position {
        request.metadata_mut().insert(key, value.into());
    }
    let response = cri.runtime().get_container_events(request).await?;
    let after = response.metadata().get("quilt-after-sequence");
    let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(Reader {
        after: after.expect("the answer says where the stream begins"),
        stream: response.into_inner(),
    })
}

impl Reader {
    /// The next message, or the error that ends the stream.
    pub(crate) async fn try_next(&mut self) -> Result<ContainerEventResponse, Status> {
        let next = tokio::time::timeout(BOUND, self.stream.message()).await;
        let next = next.unwrap_or_else(|_| panic!("no event within {BOUND:?}"))?;
        Ok(next.expect("a stream ends with an error, never silently"))
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> ContainerEventResponse {
        self.try_next().await.expect("an event")
    }

    /// Reads until `enough` says so of a message, which is the last one returned.
    pub(crate) async fn until(
        &mut self,
        mut enough: impl FnMut(&ContainerEventResponse) -> bool,
    ) -> Vec<ContainerEventResponse> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            let last = enough(&event);
            events.push(event);
            if last {
                return events;
            }
        }
    }

    /// Whether nothing comes for a while. Only for saying that nothing more was expected: a test
    /// that passes because of it has seen what it waited for before.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let moment = Duration::from_millis(200);
        tokio::time::timeout(moment, self.stream.message())
            .await
            .is_err()
    }
}

/// A message is about this object's deletion.
pub(crate) fn deletes<'a>(id: &'a str) -> impl FnMut(&ContainerEventResponse) -> bool + 'a {
    move |event| {
        event.container_id == id && kind(event) == ContainerEventType::ContainerDeletedEvent
    }
}

/// What a message is about.
pub(crate) fn kind(event: &ContainerEventResponse) -> ContainerEventType {
    event.container_event_type()
}

/// The pod uid that kubelet would take from a message.
pub(crate) fn uid(event: &ContainerEventResponse) -> &str {
    let status = event.pod_sandbox_status.as_ref();
    let metadata = status.and_then(|status| status.metadata.as_ref());
    &metadata.expect("kubelet passes over what names no pod").uid
}
