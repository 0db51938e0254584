//! README.md and ARCHITECTURE.md name only what there is.
//!
//! In backticks: a path (with a slash, or ending as a source file does) must be a file or directory; a name with a capital
//! must be a type, one in capitals a constant, any other single word a word of the sources. `make x` must be a target, and
//! links must lead somewhere. Routes, flags' values and shell are not looked at.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PAGES: [&str; 2] = ["README.md", "ARCHITECTURE.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()))
}

/// The Rust sources of every room.
fn sources() -> Vec<PathBuf> {
    let mut rooms =
        Vec::from(["src", "actors", "web", "crates", "tests", "examples"].map(|room| root().join(room)));
    let mut files = Vec::new();
    while let Some(dir) = rooms.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("node_modules") {
                rooms.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// What stands in single backticks outside of fenced blocks, and what stands in fenced blocks.
fn quoted(page: &str) -> (Vec<String>, String) {
    let (mut prose, mut fenced, mut inside) = (String::new(), String::new(), false);
    for line in page.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else {
            let to = if inside { &mut fenced } else { &mut prose };
            to.push_str(line);
            to.push('\n');
        }
    }
    (prose.split('`').skip(1).step_by(2).map(str::to_owned).collect(), fenced)
}

/// The names of the sources.
struct Sources {
    types: BTreeSet<String>,
    constants: BTreeSet<String>,
    words: BTreeSet<String>,
}

impl Sources {
    fn read() -> Self {
        let mut found = Self { types: BTreeSet::new(), constants: BTreeSet::new(), words: BTreeSet::new() };
        for file in sources() {
            let text = read(file);
            let words =
                text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
            let mut before = "";
            for word in words {
                match before {
                    "struct" | "enum" | "trait" | "type" => found.types.insert(word.to_owned()),
                    "const" | "static" => found.constants.insert(word.to_owned()),
                    _ => found.words.insert(word.to_owned()),
                };
                before = word;
            }
        }
        assert!(
            found.types.contains("Server") && found.constants.contains("LISTEN"),
            "these are not the sources"
        );
        found
    }

    /// What keeps `name` from being true, if anything does.
    fn wrong(&self, name: &str) -> Option<&'static str> {
        let plain =
            |extra: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || extra.contains(c));
        let first = name.chars().next()?;
        let is_source = [".rs", ".sh", ".md", ".ts", ".svelte"].iter().any(|ending| name.ends_with(ending));
        if plain("/.-") && first.is_ascii_alphanumeric() && (is_source || name.contains('/')) {
            return (!root().join(name).exists()).then_some("is no file or directory");
        }
        if !plain("") {
            return None;
        }
        if first.is_ascii_lowercase() {
            return (!self.words.contains(name)).then_some("is no word of the sources");
        }
        if name.chars().any(|c| c.is_ascii_lowercase()) {
            return (!self.types.contains(name)).then_some("is no type");
        }
        // Variables have a test of their own, or belong to others.
        let ours = name.contains('_') && !name.starts_with("OPTIO_") && name != "RUST_LOG";
        (ours && !self.constants.contains(name)).then_some("is no constant")
    }
}

#[test]
fn every_file_and_name_that_is_quoted_exists() {
    let sources = Sources::read();
    let mut problems = Vec::new();
    let mut looked_at = 0;
    for page in PAGES {
        for name in quoted(&read(page)).0 {
            looked_at += 1;
            if let Some(problem) = sources.wrong(&name) {
                problems.push(format!("{page}: `{name}` {problem}"));
            }
        }
    }
    assert!(looked_at > 100, "only {looked_at} names were found");
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn what_does_not_exist_is_found_out() {
    let sources = Sources::read();
    for name in [
        "actors/src/nowhere.rs",
        "gone.rs",
        "crates/gone/",
        "NoSuchThing",
        "NO_SUCH_BOUND",
        &["no", "such"].join("_"),
    ] {
        assert!(sources.wrong(name).is_some(), "{name}");
    }
    for name in
        ["src/", "ARCHITECTURE.md", "Settled", "LEASE_TTL", "spawn_child", "--flag", "/v1/route", "a phrase"]
    {
        assert_eq!(sources.wrong(name), None, "{name}");
    }
}

#[test]
fn every_file_in_a_drawing_exists() {
    let sources = Sources::read();
    for page in PAGES {
        let fenced = quoted(&read(page)).1;
        let words = fenced.split(|c: char| c.is_whitespace() || "(),:;'\"".contains(c));
        for path in words.filter(|word| word.ends_with(".rs") || word.ends_with(".sh")) {
            assert_eq!(sources.wrong(path), None, "{page}: {path}");
        }
    }
}

#[test]
fn every_make_target_that_is_named_exists() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, _)| name))
        .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .collect();
    let mut named = BTreeSet::new();
    for page in PAGES {
        let (quotes, fenced) = quoted(&read(page));
        let fenced = fenced.lines().map(str::to_owned);
        for text in quotes.into_iter().chain(fenced) {
            let mut words = text.split_whitespace();
            if words.next() == Some("make") {
                named.extend(words.next().map(str::to_owned));
            }
        }
    }
    assert!(named.len() >= 4, "{named:?}");
    for target in named {
        assert!(targets.contains(target.as_str()), "make {target}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in PAGES {
        for link in
            read(page).split("](").skip(1).filter_map(|rest| rest.split(')').next().map(str::to_owned))
        {
            assert!(link.starts_with("https://") || root().join(&link).exists(), "{page}: {link}");
        }
    }
}

#[test]
fn every_flag_and_variable_that_is_named_exists() {
    let options = read("src/config/options.rs") + &read("src/main.rs");
    for page in PAGES {
        for quote in quoted(&read(page)).0 {
            for word in quote.split(|c: char| c.is_whitespace() || c == '\'' || c == '=') {
                if let Some(flag) = word.strip_prefix("--").filter(|flag| *flag != "help") {
                    assert!(options.contains(&format!("pub {}:", flag.replace('-', "_"))), "{page}: {word}");
                }
                if word.starts_with("OPTIO_") {
                    assert!(options.contains(&format!("\"{word}\"")), "{page}: {word}");
                }
            }
        }
    }
}
