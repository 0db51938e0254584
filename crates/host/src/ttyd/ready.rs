//! The line by which a ttyd says where it listens (S-269).

/// The port that a line names: `Listening on port: 33033`, or an address such as `http://127.0.0.1:33033/`. On a Unix
/// socket it names port 0 (LAB §10).
pub(super) fn port(line: &str) -> Option<u16> {
    named(line).or_else(|| in_address(line))
}

/// `port`, then `:` or blanks, then digits.
fn named(line: &str) -> Option<u16> {
    line.match_indices("port").find_map(|(at, word)| {
        let rest = &line[at + word.len()..];
        let digits = rest.trim_start_matches([':', ' ', '\t']);
        (digits.len() < rest.len()).then(|| number(digits))?.map(|(port, _)| port)
    })
}

/// `http://…:digits`, then `/`, a blank or the end.
fn in_address(line: &str) -> Option<u16> {
    let scheme = "http://";
    line.match_indices(scheme).find_map(|(at, _)| {
        let rest = &line[at + scheme.len()..];
        let host_ends = rest.find(['/', ' ', '\t']).unwrap_or(rest.len());
        let (_, digits) = rest[..host_ends].rsplit_once(':')?;
        number(digits).filter(|(_, rest)| rest.is_empty()).map(|(port, _)| port)
    })
}

fn number(text: &str) -> Option<(u16, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_line_are_read() {
        let real = "[2026/11/21 01:10:09:5227] N:  Listening on port: 33033";
        for (line, expected) in [
            (real, Some(33033)),
            ("N: Listening on port: 0", Some(0)),
            ("listening on port 7681", Some(7681)),
            ("see http://127.0.0.1:40001/", Some(40001)),
            ("see http://[::1]:40002 now", Some(40002)),
            ("http://box:40003", Some(40003)),
            ("http://box:40003x/", None),
            ("http://box/", None),
            ("N: ttyd 1.7.7 (libwebsockets 4.3.5)", None),
            ("support 12", Some(12)),
            ("port: none", None),
            ("port:99999", None),
            ("", None),
        ] {
            assert_eq!(port(line), expected, "{line}");
        }
    }
}
