//! The container whose log is wanted: where that is, and whether more may come.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::cli::find::{self, Object};
use crate::cli::output::{LISTING, Record};
use crate::cli::place::Place;
use crate::cli::table::harmless;
use crate::reconcile::is_alive;
use crate::state::inspect::{Inspector, Value};

/// How long after its end a process may have something in its log that is not recorded as ended.
const RECORDED_WITHIN: Duration = Duration::from_secs(3);

/// A container, seen from outside the daemon.
pub(super) struct Container {
    inspector: Inspector,
    id: String,
    /// Where its log is.
    pub(super) log: PathBuf,
    /// Since when its process is gone and nobody has said so.
    gone_since: Option<Instant>,
}

impl Container {
    /// The container that is called so, or the only one of a pod that is.
    pub(super) async fn find(place: &Place, name: &str) -> anyhow::Result<Self> {
        let mut inspector = place.open().await?;
        let found = find::find(&mut inspector, name).await?;
        let id = match found.as_slice() {
            [object] if object.kind == "container" => object.id.clone(),
            [object] if object.kind == "sandbox" => only_one(&mut inspector, object).await?,
            [] | [_] => bail!("no container is called {name:?}"),
            several => {
                let list: Vec<_> = several.iter().map(Object::to_string).collect();
                bail!("{name:?} may be one of several:\n  {}", list.join("\n  "))
            }
        };
        let sql = "SELECT log_path FROM v_containers WHERE id = ?1";
        let Some(row) = row(&mut inspector, sql, &id).await? else {
            bail!(
                "container {id} is gone, and where its log was with it: kubelet keeps logs of pods \
                 below /var/log/pods"
            );
        };
        let log = row.text("log_path");
        if log.is_empty() {
            bail!("container {id} has no log: its client named no file, so its output is not kept");
        }
        Ok(Self {
            log: log.into(),
            inspector,
            id,
            gone_since: None,
        })
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether nothing comes any more.
    pub(super) async fn has_ended(&mut self) -> anyhow::Result<bool> {
        let sql = "SELECT state, pid, pid_start FROM containers WHERE id = ?1";
        let Some(row) = row(&mut self.inspector, sql, &self.id).await? else {
            return Ok(true);
        };
        let process = (row.integer("pid"), row.integer("pid_start"));
        match (row.text("state"), process) {
            ("preparing" | "created" | "starting", _) => Ok(false),
            ("running", (Some(pid), Some(start))) => {
                // Without a daemon nobody records its end.
                let pid = i32::try_from(pid).unwrap_or(0);
                if is_alive(pid, u64::try_from(start).unwrap_or(0)) {
                    self.gone_since = None;
                    return Ok(false);
                }
                let since = *self.gone_since.get_or_insert_with(Instant::now);
                Ok(since.elapsed() >= RECORDED_WITHIN)
            }
            ("running", _) => Ok(false),
            _ => Ok(true),
        }
    }
}

async fn only_one(inspector: &mut Inspector, pod: &Object) -> anyhow::Result<String> {
    let sql = "SELECT id, name FROM v_containers WHERE sandbox_id = ?1 ORDER BY created_at, id";
    let parameters = [Value::Text(pod.id.clone())];
    let (rows, _) = inspector.rows(sql, &parameters, LISTING).await?;
    let containers = Record::all(rows);
    match containers.as_slice() {
        [] => bail!("{pod} has no containers"),
        [one] => Ok(one.text("id").to_owned()),
        several => {
            let list = several
                .iter()
                .map(|one| format!("{} {}", one.text("id"), harmless(one.text("name"))));
            let list: Vec<_> = list.collect();
            bail!("{pod} has several containers:\n  {}", list.join("\n  "))
        }
    }
}

async fn row(inspector: &mut Inspector, sql: &str, id: &str) -> anyhow::Result<Option<Record>> {
    let parameters = [Value::Text(id.to_owned())];
    let (rows, _) = inspector.rows(sql, &parameters, LISTING).await?;
    Ok(Record::all(rows).into_iter().next())
}
