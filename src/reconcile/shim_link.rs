//! Keeps a shim connected: starts one when there is none, hands over what it has to know, passes
//! its news on, and begins again when it is gone.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::log_loss::{self, Losses};
use super::{Back, ReconcileError, monitor, recovery};
use crate::fault;
use crate::shim::client::{ShimClient, ShimClientError, ShimEvent};
use crate::shim::protocol::ExitRecord;
use crate::state::StateError;
use crate::state::health::Report;

/// First pause after a failed start, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Longest pause before an exit that could not be recorded is tried again.
const EXIT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where the connected shim and what is wrong with the node are made known.
pub struct Link {
    /// The executable that has the role `shim`: this one.
    pub executable: PathBuf,
    /// The connected shim, for everybody.
    pub shim: watch::Sender<Option<ShimClient>>,
    /// What is wrong, for Status.
    pub health: watch::Sender<Report>,
}

/// Runs until `stop` turns true. Containers live on without us.
pub async fn run(back: Back, link: Link, mut stop: watch::Receiver<bool>) {
    let mut pause = PAUSE;
    loop {
        let result = tokio::select! {
            _ = stop.changed() => return,
            result = connect(&back, &link) => result,
        };
        match result {
            Ok((client, events)) => {
                pause = PAUSE;
                link.health
                    .send_modify(|report| report.runtime_problem = None);
                tokio::select! {
                    _ = stop.changed() => return,
                    () = listen(&back, &client, events) => {}
                }
                tracing::error!("the shim is gone; starting another");
                link.shim.send_replace(None);
                back.store.metrics().shim_connected.set(0);
                let problem = Some("the shim is gone; another is being started".to_owned());
                link.health
                    .send_modify(|report| report.runtime_problem = problem);
            }
            Err(error) => {
                let text = format!("the shim cannot be started: {}", error.full_text());
                tracing::error!(error = text, "no shim");
                link.health
                    .send_modify(|report| report.runtime_problem = Some(text));
                tokio::select! {
                    _ = stop.changed() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

async fn connect(
    back: &Back,
    link: &Link,
) -> Result<(ShimClient, mpsc::Receiver<ShimEvent>), ReconcileError> {
    let (client, mut events) =
        ShimClient::connect_or_start(&back.paths.state, &link.executable).await?;
    fault::point("shim.connected").await?;
    let unseen = recovery::hand_over(back, &client).await?;
    fault::point("shim.handed_over").await?;
    hear_journal(back, &client, &mut events).await?;
    fault::point("shim.journal_heard").await?;
    for id in unseen {
        monitor::lost(back, &id).await?;
        fault::point("shim.exit_lost").await?;
    }
    link.shim.send_replace(Some(client.clone()));
    back.store.metrics().shim_connected.set(1);
    Ok((client, events))
}

/// Records the exits that the shim had written down before we came. It sends them again in front of
/// its answer to anything, some hundred at a time.
async fn hear_journal(
    back: &Back,
    client: &ShimClient,
    events: &mut mpsc::Receiver<ShimEvent>,
) -> Result<(), ReconcileError> {
    loop {
        client.ping().await?;
        let mut heard = false;
        while let Ok(event) = events.try_recv() {
            match event {
                ShimEvent::Exited(record) => monitor::exited(back, client, record).await?,
                ShimEvent::LogLoss => log_loss::record(back, client.take_log_losses()).await?,
                ShimEvent::Disconnected => return Err(ShimClientError::Disconnected.into()),
            }
            heard = true;
        }
        if !heard {
            return Ok(());
        }
    }
}

/// Passes exits on until the shim is gone. One that cannot be recorded (a locked database, a full
/// disk) is not acknowledged and tried again, before those that come after it: the order holds. The
/// shim sends no more than a few hundred unacknowledged ones, so there is an end to them.
async fn listen(back: &Back, client: &ShimClient, mut events: mpsc::Receiver<ShimEvent>) {
    let mut unrecorded = Vec::new();
    let mut losses = Losses::default();
    let mut pause = PAUSE;
    loop {
        if unrecorded.is_empty() && losses.is_empty() {
            pause = PAUSE;
        }
        tokio::select! {
            event = events.recv() => match event {
                Some(ShimEvent::Exited(record)) => unrecorded.push(record),
                Some(ShimEvent::LogLoss) => losses.add(client.take_log_losses()),
                Some(ShimEvent::Disconnected) | None => return,
            },
            () = tokio::time::sleep(pause), if !unrecorded.is_empty() || !losses.is_empty() => {
                pause = (pause * 2).min(EXIT_PAUSE_MAX);
            }
        }
        // Before the exits: a container's log is spoken of as long as it is there.
        losses.record(back).await;
        record_all(back, client, &mut unrecorded).await;
    }
}

/// Records what can be recorded; the rest stays.
async fn record_all(back: &Back, client: &ShimClient, unrecorded: &mut Vec<ExitRecord>) {
    let mut locked = false;
    let mut left = Vec::new();
    for record in unrecorded.drain(..) {
        if locked {
            left.push(record);
            continue;
        }
        if let Err(error) = monitor::exited(back, client, record.clone()).await {
            // What one cannot get past another cannot either.
            locked = matches!(
                error,
                ReconcileError::State(
                    StateError::Begin { .. } | StateError::Busy { .. } | StateError::Storage { .. }
                )
            );
            let (id, error) = (record.id.to_string(), error.full_text());
            tracing::error!(id, error, "cannot record an exit; it is tried again");
            left.push(record);
        }
    }
    *unrecorded = left;
}
