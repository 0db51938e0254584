//! Programs on a real machine from a server of releases on loopback. Each request is made by a process of its own, whose
//! home, cache and `PATH` are the test's.

#![allow(clippy::unwrap_used)]

#[path = "../../../tests/kit/src/releases.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod releases;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use releases::{Act, ReleaseServer};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const VERSION: &str = "0.142.5";

fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(program.is_file(), "{} is not built: run `cargo build --examples`", program.display());
    program
}

/// A native codex that says this version, or never answers.
fn codex(version: &str) -> Vec<u8> {
    let mut program = std::fs::read(example("fake_codex")).unwrap();
    program.extend_from_slice(format!("{version:>32}").as_bytes());
    program
}

fn install(path: &Path, program: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Never in place: a program that runs cannot be written.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, program).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn tarball(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        } else if name.starts_with("link") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name("/bin/sh").unwrap();
        }
        header.set_cksum();
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The version that a service is told to take.
fn version(tool: &str) -> &'static str {
    if tool == "ttyd" { "1.7.7" } else { VERSION }
}

/// A machine of its own: a home, a `PATH`, and a server of releases.
struct Machine {
    temp: TempDir,
    server: ReleaseServer,
    sum: String,
}

#[derive(Debug)]
struct Said(Vec<String>);

impl Said {
    fn ok(&self) -> Vec<&str> {
        self.0.iter().filter_map(|line| line.strip_prefix("ok ")).collect()
    }

    fn error(&self) -> &str {
        let mut errors = self.0.iter().filter_map(|line| line.strip_prefix("error "));
        errors.next().unwrap_or_else(|| panic!("it was not refused: {self:#?}"))
    }

    fn percents(&self) -> Vec<u8> {
        self.0.iter().filter_map(|line| line.strip_prefix("- ")?.split(' ').next()?.parse().ok()).collect()
    }
}

impl Machine {
    /// A machine without codex, and a server that has one.
    fn new() -> Self {
        let mut machine =
            Self { temp: tempfile::tempdir().unwrap(), server: ReleaseServer::start(), sum: String::new() };
        for dir in ["home", "bin"] {
            std::fs::create_dir(machine.temp.path().join(dir)).unwrap();
        }
        // A login shell sets PATH anew; its user's profile has the last word.
        let profile = format!("PATH={}\n", machine.path());
        std::fs::write(machine.temp.path().join("home/.profile"), profile).unwrap();
        machine.serve(tarball(&[("codex-of-this-machine", &codex(VERSION))]));
        machine
    }

    fn serve(&mut self, bytes: Vec<u8>) {
        self.sum = sum(&bytes);
        self.server.put(&Self::codex_path(), bytes);
    }

    fn path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.temp.path().join("bin").display())
    }

    fn codex_path() -> String {
        let arch = std::env::consts::ARCH;
        format!("/rust-v{VERSION}/codex-{arch}-unknown-linux-musl.tar.gz")
    }

    fn cache(&self) -> PathBuf {
        self.temp.path().join("home/.cache/optio-codex/bin")
    }

    fn entry(&self) -> PathBuf {
        self.cache().join(format!("codex-{VERSION}"))
    }

    fn begin(&self, service: &str, words: &[&str]) -> Child {
        self.begin_with(version(words[0]), service, words)
    }

    fn begin_with(&self, version: &str, service: &str, words: &[&str]) -> Child {
        let dir = self.temp.path().join(service);
        let mut command = Command::new(example("provide"));
        command.args(&words[..2]).arg(dir).arg(self.server.url());
        command.arg(version).arg(&self.sum).args(&words[2..]);
        command.env_clear().env("HOME", self.temp.path().join("home")).env("PATH", self.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn end(child: Child) -> Said {
        // Kept open: its end would be taken for nothing, but a closed one is no cancel either.
        let said = child.wait_with_output().unwrap();
        Said(String::from_utf8(said.stdout).unwrap().lines().map(str::to_owned).collect())
    }

    fn provide(&self) -> Said {
        Self::end(self.begin("one", &["codex", "1"]))
    }

    /// Everything in the cache, relative to it.
    fn cached(&self) -> Vec<String> {
        fn walk(dir: &Path, names: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { walk(&path, names) } else { names.push(path) }
            }
        }
        let mut names = Vec::new();
        walk(&self.cache(), &mut names);
        let relative = |path: &PathBuf| path.strip_prefix(self.cache()).unwrap().display().to_string();
        let mut names: Vec<_> = names.iter().map(relative).collect();
        names.sort();
        names
    }

    /// The names in a service's own directory of downloads.
    fn downloads(&self, service: &str) -> Vec<String> {
        let dir = self.temp.path().join(service).join("downloads");
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    fn assert_only_codex(&self, said: &Said) {
        let program = self.entry().join("codex");
        assert_eq!(said.ok(), [format!("{} {VERSION}", program.display())], "{said:#?}");
        assert_eq!(self.cached(), [format!("codex-{VERSION}/codex"), format!("codex-{VERSION}/stamp")]);
    }

    fn assert_nothing(&self, said: &Said) {
        assert!(said.ok().is_empty(), "{said:#?}");
        assert_eq!(self.cached(), [""; 0], "{said:#?}");
    }
}

#[test]
fn a_release_is_downloaded_once_and_found_in_the_cache_after_that() {
    let machine = Machine::new();
    let first = machine.provide();
    machine.assert_only_codex(&first);
    let percents = first.percents();
    assert_eq!(percents.last(), Some(&100), "{first:#?}");
    assert!(percents.is_sorted_by(|a, b| a < b), "{percents:?}");
    assert!(
        first.0.iter().any(|line| line.contains(VERSION) && line.contains("unknown-linux-musl")),
        "{first:#?}"
    );

    let second = machine.provide();
    machine.assert_only_codex(&second);
    assert!(second.percents().is_empty(), "{second:#?}");
    assert_eq!(machine.server.asked().len(), 1);
}

#[test]
fn twenty_cold_starts_of_two_services_at_once_download_once_each_and_leave_one_program() {
    let machine = Machine::new();
    let services = ["one", "two"].map(|service| machine.begin(service, &["codex", "20"]));
    let said = services.map(Machine::end);
    for said in &said {
        assert_eq!(said.ok().len(), 20, "{said:#?}");
    }
    let program = format!("{} {VERSION}", machine.entry().join("codex").display());
    assert!(said.iter().flat_map(Said::ok).all(|found| found == program));
    assert!(machine.server.asked().len() <= 2, "{:?}", machine.server.asked());
    assert_eq!(machine.cached(), [format!("codex-{VERSION}/codex"), format!("codex-{VERSION}/stamp")]);
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let machine = Machine::new();
    machine.server.next(&Machine::codex_path(), [Act::Cut(100_000), Act::Status(503), Act::Cut(50_000)]);
    let said = machine.provide();
    machine.assert_only_codex(&said);
    let from: Vec<_> = machine.server.asked().iter().map(|asked| asked.from).collect();
    assert_eq!(from, [None, Some(100_000), Some(100_000), Some(150_000)]);
}

#[test]
fn without_a_validator_a_cut_download_begins_anew() {
    let machine = Machine::new();
    machine.server.without_etag(&Machine::codex_path());
    machine.server.next(&Machine::codex_path(), [Act::Cut(100_000), Act::NoLength]);
    let said = machine.provide();
    machine.assert_only_codex(&said);
    assert!(machine.server.asked().iter().all(|asked| asked.from.is_none()));
}

#[test]
fn a_server_that_cannot_is_named_with_what_to_do() {
    let machine = Machine::new();
    let path = Machine::codex_path();
    for (acts, word) in [
        (vec![Act::Status(404)], "404"),
        (vec![Act::Status(500); 4], "500"),
        (vec![Act::Cut(10); 4], "cut"),
        (vec![Act::Redirect("http://releases.example/x".into())], "neither https"),
    ] {
        machine.server.next(&path, acts);
        let said = machine.provide();
        machine.assert_nothing(&said);
        let error = said.error();
        assert!(
            error.contains(word) && error.contains(&path) && error.contains("codex_release_url"),
            "{error}"
        );
    }
    // None of it keeps the next one from working.
    machine.server.next(&path, [Act::Redirect(format!("{}{path}", machine.server.url()))]);
    machine.assert_only_codex(&machine.provide());
}

#[test]
fn what_does_not_hash_to_its_pin_is_never_unpacked() {
    let mut machine = Machine::new();
    let good = machine.sum.clone();
    machine.serve(tarball(&[("codex", &codex("0.666.0"))]));
    let bad = std::mem::replace(&mut machine.sum, good.clone());
    let said = machine.provide();
    machine.assert_nothing(&said);
    let error = said.error();
    assert!(
        [&good, &bad].iter().all(|sum| error.contains(*sum)) && error.contains("unknown-linux"),
        "{error}"
    );
    assert_eq!(machine.downloads("one"), [""; 0]);
}

#[test]
fn a_rest_of_another_file_is_found_out_and_the_download_begins_anew() {
    let machine = Machine::new();
    let path = Machine::codex_path();
    machine.server.next(&path, [Act::Cut(100_000), Act::Cut(0), Act::Cut(0), Act::Cut(0)]);
    machine.provide().error();
    let part = machine.downloads("one").into_iter().find(|name| name.ends_with(".part")).unwrap();
    let part = machine.temp.path().join("one/downloads").join(part);
    std::fs::write(&part, vec![0; 100_000]).unwrap();
    machine.assert_only_codex(&machine.provide());
}

#[test]
fn a_release_without_a_pin_is_refused_unasked() {
    let mut machine = Machine::new();
    machine.sum = "unknown".to_owned();
    let said = machine.provide();
    machine.assert_nothing(&said);
    assert!(said.error().contains("[provision.codex] sha256."), "{said:#?}");
    assert!(machine.server.asked().is_empty());
}

#[test]
fn a_tarball_with_anything_but_one_file_is_refused_and_leaves_nothing() {
    let program = codex(VERSION);
    for entries in [
        vec![("codex", program.as_slice()), ("more", b"x")],
        vec![("bin/", b""), ("bin/codex", program.as_slice())],
        vec![("codex", program.as_slice()), ("empty/", b"")],
        vec![("link", b"")],
    ] {
        let mut machine = Machine::new();
        machine.serve(tarball(&entries));
        let said = machine.provide();
        machine.assert_nothing(&said);
        assert!(said.error().contains("exactly one"), "{said:#?}");
    }
}

#[test]
fn a_release_that_is_not_what_it_should_be_is_refused_and_leaves_nothing() {
    for program in [codex("0.142.4"), codex("nonsense"), b"\x7fELF".to_vec(), b"#!/bin/sh\n".to_vec()] {
        let mut machine = Machine::new();
        machine.serve(tarball(&[("codex", &program)]));
        let said = machine.provide();
        machine.assert_nothing(&said);
        assert!(said.error().contains("cannot be used"), "{said:#?}");
    }
}

#[test]
fn a_service_that_is_killed_in_a_download_goes_on_with_it_at_its_next_start() {
    let machine = Machine::new();
    machine.server.next(&Machine::codex_path(), [Act::Hold(200_000)]);
    let mut service = machine.begin("one", &["codex", "1"]);
    machine.server.wait_held();
    let part = machine.temp.path().join("one/downloads");
    let arrived = || {
        let parts = std::fs::read_dir(&part).into_iter().flatten().flatten();
        parts
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "part"))
            .any(|entry| entry.metadata().unwrap().len() == 200_000)
    };
    while !arrived() {
        assert!(service.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    service.kill().unwrap();
    service.wait().unwrap();
    machine.assert_only_codex(&machine.provide());
    assert_eq!(machine.server.asked()[1].from, Some(200_000));
}

#[test]
fn what_a_killed_service_left_on_the_host_is_removed_by_its_next_start() {
    let machine = Machine::new();
    let left = machine.cache().join(".optio-one-before-x");
    let others = machine.cache().join(".optio-other-before-x");
    for dir in [&left, &others] {
        install(&dir.join("codex"), b"half");
    }
    machine.provide();
    assert!(!left.exists() && others.exists(), "{:?}", machine.cached());
}

#[test]
fn a_download_that_nobody_waits_for_any_more_is_removed() {
    use std::io::Write;
    let machine = Machine::new();
    machine.server.next(&Machine::codex_path(), [Act::Hold(200_000)]);
    let mut service = machine.begin("one", &["codex", "1"]);
    machine.server.wait_held();
    service.stdin.as_mut().unwrap().write_all(b"stop\n").unwrap();
    let said = Machine::end(service);
    machine.assert_nothing(&said);
    assert!(said.error().contains("nobody waits"), "{said:#?}");
    assert_eq!(machine.downloads("one"), [""; 0]);
    machine.server.go_on();
    machine.assert_only_codex(&machine.provide());
}

#[test]
fn a_bad_entry_of_the_cache_is_replaced() {
    let machine = Machine::new();
    machine.provide();
    let program = machine.entry().join("codex");
    type Poison = fn(&Path);
    let poisons: [(&str, Poison); 6] = [
        ("not executable", |program| {
            std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("another version", |program| install(program, &codex("0.150.0"))),
        ("hangs", |program| install(program, &codex("hang"))),
        ("a script", |program| install(program, b"#!/bin/sh\necho codex-cli 0.142.5\n")),
        ("gone", |program| std::fs::remove_file(program).unwrap()),
        ("no stamp", |program| std::fs::remove_file(program.with_file_name("stamp")).unwrap()),
    ];
    for (what, poison) in poisons {
        poison(&program);
        let said = machine.provide();
        println!("{what}");
        machine.assert_only_codex(&said);
    }
    assert_eq!(machine.server.asked().len(), 1, "the file is still there, and checked");
}

#[test]
fn another_pin_is_another_entry_and_the_old_one_serves_while_the_new_one_cannot_be_had() {
    let mut machine = Machine::new();
    let old = machine.provide();
    let new = "0.151.0";
    let path = Machine::codex_path().replace(VERSION, new);
    let bytes = tarball(&[("codex", &codex(new))]);
    machine.sum = sum(&bytes);
    machine.server.put(&path, bytes);
    machine.server.next(&path, vec![Act::Status(503); 4]);
    let provide = || Machine::end(machine.begin_with(new, "one", &["codex", "1"]));
    let said = provide();
    assert_eq!(said.ok(), old.ok(), "{said:#?}");
    assert!(said.0.iter().any(|line| line.contains("used instead")), "{said:#?}");

    let program = machine.cache().join(format!("codex-{new}/codex"));
    assert_eq!(provide().ok(), [format!("{} {new}", program.display())]);
    // A file that is not there is a mistake, which must not go unnoticed.
    let said = Machine::end(machine.begin_with("0.152.0", "one", &["codex", "1"]));
    assert!(said.error().contains("404"), "{said:#?}");
    // Only the newest file stays.
    assert_eq!(machine.downloads("one").len(), 1, "{:?}", machine.downloads("one"));
}

#[test]
fn an_entry_that_is_a_link_is_replaced_and_its_target_stays() {
    let machine = Machine::new();
    let elsewhere = machine.temp.path().join("elsewhere");
    install(&elsewhere.join("codex"), &codex(VERSION));
    std::fs::create_dir_all(machine.cache()).unwrap();
    symlink(&elsewhere, machine.entry()).unwrap();
    machine.assert_only_codex(&machine.provide());
    assert!(elsewhere.join("codex").is_file());
}

#[test]
fn the_hosts_own_codex_is_copied_with_what_its_sandbox_needs() {
    let machine = Machine::new();
    let package = machine.temp.path().join("package");
    install(&package.join("bin/codex"), &codex("0.150.1"));
    install(&package.join("codex-resources/bwrap"), b"bwrap");
    symlink(package.join("bin/codex"), machine.temp.path().join("bin/codex")).unwrap();
    let said = machine.provide();
    let entry = format!("codex-{VERSION}");
    assert_eq!(said.ok(), [format!("{} 0.150.1", machine.entry().join("codex").display())], "{said:#?}");
    let want = ["codex", "codex-resources/bwrap", "stamp"].map(|name| format!("{entry}/{name}"));
    assert_eq!(machine.cached(), want);
    assert!(machine.server.asked().is_empty());

    // An update of the operator's changes nothing here.
    install(&package.join("bin/codex"), &codex("0.151.0"));
    assert_eq!(machine.provide().ok(), said.ok());
}

#[test]
fn a_codex_that_does_not_do_makes_room_for_the_release() {
    for own in [b"#!/bin/sh\necho codex-cli 0.142.5\n".to_vec(), codex("0.1.0"), codex("hang")] {
        let machine = Machine::new();
        install(&machine.temp.path().join("bin/codex"), &own);
        machine.assert_only_codex(&machine.provide());
    }
}

#[test]
fn nothing_is_installed_where_that_is_forbidden() {
    let machine = Machine::new();
    let said = Machine::end(machine.begin("one", &["codex", "1", "forbid"]));
    machine.assert_nothing(&said);
    assert!(said.error().contains("install_if_missing=False"), "{said:#?}");

    let own = machine.temp.path().join("bin/codex");
    install(&own, &codex("0.150.1"));
    let said = Machine::end(machine.begin("one", &["codex", "1", "forbid"]));
    assert_eq!(said.ok(), [format!("{} 0.150.1", own.canonicalize().unwrap().display())], "{said:#?}");
    assert_eq!(machine.cached(), [""; 0]);
    assert!(machine.server.asked().is_empty());
}

#[test]
fn a_ttyd_is_downloaded_into_its_place_and_a_broken_one_there_is_replaced() {
    let mut machine = Machine::new();
    let ttyd = b"#!/bin/sh\necho ttyd version 1.7.7-40e79c7\n";
    machine.sum = sum(ttyd);
    machine.server.put(&format!("/1.7.7/ttyd.{}", std::env::consts::ARCH), ttyd);
    let place = machine.temp.path().join("home/.local/bin/ttyd");
    let found = format!("{} 1.7.7-40e79c7", place.display());
    for broken in [None, Some(&b"#!/bin/sh\nexit 1\n"[..]), Some(b"#!/bin/sh\necho ttyd version 1.6.3\n")] {
        if let Some(broken) = broken {
            install(&place, broken);
        }
        let said = Machine::end(machine.begin("one", &["ttyd", "5"]));
        assert_eq!(said.ok(), [found.as_str(); 5], "{said:#?}");
    }
    let names: Vec<_> =
        std::fs::read_dir(place.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["ttyd"]);
    assert_eq!(machine.server.asked().len(), 1);

    install(&place, b"#!/bin/sh\nexit 1\n");
    install(&machine.temp.path().join("bin/ttyd"), b"#!/bin/sh\necho ttyd version 1.7.4\n");
    let said = Machine::end(machine.begin("one", &["ttyd", "1", "forbid"]));
    assert!(said.ok()[0].ends_with("bin/ttyd 1.7.4"), "{said:#?}");
    std::fs::remove_file(machine.temp.path().join("bin/ttyd")).unwrap();
    let said = Machine::end(machine.begin("one", &["ttyd", "1", "forbid"]));
    assert!(said.error().contains("install_ttyd_if_missing=False"), "{said:#?}");
}
