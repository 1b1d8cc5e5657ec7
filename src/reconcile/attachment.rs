//! One look at a pod's attachment to a network that plugins make (`lifecycle::attachment` draws its
//! states). Plugins may take long and fail in any way; they hold up nothing but this.
//!
//! ```text
//!  row says adding ─► ADD ─► row has the result        row says leaving ─► DEL ─► row goes
//!        │ a daemon died in between: DEL first               │ failed: again, later and later
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use super::plugin_network::count;
use super::pod_network::Given;
use super::pod_request::Parameters;
use super::{Back, ReconcileError, blocking, pod_network, sandbox, sandbox_files};
use crate::fault;
use crate::id::{ObjectKey, SandboxId};
use crate::lifecycle::address::Requested;
use crate::lifecycle::attachment::{State, Step, next_step};
use crate::lifecycle::record::AttachmentRecord;
use crate::lifecycle::sandbox::{Desired, State as SandboxState, effective};
use crate::network;
use crate::network::cni::{self, Call, CniError, NetworkList};
use crate::state::attachment::{Added, Attachment};
use crate::state::job::Outcome;
use crate::state::sandbox::Sandbox;

/// Looked at again after this long, at first and at last, while plugins collect what is stale.
const WAIT_NS: i64 = 20_000_000;
const WAIT_MAX_NS: i64 = 1_000_000_000;

/// Brings one attachment to rest.
pub(super) async fn reconcile(back: &Back, id: &SandboxId) -> Result<Outcome, ReconcileError> {
    let key = ObjectKey::Attachment(id.clone());
    loop {
        let Some(attachment) = back.store.attachment(id).await? else {
            break;
        };
        let sandbox = back.store.sandbox(id).await?;
        let step = next_step(attachment.state, sandbox.as_ref().is_some_and(is_up));
        if step == Step::Rest {
            if attachment.state == State::Added && attachment.check_due {
                check(back, &attachment).await?;
            }
            break;
        }
        let Some(_inside) = back.plugins.enter() else {
            let stage = "plugins collect what is stale";
            let pause = back
                .store
                .progress()
                .wait(&key, stage, WAIT_NS, WAIT_MAX_NS);
            return Ok(Outcome::Again(pause));
        };
        match (step, sandbox) {
            (Step::Add, Some(sandbox)) => {
                // Its namespace is made by a look at the sandbox, which asks for this one then.
                if netns(back, id).is_none() {
                    break;
                }
                // The network went before any plugin was called: another pod gets what there is.
                if back.plugins.is_native() {
                    let key = ObjectKey::Sandbox(id.clone());
                    back.observed.enqueue(vec![key]).await?;
                    break;
                }
                add(back, &sandbox).await?;
            }
            (Step::Undo, _) => undo(back, &attachment).await?,
            (Step::Delete, _) => delete(back, &attachment).await?,
            (Step::Rest | Step::Add, _) => break,
        }
    }
    back.store.progress().rests(&key);
    Ok(Outcome::Done)
}

fn is_up(sandbox: &Sandbox) -> bool {
    effective(sandbox.desired, sandbox.init_ended) == Desired::Ready
        && matches!(sandbox.state, SandboxState::Preparing | SandboxState::Ready)
}

/// The pod's network namespace, while it is there.
fn netns(back: &Back, id: &SandboxId) -> Option<PathBuf> {
    let path = pod_network::netns(back, id);
    network::is_pinned(&path).then_some(path)
}

/// A call of all plugins of a network, with what it was about.
struct Work {
    list: NetworkList,
    parameters: Parameters,
    result: Option<Value>,
    netns: Option<PathBuf>,
}

impl Work {
    /// What the row says of ADD.
    fn of(back: &Back, attachment: &Attachment) -> Result<Self, ReconcileError> {
        let unreadable = |what: &str, why: String| {
            ReconcileError::Plan(format!("the {what} of an attachment cannot be read: {why}"))
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let config = text(&attachment.config);
        let parameters = text(&attachment.parameters);
        let result = attachment.result.as_deref().map(serde_json::from_str);
        Ok(Self {
            list: NetworkList::from_text(&config)
                .map_err(|why| unreadable("configuration", why))?,
            parameters: serde_json::from_str(&parameters)
                .map_err(|error| unreadable("parameters", error.to_string()))?,
            result: result
                .transpose()
                .map_err(|error| unreadable("result", error.to_string()))?,
            netns: netns(back, &attachment.sandbox_id),
        })
    }

    fn attachment<'a>(&'a self, id: &'a SandboxId) -> cni::Attachment<'a> {
        cni::Attachment {
            container_id: id.as_str(),
            netns: self.netns.as_deref(),
            arguments: &self.parameters.arguments,
            capabilities: &self.parameters.capabilities,
        }
    }

    async fn delete(&self, back: &Back, id: &SandboxId) -> (Vec<Call>, Result<(), CniError>) {
        let mut calls = Vec::new();
        let plugins = back.plugins.plugins();
        let result = self.result.as_ref();
        let attachment = self.attachment(id);
        let outcome = plugins
            .delete(&self.list, &attachment, result, &mut calls)
            .await;
        count(back, &calls);
        (calls, outcome)
    }
}

async fn add(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    let id = &sandbox.id;
    let list = back.plugins.network().map_err(ReconcileError::NoNetwork)?;
    let parameters = match Parameters::of(back, sandbox).await {
        Ok(parameters) => match parameters.check(&list) {
            Ok(()) => parameters,
            Err(error) => return fail(back, sandbox, list, error).await,
        },
        Err(ReconcileError::Plugin(error)) => return fail(back, sandbox, list, error).await,
        Err(error) => return Err(error),
    };
    begin(back, id, &list, &parameters).await?;
    let work = Work {
        netns: netns(back, id),
        result: None,
        list,
        parameters,
    };
    let (mut calls, begun) = (Vec::new(), Instant::now());
    let plugins = back.plugins.plugins();
    let outcome = plugins
        .add(&work.list, &work.attachment(id), &mut calls)
        .await;
    count(back, &calls);
    fault::point("attachment.called").await?;
    let result = match outcome.and_then(|result| looked_through(sandbox, &work.list, result)) {
        Ok(result) => result,
        Err(error) => {
            let again = error.is_passing();
            let error = ReconcileError::Plugin(error);
            let text = told(&error.full_text(), &calls);
            tracing::warn!(sandbox = %id, error = text, "plugins did not connect a pod");
            back.observed
                .attachment_failed(id.clone(), text, again)
                .await?;
            fault::point("attachment.failed").await?;
            return if again { Err(error) } else { Ok(()) };
        }
    };
    let (result, addresses) = result;
    set_sysctls(back, sandbox).await?;
    let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let message = format!(
        "network {}: {}: {}",
        work.list.name,
        names.join(", "),
        timed(&calls)
    );
    let answer = Some((&result, addresses.as_slice()));
    note(back, id, (&work.list, &work.parameters), answer).await;
    if sandbox.state == SandboxState::Ready {
        // It was up before, under another address.
        let (back_too, sandbox_too) = (back.clone(), sandbox.clone());
        let given = Given::by_plugins(addresses.clone(), Some(&result.to_string()));
        blocking(move || sandbox_files::write(&back_too, &sandbox_too, &given)).await?;
    }
    let added = Added {
        result: result.to_string(),
        addresses,
        took_ns: i64::try_from(begun.elapsed().as_nanos()).unwrap_or(i64::MAX),
        message,
    };
    back.observed.attachment_added(id.clone(), added).await?;
    Ok(fault::point("attachment.added").await?)
}

/// Everything that DEL would need is on record before ADD is called.
async fn begin(
    back: &Back,
    id: &SandboxId,
    list: &NetworkList,
    parameters: &Parameters,
) -> Result<(), ReconcileError> {
    let (name, config) = (list.name.clone(), list.to_text());
    back.observed
        .attachment_adding(id.clone(), name, config, parameters.to_text())
        .await?;
    fault::point("attachment.adding").await?;
    note(back, id, (list, parameters), None).await;
    Ok(())
}

/// What cannot be told to plugins fails before any is called.
async fn fail(
    back: &Back,
    sandbox: &Sandbox,
    list: NetworkList,
    error: CniError,
) -> Result<(), ReconcileError> {
    let id = &sandbox.id;
    begin(back, id, &list, &Parameters::default()).await?;
    let text = ReconcileError::Plugin(error).full_text();
    Ok(back
        .observed
        .attachment_failed(id.clone(), text, false)
        .await?)
}

/// The result with the pod's addresses, of which there must be one, and those that it asked for.
fn looked_through(
    sandbox: &Sandbox,
    list: &NetworkList,
    result: Value,
) -> Result<(Value, Vec<IpAddr>), CniError> {
    let last = list.plugin_names().last().unwrap_or_default().to_owned();
    let bad = |why: String| CniError::BadAnswer {
        plugin: last,
        verb: cni::Verb::Add,
        why,
    };
    match usable(sandbox, &result) {
        Ok(addresses) => Ok((result, addresses)),
        Err(why) => Err(bad(why)),
    }
}

/// The addresses of a result that a pod can do with; the error says in words why it cannot.
fn usable(sandbox: &Sandbox, result: &Value) -> Result<Vec<IpAddr>, String> {
    let addresses = cni::addresses(result)?;
    if addresses.is_empty() {
        let name = cni::INTERFACE;
        return Err(format!(
            "its result has no address of the pod's interface {name}"
        ));
    }
    let asked = Requested::of(&sandbox.spec.annotations).unwrap_or_default();
    if let Some(missing) = asked.addresses().find(|ip| !addresses.contains(ip)) {
        return Err(format!(
            "its result has not the address that was asked for, {missing}"
        ));
    }
    // What the pod has of its own is taken in any case.
    if sandbox.spec.dns.is_none()
        && let Some(dns) = cni::dns(result)?
    {
        let rendered = network::render_resolv_conf(&dns.servers, &dns.searches, &dns.options);
        rendered.map_err(|error| error.to_string())?;
    }
    Ok(addresses)
}

/// Sysctls of the pod's interface, which is there only now.
async fn set_sysctls(back: &Back, sandbox: &Sandbox) -> Result<(), ReconcileError> {
    let netns = pod_network::netns(back, &sandbox.id);
    let sysctls: Vec<_> = sandbox.spec.sysctls.clone().into_iter().collect();
    if sysctls.is_empty() {
        return Ok(());
    }
    blocking(move || {
        Ok(network::set_interface_sysctls(
            &netns,
            cni::INTERFACE,
            &sysctls,
        )?)
    })
    .await
}

/// The result of ADD with its addresses.
type Answer<'a> = (&'a Value, &'a [IpAddr]);

/// Keeps what DEL needs in the sandbox' record as well.
async fn note(
    back: &Back,
    id: &SandboxId,
    (list, parameters): (&NetworkList, &Parameters),
    answer: Option<Answer<'_>>,
) {
    let record = AttachmentRecord {
        network: list.name.clone(),
        config: list.to_text(),
        parameters: parameters.to_text(),
        result: answer.map(|(result, _)| result.to_string()),
        addresses: answer
            .map(|(_, addresses)| addresses.to_vec())
            .unwrap_or_default(),
    };
    sandbox::note(back, id, |sandbox| sandbox.attachment = Some(record)).await;
}

/// DEL for what a daemon left half done, or what is in a namespace that is gone.
async fn undo(back: &Back, attachment: &Attachment) -> Result<(), ReconcileError> {
    let id = &attachment.sandbox_id;
    let work = Work::of(back, attachment)?;
    let (calls, outcome) = work.delete(back, id).await;
    outcome.map_err(ReconcileError::Plugin)?;
    fault::point("attachment.undone").await?;
    let message = format!("network {}: {}", work.list.name, timed(&calls));
    Ok(back.observed.attachment_undone(id.clone(), message).await?)
}

async fn delete(back: &Back, attachment: &Attachment) -> Result<(), ReconcileError> {
    let id = &attachment.sandbox_id;
    fault::point("attachment.leaving").await?;
    let work = Work::of(back, attachment)?;
    let (calls, outcome) = work.delete(back, id).await;
    fault::point("attachment.detached").await?;
    if let Err(error) = outcome {
        let error = ReconcileError::Plugin(error);
        let text = told(&error.full_text(), &calls);
        back.observed.attachment_stays(id.clone(), text).await?;
        return Err(error);
    }
    let message = format!("network {}: {}", work.list.name, timed(&calls));
    back.observed
        .attachment_deleted(id.clone(), message)
        .await?;
    Ok(fault::point("attachment.deleted").await?)
}

/// CHECK; what it finds is written down, and mended by nobody: a runtime can only connect a pod
/// anew, which would give it other addresses.
async fn check(back: &Back, attachment: &Attachment) -> Result<(), ReconcileError> {
    let id = &attachment.sandbox_id;
    let work = Work::of(back, attachment)?;
    let mut calls = Vec::new();
    let checked = match (&work.netns, &work.result) {
        (Some(_), Some(result)) => {
            let plugins = back.plugins.plugins();
            plugins
                .check(&work.list, &work.attachment(id), result, &mut calls)
                .await
        }
        // A look at the pod finds that, and mends it.
        _ => Ok(()),
    };
    count(back, &calls);
    let problem = checked.err().map(|error| {
        let text = told(&ReconcileError::Plugin(error).full_text(), &calls);
        tracing::warn!(sandbox = %id, problem = text, "a pod is not connected as it was");
        text
    });
    Ok(back
        .observed
        .attachment_checked(id.clone(), problem)
        .await?)
}

/// Each call and its time.
fn timed(calls: &[Call]) -> String {
    let calls = calls.iter().map(|call| {
        let ms = call.took.as_secs_f64() * 1e3;
        format!("{} {ms:.0} ms", call.plugin)
    });
    let calls = calls.collect::<Vec<_>>().join(", ");
    if calls.is_empty() {
        "no plugin was called".into()
    } else {
        calls
    }
}

/// An error with what the plugin had to say beside it.
fn told(error: &str, calls: &[Call]) -> String {
    match calls.last() {
        Some(call) if !call.said.is_empty() && !error.contains(&call.said) => {
            format!("{error} (it said: {})", call.said)
        }
        _ => error.to_owned(),
    }
}
