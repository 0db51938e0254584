//! Builds the browser page (`ui/`) for `src/page.rs` to embed.
//!
//! Nothing is written into the source tree, which may be read-only or somebody's work in progress: the page goes to
//! `OUT_DIR/ui`. `ui/node_modules` is used where a developer has it (vite keeps scratch files in there), because
//! installing takes longer than the build itself; without it the sources are copied to `OUT_DIR/ui-src` and the locked
//! packages are installed there.
//!
//! A machine without npm still builds: `/` then says that the page is missing, and the API works. `OPTIO_SKIP_UI=1`
//! asks for that.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// What the page is made of; `dist` and `node_modules` are not among it.
const SOURCES: [&str; 10] = [
    ".npmrc",
    "index.html",
    "package-lock.json",
    "package.json",
    "public",
    "src",
    "svelte.config.js",
    "terminal.html",
    "tsconfig.json",
    "vite.config.ts",
];

fn main() {
    let sources = PathBuf::from("ui");
    for name in SOURCES {
        println!("cargo::rerun-if-changed=ui/{name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=OPTIO_SKIP_UI");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo tells every build script its OUT_DIR"));
    let page = out.join("ui");
    // What an earlier build left must not pass for this one's.
    clear(&page).unwrap_or_else(|problem| panic!("{}: {problem}", page.display()));
    if env::var_os("OPTIO_SKIP_UI").is_some_and(|skip| skip == "1") {
        return;
    }
    if let Err(why) = build(&sources, &out, &page) {
        println!("cargo::warning=the browser page is not in this build: {why}");
        println!(
            "cargo::warning=the API works without it; for the page have Node.js 20.19 or later on PATH, then `touch web/build.rs` and build again"
        );
        println!("cargo::rerun-if-env-changed=PATH");
        clear(&page).unwrap_or_else(|problem| panic!("{}: {problem}", page.display()));
    }
}

fn build(sources: &Path, out: &Path, page: &Path) -> Result<(), String> {
    npm(sources, page, ["--version"])?;
    let work = if sources.join("node_modules").is_dir() {
        sources.to_owned()
    } else {
        let work = out.join("ui-src");
        copy_sources(sources, &work).map_err(|problem| format!("{}: {problem}", work.display()))?;
        // No package of the page needs a script of its own to run at its installation; all of them are for developing.
        let install = ["ci", "--ignore-scripts", "--include=dev", "--prefer-offline", "--fetch-retries=1"];
        npm(&work, page, install)?;
        work
    };
    npm(&work, page, ["run", "build", "--silent"])?;
    for name in ["index.html", "terminal.html"] {
        if !page.join(name).is_file() {
            return Err(format!("npm run build left no {name}"));
        }
    }
    Ok(())
}

/// Runs npm to its end; what it says is shown only if it fails.
fn npm<const N: usize>(dir: &Path, page: &Path, args: [&str; N]) -> Result<(), String> {
    let what = format!("npm {}", args[0]);
    let mut npm = Command::new("npm");
    npm.args(args).current_dir(dir).env("OPTIO_UI_OUT", page).stdin(Stdio::null());
    let output = npm.output().map_err(|problem| format!("{what} cannot be run: {problem}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| line.to_ascii_lowercase().contains("err"));
    let line = line.or(said.lines().next()).unwrap_or("it said nothing").trim();
    Err(format!("{what} failed ({}): {line}", output.status))
}

fn copy_sources(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for name in SOURCES {
        copy(&from.join(name), &to.join(name))?;
    }
    Ok(())
}

/// Copies a file, or a directory so that it holds what `from` holds and nothing else.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    clear(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

/// Makes `dir` an empty directory.
fn clear(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(problem) if problem.kind() != io::ErrorKind::NotFound => return Err(problem),
        Ok(()) | Err(_) => {}
    }
    fs::create_dir_all(dir)
}
