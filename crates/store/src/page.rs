//! Pages of a list.

use crate::{Result, StoreError};

/// One page and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// To be given back as [`PageRequest::cursor`]; `None` on the last page.
    pub next_cursor: Option<String>,
}

/// Which page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Where to begin: an earlier [`Page::next_cursor`], or the beginning.
    pub cursor: Option<String>,
    /// At most this many rows; capped at [`PageRequest::MAX`].
    pub limit: usize,
}

impl PageRequest {
    /// Most rows of one page.
    pub const MAX: usize = 500;

    /// How many rows are wanted: at least one.
    pub(crate) fn rows(&self) -> usize {
        self.limit.clamp(1, Self::MAX)
    }

    /// The key of the row after which the page begins, if it is not the first one.
    pub(crate) fn after(&self) -> Result<Option<(i64, String)>> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let key = cursor.split_once('~').and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
        let why = "it must be a next_cursor that was answered before".to_owned();
        key.map(Some).ok_or(StoreError::Invalid { field: "cursor", why })
    }
}

impl<T> Page<T> {
    /// Makes a page of at most `limit` rows from one row more, if there is one. `key` is what the list is ordered by.
    pub(crate) fn cut(mut data: Vec<T>, limit: usize, key: impl Fn(&T) -> (i64, String)) -> Self {
        if data.len() <= limit {
            return Self { data, next_cursor: None };
        }
        data.truncate(limit);
        let next_cursor = data.last().map(|row| {
            let (time, id) = key(row);
            format!("{time}~{id}")
        });
        Self { data, next_cursor }
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { cursor: None, limit: 100 }
    }
}
