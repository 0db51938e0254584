//! Which names the service answers to, and which pages may talk to it. Pure.
//!
//! Neither is ever compared with what the request itself says about the other: a rebound name would match itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// The allowed values of `Host` and `Origin`.
#[derive(Debug)]
pub(crate) struct Allowed {
    hosts: BTreeSet<String>,
    origins: BTreeSet<String>,
}

impl Allowed {
    /// Makes the lists: a configured name may be served over HTTP or, by a proxy, over TLS; a public URL is one origin.
    pub(crate) fn new(hosts: &[String], public_url: Option<&str>) -> Self {
        let mut allowed = Self { hosts: BTreeSet::new(), origins: BTreeSet::new() };
        for host in hosts {
            let host = host.trim().to_ascii_lowercase();
            allowed.origins.extend(["http", "https"].map(|scheme| origin(scheme, &host)));
            allowed.add_host(&host);
        }
        if let Some((scheme, rest)) = public_url.and_then(|url| url.split_once("://")) {
            let host = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
            allowed.origins.insert(origin(&scheme.to_ascii_lowercase(), &host));
            allowed.add_host(&host);
        }
        allowed
    }

    fn add_host(&mut self, host: &str) {
        // A client leaves the port of its scheme away.
        if let Some(bare) = host.strip_suffix(":80").or_else(|| host.strip_suffix(":443")) {
            self.hosts.insert(bare.to_owned());
        }
        self.hosts.insert(host.to_owned());
    }

    /// True for a `Host` that names this service.
    pub(crate) fn host(&self, host: &str) -> bool {
        self.hosts.contains(&host.to_ascii_lowercase())
    }

    /// True for the `Origin` of our own page. `null` never is.
    pub(crate) fn origin(&self, origin: &str) -> bool {
        self.origins.contains(&origin.to_ascii_lowercase())
    }
}

/// Writes an origin as browsers do: without the port that the scheme implies.
fn origin(scheme: &str, host: &str) -> String {
    let implied = if scheme == "https" { ":443" } else { ":80" };
    format!("{scheme}://{}", host.strip_suffix(implied).unwrap_or(host))
}

/// The values of `Host` that name a listener: its own address, and every loopback name if it is (or includes) loopback.
pub fn hosts_of(address: SocketAddr) -> Vec<String> {
    let mut hosts = vec![address.to_string()];
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        hosts.extend(["127.0.0.1", "localhost", "[::1]"].map(|name| format!("{name}:{}", address.port())));
    }
    hosts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_loopback_listener_answers_to_every_loopback_name_at_its_port_only() {
        let allowed = Allowed::new(&hosts_of("127.0.0.1:7340".parse().unwrap()), None);
        for good in ["127.0.0.1:7340", "localhost:7340", "LOCALHOST:7340", "[::1]:7340"] {
            assert!(allowed.host(good), "{good}");
        }
        for bad in ["", "localhost", "localhost:7341", "evil.test:7340", "127.0.0.1:7340.evil.test"] {
            assert!(!allowed.host(bad), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_compared_whole() {
        let allowed = Allowed::new(&["127.0.0.1:7340".to_owned()], Some("https://Codex.example.org/"));
        for good in ["http://127.0.0.1:7340", "https://codex.example.org"] {
            assert!(allowed.origin(good), "{good}");
        }
        let bad = ["null", "", "http://127.0.0.1", "http://127.0.0.1:73400", "http://codex.example.org"];
        for bad in
            bad.into_iter().chain(["https://codex.example.org.evil.test", "https://codex.example.org:8443"])
        {
            assert!(!allowed.origin(bad), "{bad}");
        }
        assert!(allowed.host("codex.example.org") && !allowed.host("codex.example.org:1"));
    }

    #[test]
    fn the_port_of_the_scheme_is_left_away() {
        let allowed = Allowed::new(&["box:80".to_owned()], Some("https://codex.example.org:443"));
        assert!(allowed.host("box") && allowed.origin("http://box"));
        assert!(allowed.host("codex.example.org") && allowed.origin("https://codex.example.org"));
    }
}
