//! `quiltd explain`

use std::time::{Duration, UNIX_EPOCH};

use super::{StateDir, link};
use crate::proto::admin::{ListEventsRequest, ListOperationsRequest};

#[derive(clap::Args)]
pub(super) struct Explain {
    /// Full id of a pod, container or image; without it, the newest of everything.
    #[arg(default_value = "")]
    id: String,
    #[command(flatten)]
    daemon: StateDir,
}

pub(super) async fn run(explain: &Explain) -> anyhow::Result<()> {
    let mut client = link::connect(&explain.daemon.state).await?;
    let object_id = explain.id.clone();
    let request = ListOperationsRequest {
        object_id: object_id.clone(),
        limit: 0,
    };
    let mut operations = link::answer(client.list_operations(request).await)?.operations;
    operations.reverse();
    for operation in &operations {
        println!("{}  {:.2} ms", operation.kind, ms(operation.duration_ns));
        for stage in &operation.stages {
            println!("    {:<14} {:>8.2} ms", stage.name, ms(stage.duration_ns));
        }
        if !operation.error.is_empty() {
            println!("    failed: {}", operation.error);
        }
    }
    let request = ListEventsRequest {
        object_id,
        after_sequence: 0,
        limit: 0,
    };
    for event in link::answer(client.list_events(request).await)?.events {
        let at = UNIX_EPOCH + Duration::from_nanos(u64::try_from(event.at_ns).unwrap_or(0));
        let ago = at.elapsed().unwrap_or_default();
        println!(
            "{:>9.1} s ago  {} {}",
            ago.as_secs_f64(),
            event.kind,
            event.message
        );
    }
    Ok(())
}

/// Milliseconds for people.
fn ms(ns: i64) -> f64 {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0)).as_secs_f64() * 1000.0
}
