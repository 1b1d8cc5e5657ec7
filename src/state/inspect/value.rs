//! Values as they stand in a row, whatever the statement was.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, TypeInfo, ValueRef};

/// One value of an answer, with SQLite's own type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Real(f64),
    /// Text; what is not UTF-8 in it is replaced.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// All values of a row.
    pub(super) fn of_row(row: &SqliteRow) -> Result<Vec<Self>, sqlx::Error> {
        (0..row.len()).map(|index| Self::of(row, index)).collect()
    }

    fn of(row: &SqliteRow, index: usize) -> Result<Self, sqlx::Error> {
        let raw = row.try_get_raw(index)?;
        if raw.is_null() {
            return Ok(Self::Null);
        }
        let kind = raw.type_info().name().to_owned();
        Ok(match kind.as_str() {
            "REAL" => Self::Real(row.try_get_unchecked(index)?),
            "BLOB" => Self::Blob(row.try_get_unchecked(index)?),
            "TEXT" => {
                let bytes: Vec<u8> = row.try_get_unchecked(index)?;
                Self::Text(match String::from_utf8(bytes) {
                    Ok(text) => text,
                    Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
                })
            }
            _ => Self::Integer(row.try_get_unchecked(index)?),
        })
    }

    /// Bytes it takes, for bounds.
    pub(super) fn weight(&self) -> u64 {
        let bytes = match self {
            Self::Null | Self::Integer(_) | Self::Real(_) => 8,
            Self::Text(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
        };
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The whole number, if it is one.
    #[must_use]
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// As JSON: a blob is its hex digits; what JSON has no number for is null.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Integer(number) => (*number).into(),
            Self::Real(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Blob(bytes) => hex(bytes).into(),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Integer(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Blob(bytes) => hex(bytes).fmt(f),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
