//! Watching what the daemon fetches, by the rows it writes about once a second (`v_pull_layers`).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use super::progress::{Layer, Progress};
use crate::cli::output::{LISTING, Record};
use crate::cli::place::Place;
use crate::state::inspect::{Inspector, Value};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

const SQL: &str = "SELECT position, digest, state, size_bytes, received_bytes FROM v_pull_layers
     WHERE reference = ?1 ORDER BY position";

/// Shows the layers of `reference` until `work` is done. A database that cannot be read hinders
/// nothing: the work is the daemon's.
pub(super) async fn watch<T>(place: &Place, reference: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut seen = Seen::new(reference);
    let mut inspector = None;
    loop {
        tokio::select! {
            done = &mut work => {
                if let Some(inspector) = &mut inspector {
                    seen.look(inspector).await;
                }
                return done;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        if inspector.is_none() {
            inspector = place.open().await.ok();
        }
        if let Some(inspector) = &mut inspector {
            seen.look(inspector).await;
        }
    }
}

struct Seen {
    reference: [Value; 1],
    progress: Progress,
    /// By digest, so that an earlier pull of the same name is not mixed up with this one.
    layers: BTreeMap<String, Option<Layer>>,
}

impl Seen {
    fn new(reference: &str) -> Self {
        Self {
            reference: [Value::Text(reference.to_owned())],
            progress: Progress::new(),
            layers: BTreeMap::new(),
        }
    }

    async fn look(&mut self, inspector: &mut Inspector) {
        let Ok((rows, _)) = inspector.rows(SQL, &self.reference, LISTING).await else {
            return;
        };
        for row in Record::all(rows) {
            let number = |column: &str| {
                let number = row.integer(column).unwrap_or_default();
                u64::try_from(number).unwrap_or_default()
            };
            let digest = row.text("digest");
            let under_way = matches!(row.text("state"), "waiting" | "fetching");
            let layer = self.layers.entry(digest.to_owned()).or_insert_with(|| {
                // What is there from the beginning is not news.
                under_way.then(|| self.progress.layer(digest, number("size_bytes")))
            });
            match layer {
                Some(shown) if under_way => shown.at(number("received_bytes")),
                Some(_) => {
                    if let Some(shown) = layer.take() {
                        shown.done();
                    }
                }
                None => {}
            }
        }
    }
}
