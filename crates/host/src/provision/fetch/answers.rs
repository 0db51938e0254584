//! What servers may say, and what it means.

use reqwest::Url;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use reqwest::redirect::{Action, Attempt};

use crate::provision::release::shown;

/// Redirects that are followed; a release of GitHub has one.
const REDIRECTS: usize = 5;

/// Longest ETag that is kept.
const ETAG_LIMIT: usize = 256;

/// Follows to where nobody can listen in: TLS, or this machine.
pub(super) fn follow(attempt: Attempt<'_>) -> Action {
    if attempt.previous().len() > REDIRECTS {
        return attempt.error(format!("there are more than {REDIRECTS} redirects"));
    }
    let url = attempt.url();
    if url.scheme() == "https" || is_loopback(url) {
        return attempt.follow();
    }
    let to = shown(url.as_str());
    attempt.error(format!("it redirects to {to}, which is neither https nor this machine"))
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// What went wrong, to its cause, without the address: that may hold a password.
pub(super) fn why(problem: &reqwest::Error) -> String {
    let mut text = match problem {
        _ if problem.is_timeout() => "there was no answer in time".to_owned(),
        _ if problem.is_connect() => "there is no connection".to_owned(),
        _ if problem.is_redirect() => "the server redirects".to_owned(),
        _ if problem.is_body() || problem.is_decode() => "the answer was cut".to_owned(),
        _ => "the request failed".to_owned(),
    };
    let mut source = std::error::Error::source(problem);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `bytes 17-99/100` begins at 17.
pub(super) fn begins_at(headers: &HeaderMap, at: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {at}-")))
}

pub(super) fn is_strong(etag: &str) -> bool {
    etag.len() <= ETAG_LIMIT && etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_this_machine_is_asked_without_tls() {
        let loopback = |url: &str| is_loopback(&Url::parse(url).unwrap());
        for good in ["http://127.0.0.1:1/x", "http://127.9.9.9/", "http://[::1]:8/", "http://localhost/"] {
            assert!(loopback(good), "{good}");
        }
        for bad in
            ["http://example.org/", "http://127.0.0.1.example.org/", "http://10.0.0.1/", "http://[::2]/"]
        {
            assert!(!loopback(bad), "{bad}");
        }
    }

    #[test]
    fn a_weak_validator_proves_nothing() {
        assert!(is_strong("\"abc\""));
        for bad in ["", "\"\"", "W/\"abc\"", "abc", &format!("\"{}\"", "a".repeat(300))] {
            assert!(!is_strong(bad), "{bad}");
        }
    }
}
