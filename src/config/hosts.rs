//! The machines behind SSH: `[hosts.NAME]` of the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use optio_actors::hosts::{Description, Own, WrongField, check_name};
use optio_host::ssh::Login;
use serde_json::{Map, Value};

/// Where OpenSSH makes a key that is not named otherwise.
const DEFAULT_KEY: &str = ".ssh/id_ed25519";

/// The tables of the file, by name. What a host says is read where the API's hosts are read, too.
pub type HostOptions = BTreeMap<String, Map<String, Value>>;

/// Who runs this service, as far as hosts want to know.
pub(super) fn own(home: Option<PathBuf>) -> Own {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    // A user of a directory service stands in no file.
    let of_session = || ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let home = home.filter(|home| home.is_absolute());
    let key = home.as_ref().map(|home| home.join(DEFAULT_KEY)).filter(|key| key.exists());
    Own {
        user: user_of(uid, &passwd).or_else(of_session).filter(|user| !user.is_empty()),
        login: key.map_or(Login::Agent(None), Login::KeyFile),
        home,
    }
}

/// The name of a user in the text of an `/etc/passwd`.
fn user_of(uid: u32, passwd: &str) -> Option<String> {
    let of_line = |line: &str| {
        let mut words = line.split(':');
        let (name, third) = (words.next()?, words.nth(1)?);
        (third.parse() == Ok(uid)).then(|| name.to_owned())
    };
    passwd.lines().find_map(of_line)
}

/// Checks every host, and the way to it. What is wrong is named as `hosts.NAME.FIELD`.
pub(super) fn hosts(options: HostOptions, own: &Own) -> Result<BTreeMap<String, Description>> {
    let mut all = BTreeMap::new();
    for (name, fields) in options {
        check_name(&name).map_err(|wrong| anyhow!("hosts.{name}: {}", wrong.why))?;
        let read = Description::read(fields, own).map_err(|wrong| of_host(&name, &wrong))?;
        all.insert(name, read);
    }
    for (name, host) in &all {
        host.target(Some(name), &all).map_err(|wrong| of_host(name, &wrong))?;
    }
    Ok(all)
}

fn of_host(name: &str, wrong: &WrongField) -> anyhow::Error {
    anyhow!("hosts.{name}.{wrong}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(toml: &str) -> Result<BTreeMap<String, Description>> {
        let own =
            Own { user: Some("ada".to_owned()), home: Some("/home/ada".into()), login: Login::Agent(None) };
        hosts(toml::from_str(toml)?, &own)
    }

    #[test]
    fn a_host_is_a_table_and_may_go_through_another() {
        let toml = "[gate]\naddress = 'gate.example.org'\n\
                    [box]\naddress = '10.0.0.7'\nport = 2222\nuser = 'dev'\nkey_file = '~/.ssh/box'\njump = 'gate'";
        let all = read(toml).unwrap();
        let target = all["box"].target(Some("box"), &all).unwrap();
        assert_eq!((target.port, target.user.as_str()), (2222, "dev"));
        assert_eq!(target.login, Login::KeyFile("/home/ada/.ssh/box".into()));
        assert_eq!(target.jump.unwrap().address, "gate.example.org");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_host_and_its_field() {
        for (toml, said) in [
            ("[local]\naddress = 'a'", "hosts.local: \"local\" is the name of this machine"),
            ("['Big Box']\naddress = 'a'", "hosts.Big Box: it must be"),
            ("[box]", "hosts.box.address: it is missing"),
            ("[box]\naddress = 'a'\nadress = 'b'", "hosts.box.adress: there is no such field"),
            ("[box]\naddress = 'a'\nport = 'ssh'", "hosts.box.port: it must be a number"),
            ("[box]\naddress = 'a'\njump = 'gate'", "hosts.box.jump: \"gate\" is no host"),
            ("[box]\naddress = 'a'\njump = 'box'", "hosts.box.jump: the way goes in a circle"),
            ("[box]\naddress = 'a'\nkey_file = 'id'", "hosts.box.key_file: it must be the file"),
        ] {
            let wrong = format!("{:#}", read(toml).unwrap_err());
            assert!(wrong.contains(said), "{toml}: {wrong}");
        }
    }

    #[test]
    fn a_user_is_found_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:1000::/home/ada:/bin/bash\n";
        assert_eq!(user_of(1000, passwd).as_deref(), Some("ada"));
        assert_eq!(user_of(1, passwd), None);
    }
}
