//! How commands answer: tables for people, JSON for scripts.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::time::Duration;

use anyhow::bail;

use super::place::Place;
use super::table::{self, Table};
use crate::state::inspect::{Bounds, End, Rows, Sink, Value};
use crate::state::now_ns;

/// What a listing may cost.
pub(super) const LISTING: Bounds = Bounds {
    timeout: Duration::from_secs(10),
    rows: 100_000,
    bytes: 64 << 20,
};

/// Columns of the views that hold JSON; a script gets them as such.
const JSON_COLUMNS: [&str; 4] = ["tags", "digests", "command", "stages"];

/// For people or for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Aligned columns.
    Table,
    /// JSON, with everything that is known.
    Json,
}

/// The arguments of every command that lists.
#[derive(clap::Args)]
pub(super) struct Reading {
    #[command(flatten)]
    pub(super) place: Place,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(super) output: Format,
    /// Show whole ids and texts.
    #[arg(long)]
    pub(super) no_trunc: bool,
}

/// Standard output, whole lines at a time.
pub(super) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// A row by the names of its columns.
#[derive(Debug, Clone)]
pub(super) struct Record(Vec<(String, Value)>);

impl Record {
    /// All rows of an answer.
    pub(super) fn all(rows: Rows) -> Vec<Self> {
        let names = rows.columns;
        let name = |values: Vec<Value>| names.iter().cloned().zip(values).collect();
        rows.rows
            .into_iter()
            .map(|values| Self(name(values)))
            .collect()
    }

    pub(super) fn get(&self, column: &str) -> &Value {
        let found = self.0.iter().find(|(name, _)| name == column);
        found.map_or(&Value::Null, |(_, value)| value)
    }

    /// Text of a column; nothing when it has none.
    pub(super) fn text(&self, column: &str) -> &str {
        self.get(column).text().unwrap_or_default()
    }

    /// Number of a column.
    pub(super) fn integer(&self, column: &str) -> Option<i64> {
        self.get(column).integer()
    }

    /// As a JSON object, whose keys keep the order of the columns.
    pub(super) fn json(&self) -> String {
        let members = self.0.iter().map(|(name, value)| {
            let value = match value {
                Value::Text(text) if JSON_COLUMNS.contains(&name.as_str()) => {
                    serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into())
                }
                value => value.to_json(),
            };
            (name.as_str(), value.to_string())
        });
        object(members)
    }
}

/// A JSON object of texts that are JSON.
pub(super) fn object<'a>(members: impl Iterator<Item = (&'a str, String)>) -> String {
    let members: Vec<_> = members
        .map(|(name, value)| format!("{}:{value}", serde_json::Value::from(name)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON array, one element a line.
pub(super) fn array(elements: impl Iterator<Item = String>) -> String {
    let elements: Vec<_> = elements.collect();
    if elements.is_empty() {
        return "[]".into();
    }
    format!("[\n{}\n]", elements.join(",\n"))
}

/// Writes rows as a JSON array of objects, as they come.
pub(super) struct JsonRows<'w, W: Write> {
    to: &'w mut W,
    names: Vec<String>,
    any: bool,
}

impl<'w, W: Write> JsonRows<'w, W> {
    pub(super) fn new(to: &'w mut W) -> Self {
        Self {
            to,
            names: Vec::new(),
            any: false,
        }
    }

    /// Closes the array.
    pub(super) fn end(self) -> io::Result<()> {
        self.to.write_all(if self.any { b"\n]" } else { b"[]" })
    }
}

impl<W: Write> Sink for JsonRows<'_, W> {
    fn columns(&mut self, names: &[String]) -> io::Result<()> {
        names.clone_into(&mut self.names);
        Ok(())
    }

    fn row(&mut self, values: Vec<Value>) -> io::Result<()> {
        let start: &[u8] = if self.any { b",\n" } else { b"[\n" };
        self.to.write_all(start)?;
        self.any = true;
        let values = values.iter().map(|value| value.to_json().to_string());
        let row = object(self.names.iter().map(String::as_str).zip(values));
        self.to.write_all(row.as_bytes())
    }
}

/// An error for an answer that is not whole.
pub(super) fn whole(end: End) -> anyhow::Result<()> {
    match end {
        End::Whole => Ok(()),
        End::Cut(rows) => bail!("cut after {rows} rows: there is more; ask for less at a time"),
    }
}

/// How a column is shown in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// As it is.
    Plain,
    /// An id, of which the beginning will do.
    Id,
    /// Text that is cut where it is long.
    Long,
    /// A time, as an age.
    Age,
    /// Bytes.
    Size,
    /// A JSON array of texts.
    List,
}

impl Show {
    fn cell(self, value: &Value, now: i64, whole: bool) -> String {
        match (self, value) {
            (Self::Age, Value::Integer(at)) => table::age(now, *at),
            (Self::Size, Value::Integer(bytes)) => table::size(*bytes),
            (Self::Id, value) if !whole => table::short(&value.to_string()),
            (Self::Long, value) if !whole => table::cut(&value.to_string()),
            (Self::List, Value::Text(text)) => serde_json::from_str(text)
                .map_or_else(|_| text.clone(), |list: Vec<String>| list.join(" ")),
            (_, value) => value.to_string(),
        }
    }
}

/// A column of a listing: its title, its name in the view, how it is shown.
pub(super) type Shown = (&'static str, &'static str, Show);

/// Lists what a statement finds: all columns as JSON, some as a table.
pub(super) async fn list(
    reading: &Reading,
    sql: &str,
    parameters: &[Value],
    shown: &[Shown],
) -> anyhow::Result<()> {
    let mut inspector = reading.place.open().await?;
    let (rows, end) = inspector.rows(sql, parameters, LISTING).await?;
    let records = Record::all(rows);
    let mut out = stdout();
    match reading.output {
        Format::Json => writeln!(out, "{}", array(records.iter().map(Record::json)))?,
        Format::Table => {
            let now = now_ns();
            let mut table = Table::new(shown.iter().map(|(title, ..)| *title));
            for record in &records {
                table.row(
                    shown.iter().map(|(_, column, show)| {
                        show.cell(record.get(column), now, reading.no_trunc)
                    }),
                );
            }
            table.print(&mut out)?;
        }
    }
    out.flush()?;
    whole(end)
}
