//! Reading a query and the id in a path, as strictly as a body.

use std::future::{Ready, ready};
use std::str::FromStr;

use actix_web::dev::Payload;
use actix_web::web::Query;
use actix_web::{FromRequest, HttpRequest};
use optio_actors::service::words::PageRequest;

use crate::error::{BAD_REQUEST, NOT_FOUND, Problem};

/// Rows of a page whose request names no limit.
const PAGE: usize = 100;

/// The parameters of a query, taken out one by one; what is left in the end is unknown.
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// Takes every value of a parameter.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        self.0.extract_if(.., |(key, _)| key == name).map(|(_, value)| value).collect()
    }

    /// Takes a parameter that may be given once.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(Problem::field(name, "it is given more than once")),
        }
    }

    /// Takes a parameter of another type.
    pub(crate) fn parsed<T: FromStr>(&mut self, name: &str, rule: &str) -> Result<Option<T>, Problem> {
        let text = self.text(name)?;
        text.map(|text| text.parse().map_err(|_| Problem::field(name, rule))).transpose()
    }

    /// Takes `limit`, within the bound of every list.
    pub(crate) fn limit(&mut self) -> Result<usize, Problem> {
        let rule = format!("it must be a number from 1 to {}", PageRequest::MAX);
        match self.parsed::<usize>("limit", &rule)?.unwrap_or(PAGE) {
            limit if (1..=PageRequest::MAX).contains(&limit) => Ok(limit),
            _ => Err(Problem::field("limit", rule)),
        }
    }

    /// Takes `limit` and `cursor`.
    pub(crate) fn page(&mut self) -> Result<PageRequest, Problem> {
        Ok(PageRequest { limit: self.limit()?, cursor: self.text("cursor")? })
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        Problem::unknown(self.0.iter().map(|(name, _)| name)).map_or(Ok(()), Err)
    }
}

impl FromRequest for Params {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let query = Query::<Vec<(String, String)>>::from_query(request.query_string());
        ready(match query {
            Ok(query) => Ok(Self(query.into_inner())),
            Err(problem) => Err(Problem::new(BAD_REQUEST, problem.to_string())),
        })
    }
}

/// Reads an id of the path. A text that is no id names nothing that exists.
pub(crate) fn id<T: FromStr>(what: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(64).collect();
        Problem::new(NOT_FOUND, format!("{what} {shown:?} does not exist"))
    })
}
