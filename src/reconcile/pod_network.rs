//! How a pod is connected: by a link of ours (its row is in `network_allocations`), or by plugins
//! (its row is in `network_attachments`). The row was written with the sandbox, and says for good
//! which of the two it is: what comes later, and another configuration, change nothing about it.

use std::net::IpAddr;
use std::path::PathBuf;

use super::{Back, ReconcileError};
use crate::fault;
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::attachment::State;
use crate::network::cni;
use crate::state::attachment::Attachment;
use crate::state::sandbox::Sandbox;

/// Where a pod's network namespace is pinned.
pub(super) fn netns(back: &Back, id: &SandboxId) -> PathBuf {
    back.paths.sandbox(id).join("ns/net")
}

/// The pod's attachment, if plugins connect it. On a node without plugins nothing is read.
pub(super) async fn attachment(
    back: &Back,
    id: &SandboxId,
) -> Result<Option<Attachment>, ReconcileError> {
    if !back.plugins.may_attach() {
        return Ok(None);
    }
    Ok(back.store.attachment(id).await?)
}

/// How far plugins have come with a pod that is set up.
pub(super) enum Connected {
    /// They have connected it.
    Yes(Attachment),
    /// They are asked to; the look comes again.
    NotYet,
}

/// Has plugins connect the pod. Its namespace is there.
pub(super) async fn connect(
    back: &Back,
    attachment: Attachment,
) -> Result<Connected, ReconcileError> {
    match attachment.state {
        State::Added => Ok(Connected::Yes(attachment)),
        State::Failed => Err(ReconcileError::NotAttached(
            attachment.error.unwrap_or_default(),
        )),
        State::Wanted if back.plugins.is_native() => Err(ReconcileError::NotAttached(
            "the network of plugins that the pod was to be connected to is gone".into(),
        )),
        State::Wanted | State::Adding | State::Leaving => {
            let key = ObjectKey::Attachment(attachment.sandbox_id);
            back.observed.enqueue(vec![key]).await?;
            Ok(Connected::NotYet)
        }
    }
}

/// Has plugins disconnect a pod that goes, as long as its namespace is there. `false` says that
/// they are at it. Once they have tried in vain the pod goes on without them; they are called until
/// they succeed.
pub(super) async fn disconnect(back: &Back, sandbox: &Sandbox) -> Result<bool, ReconcileError> {
    let Some(attachment) = attachment(back, &sandbox.id).await? else {
        return Ok(true);
    };
    match attachment.state {
        State::Wanted => Ok(true),
        State::Leaving => Ok(attachment.deletes > 0),
        State::Adding | State::Added | State::Failed => {
            back.observed.attachment_leaves(sandbox.id.clone()).await?;
            fault::point("attachment.released").await?;
            Ok(false)
        }
    }
}

/// What its network has given a pod, for the files by which it finds names.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    pub(super) addresses: Vec<IpAddr>,
    /// Name servers, where plugins name some.
    pub(super) dns: Option<cni::Dns>,
}

impl Given {
    /// What plugins have answered, which was looked through when they did.
    pub(super) fn by_plugins(addresses: Vec<IpAddr>, result: Option<&str>) -> Self {
        let result = result.and_then(|text| serde_json::from_str(text).ok());
        let dns = result.and_then(|result| cni::dns(&result).ok());
        let dns = dns.flatten();
        Self { addresses, dns }
    }

    /// What an address of ours comes with.
    pub(super) fn by_us(addresses: Vec<IpAddr>) -> Self {
        let dns = None;
        Self { addresses, dns }
    }
}

impl From<Attachment> for Given {
    fn from(attachment: Attachment) -> Self {
        Self::by_plugins(attachment.addresses, attachment.result.as_deref())
    }
}

/// What a pod has been given, however it got it.
pub(super) async fn given(back: &Back, id: &SandboxId) -> Result<Given, ReconcileError> {
    if let Some(allocation) = back.store.allocation(id).await? {
        return Ok(Given::by_us(super::sandbox::addresses(&allocation)));
    }
    let attachment = attachment(back, id).await?;
    Ok(attachment.map(Given::from).unwrap_or_default())
}

/// Whether there is anything for the node's own pod network: new pods get its addresses, or there
/// are pods that have some.
pub(super) async fn is_native(back: &Back) -> Result<bool, ReconcileError> {
    if back.plugins.is_native() {
        return Ok(true);
    }
    Ok(!back.store.allocations().await?.is_empty())
}
