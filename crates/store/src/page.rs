//! Pages of a list.

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
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { cursor: None, limit: 100 }
    }
}
