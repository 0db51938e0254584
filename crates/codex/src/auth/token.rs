//! What a token says about itself, and the ways in which `last_refresh` is written.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jiff::civil::DateTime;
use serde_json::{Map, Value};

/// Numbers above this are milliseconds, below it seconds (T-230); as seconds it is the year 33658.
const MILLISECONDS_ABOVE: f64 = 1e12;

/// Reads the claims of a JWT without checking its signature; nothing for an opaque token.
pub(super) fn claims(token: &str) -> Option<Map<String, Value>> {
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    match serde_json::from_slice(&json) {
        Ok(Value::Object(claims)) => Some(claims),
        _ => None,
    }
}

/// Reads a claim such as `exp`: seconds since 1970.
pub(super) fn seconds(claim: &Value) -> Option<Timestamp> {
    // A fraction of a second is allowed by the standard and of no interest here.
    let seconds = claim.as_i64().or_else(|| claim.as_f64().map(|f| f as i64))?;
    Timestamp::from_second(seconds).ok()
}

/// Reads `last_refresh`: RFC 3339 text, text without a zone (which is UTC), or a number of seconds or milliseconds
/// (T-230). Anything else is nothing, and nothing counts as stale.
pub(super) fn instant(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => {
            let utc = || {
                text.parse::<DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
            };
            text.parse::<Timestamp>().ok().or_else(utc)
        }
        Value::Number(number) => {
            let number = number.as_f64()?;
            let milliseconds = if number > MILLISECONDS_ABOVE { number } else { number * 1e3 };
            Timestamp::from_millisecond(milliseconds as i64).ok()
        }
        _ => None,
    }
}
