//! The consumer's notes on a login, JSON here and BSON in the database.

use jiff::Timestamp;
use mongodb::bson::{Bson, Document};
use serde_json::{Map, Value};

use super::documents::date;
use crate::clock::from_millis;
use crate::{Result, StoreError};

/// When a verdict was reached.
const CHECKED_AT: &str = "checkedAt";

/// Notes of the consumer as BSON.
pub(super) fn metadata_document(metadata: Map<String, Value>) -> Result<Document> {
    metadata.into_iter().map(|(key, value)| note(&key, value).map(|note| (key, note))).collect()
}

/// One note as BSON. The time of a verdict is text in JSON, which has no dates, and a date for Python (T-217).
pub(super) fn note(key: &str, value: Value) -> Result<Bson> {
    let mut note = to_bson(value)?;
    if let ("verify", Bson::Document(verdict)) = (key, &mut note)
        && let Some(at) = verdict.get_str(CHECKED_AT).ok().and_then(|at| at.parse::<Timestamp>().ok())
    {
        verdict.insert(CHECKED_AT, date(at.as_millisecond()));
    }
    Ok(note)
}

fn to_bson(value: Value) -> Result<Bson> {
    let too_large = |number: &serde_json::Number| StoreError::Invalid {
        field: "metadata",
        why: format!("the number {number} is too large"),
    };
    Ok(match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(value),
        Value::Number(number) if number.is_f64() => {
            Bson::Double(number.as_f64().ok_or_else(|| too_large(&number))?)
        }
        Value::Number(number) => Bson::Int64(number.as_i64().ok_or_else(|| too_large(&number))?),
        Value::String(text) => Bson::String(text),
        Value::Array(items) => Bson::Array(items.into_iter().map(to_bson).collect::<Result<_>>()?),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| Ok((key, to_bson(value)?)));
            Bson::Document(fields.collect::<Result<_>>()?)
        }
    })
}

/// What a consumer, perhaps a Python one, noted, as JSON: dates and ids as text.
pub(super) fn to_json(value: &Bson) -> Value {
    match value {
        Bson::Null | Bson::Undefined => Value::Null,
        Bson::Boolean(value) => Value::Bool(*value),
        Bson::Int32(number) => (*number).into(),
        Bson::Int64(number) => (*number).into(),
        Bson::Double(number) => (*number).into(),
        Bson::String(text) => text.clone().into(),
        Bson::Array(items) => items.iter().map(to_json).collect(),
        Bson::Document(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
        }
        Bson::DateTime(at) => from_millis(at.timestamp_millis()).to_string().into(),
        Bson::ObjectId(id) => id.to_hex().into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_time_of_a_verdict_is_a_date_and_text_that_looks_like_one_stays_text() {
        let at = "2026-07-02T00:11:54.339Z";
        let notes = |value: Value| metadata_document(value.as_object().unwrap().clone()).unwrap();
        let verify = serde_json::json!({ "alive": null, "checkedAt": at, "reason": at });
        let stored = notes(serde_json::json!({ "verify": verify, "other": { "checkedAt": at } }));
        let (verdict, other) =
            (stored.get_document("verify").unwrap(), stored.get_document("other").unwrap());
        assert_eq!(verdict.get_datetime("checkedAt").unwrap().timestamp_millis(), 1_782_951_114_339);
        assert_eq!((verdict.get_str("reason").unwrap(), other.get_str("checkedAt").unwrap()), (at, at));
        assert_eq!(to_json(&stored.get("verify").unwrap().clone()), verify, "and reads as it was");
        let odd = notes(serde_json::json!({ "verify": { "checkedAt": "yesterday" } }));
        assert_eq!(odd.get_document("verify").unwrap().get_str("checkedAt").unwrap(), "yesterday");
    }
}
