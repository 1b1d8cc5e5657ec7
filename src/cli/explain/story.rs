//! What is known of one object: its row, what was done to it stage by stage, what happened to it,
//! what is still to be done, and how it ended.

use std::io::{self, Write};

use crate::cli::find::Object;
use crate::cli::output::{LISTING, Record, array, object};
use crate::cli::table::{Table, age, harmless, utc};
use crate::state::inspect::{Inspector, Value};
use crate::state::now_ns;

/// Operations and events shown when no object is named.
const NEWEST: i64 = 100;

/// The story of an object, and of the containers in it.
pub(super) struct Story {
    about: Option<Object>,
    row: Option<Record>,
    operations: Vec<Record>,
    events: Vec<Record>,
    failures: Vec<Record>,
    jobs: Vec<Record>,
    containers: Vec<Story>,
}

impl Story {
    /// The newest operations and events of everything, and all jobs.
    pub(super) async fn of_all(inspector: &mut Inspector) -> anyhow::Result<Self> {
        let newest = [Value::Integer(NEWEST)];
        Ok(Self {
            about: None,
            row: None,
            operations: records(
                inspector,
                "SELECT * FROM (SELECT * FROM v_operations ORDER BY id DESC LIMIT ?1) ORDER BY id",
                &newest,
            )
            .await?,
            events: records(
                inspector,
                "SELECT * FROM (SELECT * FROM v_events ORDER BY sequence DESC LIMIT ?1)
                 ORDER BY sequence",
                &newest,
            )
            .await?,
            failures: records(
                inspector,
                "SELECT * FROM (SELECT * FROM v_job_history WHERE status = 'failed'
                     ORDER BY id DESC LIMIT ?1) ORDER BY id",
                &newest,
            )
            .await?,
            jobs: records(inspector, "SELECT * FROM v_jobs ORDER BY created_at", &[]).await?,
            containers: Vec::new(),
        })
    }

    /// Everything about one object.
    pub(super) async fn of(inspector: &mut Inspector, about: &Object) -> anyhow::Result<Self> {
        let mut story = Self::alone(inspector, about.clone()).await?;
        if about.kind == "sandbox" {
            let sql = "SELECT id, namespace || '/' || pod || '/' || name AS name FROM v_containers
                       WHERE sandbox_id = ?1 ORDER BY created_at, id";
            let parameters = [Value::Text(about.id.clone())];
            for row in records(inspector, sql, &parameters).await? {
                let container = Object {
                    kind: "container".into(),
                    id: row.text("id").to_owned(),
                    name: row.text("name").to_owned(),
                };
                story
                    .containers
                    .push(Self::alone(inspector, container).await?);
            }
        }
        Ok(story)
    }

    async fn alone(inspector: &mut Inspector, about: Object) -> anyhow::Result<Self> {
        let id = [Value::Text(about.id.clone())];
        let row = match about.kind.as_str() {
            "sandbox" => "SELECT * FROM v_pods WHERE id = ?1",
            "container" => "SELECT * FROM v_containers WHERE id = ?1",
            _ => "SELECT * FROM v_images WHERE id = ?1",
        };
        let operations = "SELECT * FROM v_operations WHERE object_id = ?1 ORDER BY id";
        let events = "SELECT * FROM v_events WHERE object_id = ?1 ORDER BY sequence";
        let failures = "SELECT * FROM v_job_history WHERE object_id = ?1 AND status = 'failed'
             ORDER BY id";
        let jobs = "SELECT * FROM v_jobs WHERE object_id = ?1";
        Ok(Self {
            row: records(inspector, row, &id).await?.into_iter().next(),
            operations: records(inspector, operations, &id).await?,
            events: records(inspector, events, &id).await?,
            failures: records(inspector, failures, &id).await?,
            jobs: records(inspector, jobs, &id).await?,
            containers: Vec::new(),
            about: Some(about),
        })
    }

    /// As JSON: `row` is null when the object is gone.
    pub(super) fn json(&self) -> String {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let list = |records: &[Record]| array(records.iter().map(Record::json));
        let mut members = Vec::new();
        if let Some(about) = &self.about {
            members.push(("kind", text(&about.kind)));
            members.push(("id", text(&about.id)));
            members.push(("row", self.row.as_ref().map_or("null".into(), Record::json)));
            let ended = self.ended().map_or("null".into(), |ended| text(&ended));
            members.push(("ended", ended));
        }
        members.push(("operations", list(&self.operations)));
        members.push(("events", list(&self.events)));
        members.push(("failures", list(&self.failures)));
        members.push(("jobs", list(&self.jobs)));
        if self.about.as_ref().is_some_and(|a| a.kind == "sandbox") {
            let containers = array(self.containers.iter().map(Self::json));
            members.push(("containers", containers));
        }
        object(members.into_iter())
    }

    /// Who or what ended a container; nothing while it runs, or for anything else.
    fn ended(&self) -> Option<String> {
        let about = self.about.as_ref().filter(|a| a.kind == "container")?;
        let Some(row) = &self.row else {
            // The row is gone; its last words are not.
            let last = |kind| self.events.iter().rfind(|e| e.text("kind") == kind);
            let exit = last("exited")?.text("message");
            return Some(match last("stopping") {
                Some(stop) => format!("{exit}; was being stopped ({})", stop.text("message")),
                None => exit.to_owned(),
            });
        };
        debug_assert_eq!(row.text("id"), about.id);
        if row.text("state") != "exited" {
            return None;
        }
        let code = row.integer("exit_code").unwrap_or(0);
        let who = match row.text("ended_by") {
            "self" if code > 128 => "no client ended it",
            "self" => "it ended by itself",
            "client" => "a client stopped it (StopContainer)",
            "removal" => "a client removed it (RemoveContainer)",
            "pod" => "its pod was stopped",
            "oom" => "the kernel killed it for want of memory",
            "start" => "it could not be started",
            "reboot" => "the node was started anew",
            _ => "nobody saw why",
        };
        let reason = row.text("reason");
        Some(format!("exit code {code}, {reason}: {who}"))
    }

    /// For people.
    pub(super) fn tell(&self, to: &mut impl Write) -> io::Result<()> {
        let now = now_ns();
        if let Some(about) = &self.about {
            writeln!(to, "{about}")?;
            self.tell_row(to, now)?;
        }
        self.tell_operations(to)?;
        self.tell_events(to)?;
        self.tell_failures(to)?;
        self.tell_jobs(to, now)?;
        for container in &self.containers {
            writeln!(to)?;
            container.tell(to)?;
        }
        Ok(())
    }

    fn tell_row(&self, to: &mut impl Write, now: i64) -> io::Result<()> {
        let Some(row) = &self.row else {
            writeln!(to, "  is gone; this is what is still known of it")?;
            if let Some(ended) = self.ended() {
                writeln!(to, "  ended       {}", harmless(&ended))?;
            }
            return Ok(());
        };
        let mut line = |name: &str, text: &str| {
            if text.is_empty() {
                return Ok(());
            }
            writeln!(to, "  {name:<11} {}", harmless(text))
        };
        line("state", row.text("state"))?;
        line("wanted", row.text("desired"))?;
        for name in ["image", "address", "sandbox_id", "tags"] {
            line(name, row.text(name))?;
        }
        for name in [
            "created_at",
            "ready_at",
            "started_at",
            "signalled_at",
            "exited_at",
            "stopped_at",
        ] {
            if let Some(at) = row.integer(name) {
                let text = format!("{} ({})", utc(at), age(now, at));
                line(name.trim_end_matches("_at"), &text)?;
            }
        }
        line("ended", &self.ended().unwrap_or_default())?;
        line("error", row.text("error"))?;
        line("log", row.text("log_path"))?;
        if let Some(lines @ 1..) = row.integer("lost_log_lines") {
            let bytes = row.integer("lost_log_bytes").unwrap_or(0);
            let text = format!("{lines} lines of its log ({bytes} bytes) could not be written");
            line("lost", &text)?;
        }
        Ok(())
    }

    fn tell_operations(&self, to: &mut impl Write) -> io::Result<()> {
        if self.operations.is_empty() {
            return Ok(());
        }
        writeln!(to, "  what was done:")?;
        let mut table = Table::new(["    WHEN", "WHAT", "TOOK", "STAGES"]);
        for operation in &self.operations {
            let mut stages = stages(operation.text("stages"));
            if let Some(error) = operation.get("error").text() {
                stages = format!("failed: {error} ({stages})");
            }
            table.row([
                format!("    {}", utc(operation.integer("started_at").unwrap_or(0))),
                operation.text("kind").to_owned(),
                match operation.get("duration_ms") {
                    Value::Real(ms) => format!("{ms:.2} ms"),
                    other => format!("{other} ms"),
                },
                stages,
            ]);
        }
        table.print(to)
    }

    fn tell_events(&self, to: &mut impl Write) -> io::Result<()> {
        if self.events.is_empty() {
            return Ok(());
        }
        writeln!(to, "  what happened:")?;
        let mut table = Table::new(["    WHEN", "EVENT", "MESSAGE"]);
        for event in &self.events {
            table.row([
                format!("    {}", utc(event.integer("at").unwrap_or(0))),
                event.text("kind").to_owned(),
                event.text("message").to_owned(),
            ]);
        }
        table.print(to)
    }

    fn tell_failures(&self, to: &mut impl Write) -> io::Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        writeln!(to, "  what failed and was tried again:")?;
        let mut table = Table::new(["    WHEN", "JOB", "TRY", "ERROR"]);
        for failure in &self.failures {
            table.row([
                format!("    {}", utc(failure.integer("completed_at").unwrap_or(0))),
                match &self.about {
                    Some(_) => format!("look at the {}", failure.text("object_kind")),
                    None => failure.text("key").to_owned(),
                },
                failure.integer("attempts").unwrap_or(0).to_string(),
                failure.text("last_error").to_owned(),
            ]);
        }
        table.print(to)
    }

    fn tell_jobs(&self, to: &mut impl Write, now: i64) -> io::Result<()> {
        if self.jobs.is_empty() {
            return Ok(());
        }
        writeln!(to, "  what is to be done:")?;
        let mut table = Table::new(["    JOB", "STATUS", "NEXT", "FAILED", "LAST ERROR"]);
        for job in &self.jobs {
            let kind = job.text("object_kind");
            table.row([
                match &self.about {
                    Some(_) => format!("    look at the {kind}"),
                    None => format!("    {}", job.text("key")),
                },
                job.text("status").to_owned(),
                age(now, job.integer("next_attempt_at").unwrap_or(now)),
                format!("{} times", job.integer("attempts").unwrap_or(0)),
                job.text("last_error").to_owned(),
            ]);
        }
        table.print(to)
    }
}

async fn records(
    inspector: &mut Inspector,
    sql: &str,
    parameters: &[Value],
) -> anyhow::Result<Vec<Record>> {
    let (rows, end) = inspector.rows(sql, parameters, LISTING).await?;
    crate::cli::output::whole(end)?;
    Ok(Record::all(rows))
}

/// `[["queue", 1200000], …]` as `queue 1.20 ms, …`.
#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn stages(json: &str) -> String {
    let stages: Vec<(String, i64)> = serde_json::from_str(json).unwrap_or_default();
    let stages: Vec<_> = stages
        .iter()
        .map(|(name, ns)| format!("{name} {:.2} ms", *ns as f64 / 1e6))
        .collect();
    stages.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_in_milliseconds() {
        let json = r#"[["queue",1200000],["launch",31000]]"#;
        assert_eq!(stages(json), "queue 1.20 ms, launch 0.03 ms");
        assert_eq!(stages("not json"), "");
    }
}
