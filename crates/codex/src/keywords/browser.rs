//! Addresses that the agent wants opened, and the stubs that catch them (S-166, S-167, S-196…S-203).

/// The longest address a person is shown. A login's is some 500 bytes; browsers stop at a few thousand.
const MAX_ADDRESS: usize = 8192;

/// The programs by which others open a browser (S-197).
pub const SHIM_NAMES: [&str; 5] = ["xdg-open", "gio", "open", "sensible-browser", "www-browser"];

/// The address in a value, without the quotes that a stub puts around it: absolute, http or https, with a host, and with
/// nothing in it that could be taken for something else. A person is going to click on it.
pub fn address(value: &str) -> Option<&str> {
    let url = value.strip_prefix('"').map_or(value, |inner| inner.strip_suffix('"').unwrap_or(inner));
    let (scheme, rest) = url.split_once("://")?;
    let is_web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>' | '\\' | '`');
    // What stands before an @ is made to look like the host.
    let is_plain = !host.is_empty() && !host.contains('@') && !url.contains(is_odd);
    (is_web && is_plain && url.len() <= MAX_ADDRESS).then_some(url)
}

/// The script of a stub, for a POSIX shell: appends the last argument that is an address to the log, and nothing when there
/// is none, so `gio open URL` gives the URL (S-199). An address with a control character in it, which could make further
/// lines of the log, is not written (S-202). `log` is the log's absolute path.
pub fn shim(log: &str) -> String {
    let log = log.replace('\'', r"'\''");
    format!(
        r#"#!/bin/sh
# Stands in for a browser: hands the address to the person who watches the session.
url=
for word in "$@"; do
    case $word in
    [a-zA-Z]*://*) url=$word ;;
    esac
done
[ -n "$url" ] || exit 0
[ "$(printf %s "$url" | LC_ALL=C tr -d '\000-\037\177')" = "$url" ] || exit 0
printf 'BROWSER: "%s"\n' "$url" >>'{log}'
exit 0
"#
    )
}
