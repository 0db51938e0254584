//! Provides a program on this machine, as one service would: `provide TOOL COUNT DIR URL VERSION SHA256 [forbid]`.
//!
//! Whatever it is given on standard input cancels. Prints each progress as `- PERCENT MESSAGE`, and for each of COUNT
//! requests at once `ok PATH VERSION` or `error TEXT`.

use std::path::PathBuf;
use std::sync::Arc;

use optio_host::provision::{HostTools, Pins, Progress, Provision, Releases, Tool, Wishes};
use optio_host::{LocalHost, LocalHostConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [tool, count, dir, url, version, sum, more @ ..] = words.as_slice() else {
        panic!("usage: provide TOOL COUNT DIR URL VERSION SHA256 [forbid]");
    };
    let dir = PathBuf::from(dir);
    let tool = if tool == "ttyd" { Tool::Ttyd } else { Tool::Codex };
    let mut releases = Releases::default();
    let release = if tool == Tool::Ttyd { &mut releases.ttyd } else { &mut releases.codex };
    release.base.clone_from(url);
    release.version.clone_from(version);
    // Whatever processor the tests run on.
    let sum = sum.parse().ok();
    release.pins = Pins { x86_64: sum, aarch64: sum };

    let config =
        LocalHostConfig { task_root: Some(dir.join("tasks")), socket_root: Some(dir.join("sockets")) };
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    let host = Arc::new(LocalHost::new(config).expect("this machine is a host"));
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or("service").to_owned();
    let tools = Arc::new(HostTools::new(releases, dir.join("downloads"), &name));
    let wishes = Wishes { install_if_missing: more.is_empty(), ..Wishes::default() };

    let cancel = CancellationToken::new();
    std::thread::spawn({
        let cancel = cancel.clone();
        move || {
            let mut line = String::new();
            if std::io::stdin().read_line(&mut line).is_ok_and(|len| len > 0) {
                cancel.cancel();
            }
        }
    });
    let count = count.parse().expect("COUNT is a number");
    let asking = (0..count).map(|_| {
        let (host, tools, wishes, cancel) = (host.clone(), tools.clone(), wishes.clone(), cancel.clone());
        tokio::spawn(async move {
            let tell = |Progress { percent, message }: Progress| {
                let percent = percent.map_or("-".to_owned(), |percent| percent.to_string());
                println!("- {percent} {message}");
            };
            match tools.provide(&*host, tool, &wishes, &tell, &cancel).await {
                Ok(found) => println!("ok {} {}", found.path.display(), found.version),
                Err(problem) => println!("error {problem}"),
            }
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.expect("providing does not panic");
    }
    // A thread that waits for standard input would hold the end up.
    std::process::exit(0);
}
