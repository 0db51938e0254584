//! How values stand in the columns of more than one table.

use rusqlite::Row;
use rusqlite::types::Type;

use crate::local::invalid;
use crate::{Result, SeedStatus};

/// How a status stands in the database.
pub(super) fn status_text(status: SeedStatus) -> &'static str {
    match status {
        SeedStatus::Alive => "alive",
        SeedStatus::Dead => "dead",
        SeedStatus::NeedsRecovery => "needs_recovery",
    }
}

/// Reads a status.
pub(super) fn status(row: &Row<'_>, column: usize) -> rusqlite::Result<SeedStatus> {
    match row.get_ref(column)?.as_str()? {
        "alive" => Ok(SeedStatus::Alive),
        "dead" => Ok(SeedStatus::Dead),
        "needs_recovery" => Ok(SeedStatus::NeedsRecovery),
        other => Err(unreadable(column, format!("{other:?} is no status").into())),
    }
}

/// Reads an id.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get_ref(column)?.as_str()?.parse().map_err(|e| unreadable(column, Box::new(e)))
}

/// Reads an id that may be missing.
pub(super) fn parsed_opt<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(column)?.as_str_or_null()? {
        None => Ok(None),
        Some(_) => parsed(row, column).map(Some),
    }
}

/// Reads JSON.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|e| unreadable(column, Box::new(e)))
}

fn unreadable(column: usize, why: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why)
}

/// Writes JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| invalid("value", e.to_string()))
}
