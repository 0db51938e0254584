//! What is said of a machine in the configuration, a request or a file of ours, and what is wrong with it. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use optio_host::SshTarget;
use optio_host::ssh::{DEFAULT_MAX_SESSIONS, DEFAULT_PORT, HostKeys, Login, UnknownKey};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The longest name of a host. It is a part of routes and of every message about the host.
const NAME_LIMIT: usize = 63;

/// The longest address: what DNS allows.
const ADDRESS_LIMIT: usize = 253;

/// The longest user name, in bytes: what any system takes is far below it.
const USER_LIMIT: usize = 256;

/// The longest path, in bytes (Linux' `PATH_MAX`).
const PATH_LIMIT: usize = 4096;

/// The most keys, and the most files of keys, that one host names.
const LIST_LIMIT: usize = 32;

/// The fewest channels of one connection: what lives as long as the connection needs some, and the rest must get on.
const FEWEST_SESSIONS: u16 = 4;

/// The most channels of one connection. A server with a larger `MaxSessions` gains nothing here: more than that many
/// programs at once wait for its processors.
const SESSIONS_LIMIT: u16 = 1000;

/// The most machines on the way to a machine. More are a mistake.
const JUMPS_LIMIT: usize = 4;

/// Base64 characters of a fingerprint: SHA-256 without padding.
const FINGERPRINT_LENGTH: usize = 43;

/// Other names of fields: those of a session that describes its machine itself (S-061).
const INLINE_NAMES: [(&str, &str); 2] = [("host", "address"), ("key_path", "key_file")];

/// A field that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct WrongField {
    /// Which.
    pub field: String,
    /// What would be right.
    pub why: String,
}

fn wrong(field: &str, why: impl Into<String>) -> WrongField {
    WrongField { field: field.to_owned(), why: why.into() }
}

/// Who the service itself is: what a description leaves open is taken from here.
#[derive(Debug, Clone)]
pub struct Own {
    /// The service's own user.
    pub user: Option<String>,
    /// That user's home directory, absolute.
    pub home: Option<PathBuf>,
    /// How a host is logged in to that names neither a key nor an agent.
    pub login: Login,
}

/// A machine behind SSH as somebody described it: checked, and complete but for the one it goes through.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// What was said, for a file of ours. Names keys by their files; nothing in it is secret.
    given: Map<String, Value>,
    /// Everything but the way there.
    target: SshTarget,
    jump: Option<String>,
}

impl Description {
    /// Reads a description and fills in what it leaves open.
    pub fn read(given: Map<String, Value>, own: &Own) -> Result<Self, WrongField> {
        let mut fields = Fields(given.clone());
        let target = SshTarget {
            address: address(&mut fields)?,
            port: fields
                .fitting("port", "it must be a number from 1 to 65535", |port: &u16| *port > 0)?
                .unwrap_or(DEFAULT_PORT),
            user: user(&mut fields, own)?,
            login: login(&mut fields, own)?,
            host_keys: host_keys(&mut fields, own)?,
            jump: None,
            max_sessions: max_sessions(&mut fields)?,
            task_root: task_root(&mut fields)?,
            codex: codex(&mut fields)?,
        };
        let jump = fields.fitting("jump", "it must be the name of another host", |name: &String| {
            check_name(name).is_ok()
        })?;
        match fields.0.keys().next() {
            Some(unknown) => Err(wrong(
                unknown,
                "there is no such field; there are address, port, user, key_file, agent, jump, host_key, \
                 known_hosts, trust_on_first_use, max_sessions, task_root and codex",
            )),
            None => Ok(Self { given, target, jump }),
        }
    }

    /// The same in a request for a session, where fields may also have their older names.
    pub fn inline(mut given: Map<String, Value>, own: &Own) -> Result<Self, WrongField> {
        for (older, name) in INLINE_NAMES {
            if let Some(value) = given.remove(older)
                && given.insert(name.to_owned(), value).is_some()
            {
                return Err(wrong(older, format!("it is another name of {name}; give one of them")));
            }
        }
        Self::read(given, own).map_err(|refused| match refused.why == MISSING {
            // Told by the name that the specification of sessions has.
            true => wrong("host", MISSING),
            false => refused,
        })
    }

    /// What was said of it.
    pub fn given(&self) -> &Map<String, Value> {
        &self.given
    }

    /// The host that it goes through.
    pub fn jump(&self) -> Option<&str> {
        self.jump.as_deref()
    }

    /// The machine with the whole way to it. `name` is its own name, if it has one; `others` are those that it may go
    /// through.
    pub fn target(
        &self,
        name: Option<&str>,
        others: &BTreeMap<String, Self>,
    ) -> Result<SshTarget, WrongField> {
        let mut way = vec![name.unwrap_or("this host")];
        let mut hops = Vec::new();
        let mut at = self;
        while let Some(jump) = &at.jump {
            way.push(jump);
            if way[..way.len() - 1].contains(&jump.as_str()) {
                return Err(wrong("jump", format!("the way goes in a circle: {}", way.join(" → "))));
            }
            if way.len() > JUMPS_LIMIT + 1 {
                return Err(wrong("jump", format!("the way has more than {JUMPS_LIMIT} machines on it")));
            }
            at = others.get(jump).ok_or_else(|| {
                let known: Vec<_> = others.keys().map(String::as_str).filter(|k| Some(*k) != name).collect();
                let there = match known.is_empty() {
                    true => "there is none".to_owned(),
                    false => format!("there is {}", known.join(", ")),
                };
                wrong("jump", format!("{jump:?} is no host behind SSH that is configured; {there}"))
            })?;
            hops.push(at.target.clone());
        }
        let behind = hops.into_iter().rev().fold(None, |jump, hop| {
            let hop = SshTarget { jump, ..hop };
            Some(Box::new(hop))
        });
        Ok(SshTarget { jump: behind, ..self.target.clone() })
    }
}

/// Why a field is refused that must be there.
const MISSING: &str = "it is missing: the name or the IP address of the machine";

/// Checks the name of a host.
pub fn check_name(name: &str) -> Result<(), WrongField> {
    let of_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = (1..=NAME_LIMIT).contains(&name.len())
        && name.bytes().next().is_some_and(of_word)
        && name.bytes().all(|b| of_word(b) || b"._-".contains(&b));
    match fits {
        false => Err(wrong(
            "name",
            format!(
                "it must be 1 to {NAME_LIMIT} lowercase letters, digits, '.', '_' and '-', and begin with a letter or a digit"
            ),
        )),
        true if name == super::LOCAL => Err(wrong("name", "\"local\" is the name of this machine")),
        true => Ok(()),
    }
}

/// Checks the form of a fingerprint as `ssh-keygen -l` shows it.
pub fn check_fingerprint(text: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/".contains(&b);
    text.strip_prefix("SHA256:")
        .is_some_and(|hash| hash.len() == FINGERPRINT_LENGTH && hash.bytes().all(base64))
}

/// The members of a description, taken out one by one.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a member; `null` is the same as absent. `rule` says what would be right.
    fn fitting<T: DeserializeOwned>(
        &mut self,
        field: &str,
        rule: &str,
        fits: impl FnOnce(&T) -> bool,
    ) -> Result<Option<T>, WrongField> {
        match self.0.remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let value = serde_json::from_value(value).ok().filter(fits);
                value.map(Some).ok_or_else(|| wrong(field, rule))
            }
        }
    }

    /// Takes a member that is one text or a list of them.
    fn texts(
        &mut self,
        field: &str,
        rule: &str,
        fits: impl Fn(&String) -> bool,
    ) -> Result<Option<Vec<String>>, WrongField> {
        let value = self.0.remove(field).filter(|value| !value.is_null());
        let list = match value {
            None => return Ok(None),
            Some(one @ Value::String(_)) => serde_json::from_value(Value::Array(vec![one])),
            Some(value) => serde_json::from_value(value),
        };
        let list: Option<Vec<String>> = list.ok();
        let list = list.filter(|list| (1..=LIST_LIMIT).contains(&list.len()) && list.iter().all(fits));
        list.map(Some).ok_or_else(|| wrong(field, rule))
    }
}

fn address(fields: &mut Fields) -> Result<String, WrongField> {
    let rule = "it must be a name or an IP address, without a user and a port";
    let text: Option<String> = fields.fitting("address", rule, |_| true)?;
    let text = text.ok_or_else(|| wrong("address", MISSING))?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
    let is_ip = bare.parse::<std::net::IpAddr>().is_ok();
    let is_name = |name: &str| {
        (1..=ADDRESS_LIMIT).contains(&name.len())
            && !name.starts_with(['-', '.'])
            && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    // A scope belongs to some IPv6 addresses: fe80::1%eth0.
    let is_scoped = bare
        .split_once('%')
        .is_some_and(|(ip, scope)| ip.parse::<std::net::Ipv6Addr>().is_ok() && is_name(scope));
    match is_ip || is_scoped || is_name(&text) {
        true => Ok(bare.to_owned()),
        false => Err(wrong("address", rule)),
    }
}

fn user(fields: &mut Fields, own: &Own) -> Result<String, WrongField> {
    let rule = "it must be the name of a user over there, without spaces";
    let fits = |user: &String| {
        (1..=USER_LIMIT).contains(&user.len()) && !user.chars().any(|c| c.is_whitespace() || c.is_control())
    };
    let user = fields.fitting("user", rule, fits)?.or_else(|| own.user.clone());
    user.ok_or_else(|| wrong("user", "it is missing, and the service's own user has no name to take instead"))
}

fn login(fields: &mut Fields, own: &Own) -> Result<Login, WrongField> {
    let rule = "it must be the file of a private key, absolute or below ~/";
    let key: Option<PathBuf> = match fields.fitting("key_file", rule, |_: &String| true)? {
        Some(file) => Some(path("key_file", &file, rule, own)?),
        None => None,
    };
    let rule = "it must be true, or the path of an agent's socket, absolute or below ~/";
    let agent =
        match fields.fitting("agent", rule, |value: &Value| value.is_boolean() || value.is_string())? {
            None | Some(Value::Bool(false)) => None,
            Some(Value::String(socket)) => Some(Some(path("agent", &socket, rule, own)?)),
            Some(_) => Some(None),
        };
    match (key, agent) {
        (Some(_), Some(_)) => Err(wrong("agent", "there is a key_file already; give one of them")),
        (Some(file), None) => Ok(Login::KeyFile(file)),
        (None, Some(socket)) => Ok(Login::Agent(socket)),
        (None, None) => Ok(own.login.clone()),
    }
}

fn host_keys(fields: &mut Fields, own: &Own) -> Result<HostKeys, WrongField> {
    let rule = "it must be a fingerprint as `ssh-keygen -l` shows it (SHA256:…), a public key (ssh-ed25519 AAAA…), or a \
                list of such";
    let is_key = |text: &String| check_fingerprint(text) || is_public_key(text);
    let pinned = fields.texts("host_key", rule, is_key)?.unwrap_or_default();
    let rule =
        "it must be the path of a file in the format of OpenSSH, absolute or below ~/, or a list of such";
    let known_hosts = match fields.texts("known_hosts", rule, |_| true)? {
        Some(files) => {
            files.iter().map(|file| path("known_hosts", file, rule, own)).collect::<Result<Vec<_>, _>>()?
        }
        None => own.home.iter().map(|home| home.join(".ssh/known_hosts")).collect(),
    };
    let trust = fields.fitting("trust_on_first_use", "it must be true or false", |_: &bool| true)?;
    let unknown = match trust.unwrap_or(false) {
        true if !pinned.is_empty() => {
            return Err(wrong("trust_on_first_use", "there is a host_key already, and nothing else counts"));
        }
        true => UnknownKey::Trust,
        false => UnknownKey::Refuse,
    };
    Ok(HostKeys { pinned, known_hosts, unknown })
}

fn is_public_key(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let algorithm = words.next().is_some_and(|word| word.starts_with("ssh-") || word.starts_with("ecdsa-"));
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    algorithm && words.next().is_some_and(|key| key.starts_with("AAAA") && key.bytes().all(base64))
}

fn max_sessions(fields: &mut Fields) -> Result<u16, WrongField> {
    let rule = format!("it must be a number from {FEWEST_SESSIONS} to {SESSIONS_LIMIT}");
    let given = fields
        .fitting("max_sessions", &rule, |most: &u16| (FEWEST_SESSIONS..=SESSIONS_LIMIT).contains(most))?;
    Ok(given.unwrap_or(DEFAULT_MAX_SESSIONS))
}

fn task_root(fields: &mut Fields) -> Result<Option<PathBuf>, WrongField> {
    let rule = "it must be an absolute path of a directory over there, not the root and without \"..\"";
    let given: Option<String> = fields.fitting("task_root", rule, |_| true)?;
    let Some(given) = given else { return Ok(None) };
    let root = Path::new(&given);
    let plain = !given.split('/').any(|part| part == "..") && is_path(&given);
    match root.is_absolute() && plain && root.parent().is_some() {
        // Without a trailing slash (S-057).
        true => Ok(Some(root.components().collect())),
        false => Err(wrong("task_root", rule)),
    }
}

fn codex(fields: &mut Fields) -> Result<Option<PathBuf>, WrongField> {
    let rule = "it must be the path of the codex program over there, absolute or below ~/";
    let fits = |path: &String| is_path(path) && (path.starts_with('/') || path.starts_with("~/"));
    Ok(fields.fitting("codex", rule, fits)?.map(PathBuf::from))
}

fn is_path(text: &str) -> bool {
    text.len() <= PATH_LIMIT && !text.chars().any(char::is_control)
}

/// A path on the service's own machine.
fn path(field: &str, given: &str, rule: &str, own: &Own) -> Result<PathBuf, WrongField> {
    if !is_path(given) {
        return Err(wrong(field, rule));
    }
    match given.strip_prefix("~/").map(|rest| rest.trim_start_matches('/')) {
        Some("") => Err(wrong(field, rule)),
        Some(rest) => match &own.home {
            Some(home) => Ok(home.join(rest)),
            None => Err(wrong(field, "the service's own user has no home directory; give an absolute path")),
        },
        None if Path::new(given).is_absolute() => Ok(given.into()),
        None => Err(wrong(field, rule)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    const FINGERPRINT: &str = "SHA256:uNiVztksCsDhcc0u9e8BrsR6hlMaFmeqhKDKtmVqzi8";

    fn own() -> Own {
        Own {
            user: Some("ada".to_owned()),
            home: Some("/home/ada".into()),
            login: Login::KeyFile("/home/ada/.ssh/id_ed25519".into()),
        }
    }

    fn read(fields: Value) -> Result<Description, WrongField> {
        Description::read(fields.as_object().unwrap().clone(), &own())
    }

    fn target(fields: Value) -> SshTarget {
        read(fields).unwrap().target(Some("box"), &BTreeMap::new()).unwrap()
    }

    #[test]
    fn an_address_is_enough() {
        let target = target(json!({ "address": "box.example.org" }));
        assert_eq!((target.port, target.user.as_str(), target.max_sessions), (22, "ada", 10));
        assert_eq!(target.login, own().login);
        assert_eq!(target.host_keys.known_hosts, [PathBuf::from("/home/ada/.ssh/known_hosts")]);
        assert_eq!((target.host_keys.unknown, target.host_keys.pinned.len()), (UnknownKey::Refuse, 0));
    }

    #[test]
    fn what_is_said_wins() {
        let all = target(json!({
            "address": "[::1]", "port": 2222, "user": "dev", "agent": "~/agent.sock", "host_key": FINGERPRINT,
            "known_hosts": ["/etc/known", "~/known"], "max_sessions": 4, "task_root": "/srv/optio/", "codex": "~/bin/codex", "jump": null,
        }));
        assert_eq!((all.address.as_str(), all.port, all.user.as_str()), ("::1", 2222, "dev"));
        assert_eq!(all.login, Login::Agent(Some("/home/ada/agent.sock".into())));
        assert_eq!(all.host_keys.pinned, [FINGERPRINT]);
        assert_eq!(all.host_keys.known_hosts, ["/etc/known", "/home/ada/known"].map(PathBuf::from));
        assert_eq!((all.max_sessions, all.task_root.unwrap().to_str().unwrap()), (4, "/srv/optio"));
        assert_eq!(all.codex.unwrap().to_str().unwrap(), "~/bin/codex");
        assert_eq!(target(json!({ "address": "a", "agent": true })).login, Login::Agent(None));
        assert_eq!(target(json!({ "address": "a", "agent": false })).login, own().login);
        let trusted = target(json!({ "address": "a", "trust_on_first_use": true }));
        assert_eq!(trusted.host_keys.unknown, UnknownKey::Trust);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        for (more, field) in [
            (json!({ "address": null }), "address"),
            (json!({ "address": 7 }), "address"),
            (json!({ "address": "" }), "address"),
            (json!({ "address": "dev@box" }), "address"),
            (json!({ "address": "box:22" }), "address"),
            (json!({ "address": "-oProxyCommand=x" }), "address"),
            (json!({ "address": "a b" }), "address"),
            (json!({ "port": 0 }), "port"),
            (json!({ "port": 65536 }), "port"),
            (json!({ "port": "22" }), "port"),
            (json!({ "user": "" }), "user"),
            (json!({ "user": "a\nb" }), "user"),
            (json!({ "key_file": "id" }), "key_file"),
            (json!({ "key_file": "~" }), "key_file"),
            (json!({ "key_file": "~/" }), "key_file"),
            (json!({ "key_file": ["/a"] }), "key_file"),
            (json!({ "agent": "sock" }), "agent"),
            (json!({ "agent": 1 }), "agent"),
            (json!({ "agent": true, "key_file": "/a" }), "agent"),
            (json!({ "host_key": "MD5:00:11" }), "host_key"),
            (json!({ "host_key": "SHA256:short" }), "host_key"),
            (json!({ "host_key": [] }), "host_key"),
            (json!({ "host_key": [FINGERPRINT, 7] }), "host_key"),
            (json!({ "known_hosts": "here" }), "known_hosts"),
            (json!({ "known_hosts": [] }), "known_hosts"),
            (json!({ "trust_on_first_use": "yes" }), "trust_on_first_use"),
            (json!({ "trust_on_first_use": true, "host_key": FINGERPRINT }), "trust_on_first_use"),
            (json!({ "max_sessions": 3 }), "max_sessions"),
            (json!({ "max_sessions": 1001 }), "max_sessions"),
            (json!({ "task_root": "" }), "task_root"),
            (json!({ "codex": "bin/codex" }), "codex"),
            (json!({ "task_root": "/" }), "task_root"),
            (json!({ "task_root": "tasks" }), "task_root"),
            (json!({ "task_root": "/srv/../etc" }), "task_root"),
            (json!({ "jump": "Gate" }), "jump"),
            (json!({ "jump": "local" }), "jump"),
            (json!({ "password": "hunter2" }), "password"),
        ] {
            let mut fields = json!({ "address": "box" });
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let refused = read(fields).expect_err(&more.to_string());
            assert_eq!(refused.field, field, "{more}: {refused}");
            assert!(!refused.why.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn the_way_to_a_machine_is_followed_to_its_beginning() {
        let mut all = BTreeMap::new();
        for (name, jump) in
            [("box", Some("gate")), ("gate", Some("door")), ("door", None), ("self", Some("self"))]
        {
            all.insert(name.to_owned(), read(json!({ "address": name, "jump": jump })).unwrap());
        }
        let target = all["box"].target(Some("box"), &all).unwrap();
        let gate = target.jump.unwrap();
        assert_eq!((target.address.as_str(), gate.address.as_str()), ("box", "gate"));
        let door = gate.jump.unwrap();
        assert_eq!((door.address.as_str(), door.jump), ("door", None));

        let circle = all["self"].target(Some("self"), &all).unwrap_err();
        assert!(circle.field == "jump" && circle.why.contains("self → self"), "{circle}");
        all.insert("door".to_owned(), read(json!({ "address": "door", "jump": "box" })).unwrap());
        let circle = all["box"].target(Some("box"), &all).unwrap_err();
        assert!(circle.why.contains("box → gate → door → box"), "{circle}");
        // It is on no circle itself, but its way leads into one.
        let outside = read(json!({ "address": "x", "jump": "gate" })).unwrap();
        assert!(outside.target(None, &all).unwrap_err().why.contains("circle"));
        let nowhere = read(json!({ "address": "x", "jump": "nowhere" })).unwrap();
        let refused = nowhere.target(Some("x"), &all).unwrap_err();
        assert!(refused.why.contains("\"nowhere\"") && refused.why.contains("box, door, gate"), "{refused}");
    }

    #[test]
    fn a_session_may_use_the_older_names() {
        let older = json!({ "host": "box", "user": "dev", "key_path": "/k", "port": 22 });
        let ours = json!({ "address": "box", "user": "dev", "key_file": "/k" });
        let inline = |fields: Value| Description::inline(fields.as_object().unwrap().clone(), &own());
        let none = BTreeMap::new();
        assert_eq!(
            inline(older).unwrap().target(None, &none).unwrap(),
            inline(ours).unwrap().target(None, &none).unwrap()
        );
        assert_eq!(inline(json!({ "host": "a", "address": "b" })).unwrap_err().field, "host");
        assert_eq!(read(json!({ "host": "a", "address": "b" })).unwrap_err().field, "host");
        assert_eq!(inline(json!({ "user": "dev" })).unwrap_err().field, "host");
    }

    #[test]
    fn names_are_plain_words() {
        for good in ["a", "box", "box-1.example_x", "0", &"a".repeat(63)] {
            check_name(good).unwrap();
        }
        for bad in ["", "local", "Box", ".a", "-a", "a b", "a/b", "ä", "ssh:u@h:22", &"a".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().field, "name", "{bad}");
        }
    }
}
