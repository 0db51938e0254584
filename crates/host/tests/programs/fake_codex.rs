//! A native program that answers as a codex would whose version stands at its end, behind the program proper.

use std::io::{Read, Seek, SeekFrom};

/// Bytes at the end: the version, filled up with blanks.
const TAIL: usize = 32;

fn main() {
    let own = std::env::current_exe().expect("a running program has a path");
    let mut file = std::fs::File::open(own).expect("a program can be read");
    file.seek(SeekFrom::End(-(TAIL as i64))).expect("the program is longer than its tail");
    let mut tail = String::new();
    // A program without a tail is not UTF-8 there, and then it says so.
    let _ = file.read_to_string(&mut tail);
    let words: Vec<String> = std::env::args().skip(1).collect();
    match (tail.trim(), words.join(" ").as_str()) {
        ("hang", _) => loop {
            std::thread::park();
        },
        (version, "--version") => println!("codex-cli {version}"),
        (_, "app-server --help") => println!("--listen <URL>  stdio:// or unix://PATH"),
        (_, other) => {
            eprintln!("this codex does not know {other:?}");
            std::process::exit(2);
        }
    }
}
