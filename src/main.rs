//! Flags, signals, exit code.
//!
//! Exit codes: 0 after a shutdown that was asked for; 1 when the service could not start or broke, with one sentence on
//! standard error; 2 for flags that make no sense; 128 and the signal's number when a second signal cut a drain short.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use optio_codex::config::LogFormat;
use optio_codex::{Config, Options, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// Hosts many OpenAI Codex sessions in one process.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the service
    #[command(after_help = "OPTIO_CODEX_LOG (or RUST_LOG) filters the log, such as: warn,optio_actors=debug")]
    Serve(Box<Options>),
    /// Print the version
    Version,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Serve(options) => serve(*options),
        Command::Version => say(&[concat!("optio-codex ", env!("CARGO_PKG_VERSION"))]),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("optio-codex: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: Options) -> Result<()> {
    let (config, log_format) = Config::load(options)?;
    log_to_stderr(log_format)?;
    open_as_many_files_as_allowed();
    let asked = listen_for_signals()?;
    actix_rt::System::new().block_on(async {
        let server = Server::new(config).await?;
        let listening = format!("optio-codex listening on http://{}", server.addr());
        say(&[&listening, &format!("open {}", server.login_link())])?;
        // A thread that died without a word cannot tell us any more; then the service ends as if it had been asked to.
        server.run(async { asked.await.unwrap_or_default() }).await
    })
}

/// Raises the soft limit of open files to the hard one. A live session has a connection, a journal and some more; the
/// usual soft limit of 1,024 would end at some 200 sessions, in whatever happened to need the next file.
fn open_as_many_files_as_allowed() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(problem) = raised {
        warn!(%problem, limit = limit.current, "limit of open files stays as it is");
    }
}

/// Writes lines to standard output at once: whoever reads them through a pipe waits for them.
fn say(lines: &[&str]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "{line}"))
        .and_then(|()| out.flush())
        .context("standard output cannot be written")
}

/// `OPTIO_CODEX_LOG` or `RUST_LOG` decides what is logged, in the syntax of `EnvFilter`; without them `info`.
fn log_to_stderr(format: LogFormat) -> Result<()> {
    let set = |name| std::env::var(name).ok().filter(|filter| !filter.is_empty());
    let filter = set("OPTIO_CODEX_LOG").or_else(|| set("RUST_LOG")).unwrap_or_else(|| "info".to_owned());
    let filter =
        EnvFilter::try_new(&filter).with_context(|| format!("log filter {filter:?} is not understood"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// Answers at the first SIGTERM or SIGINT; the second ends the process at once. It has a thread of its own: whoever
/// sends a second signal may do so because everything else hangs.
fn listen_for_signals() -> Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    drop(entered);
    let (ask, asked) = oneshot::channel();
    let listen = async move {
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => SignalKind::terminate(),
                _ = int.recv() => SignalKind::interrupt(),
            }
        };
        let first = next().await;
        info!(signal = first.as_raw_value(), "shutdown was asked for, a second signal ends at once");
        // Nobody hears it when the start has failed and the process is ending anyway.
        let _ = ask.send(());
        let second = next().await.as_raw_value();
        warn!(signal = second, "service ends at once; what is left running is taken up by the next start");
        std::process::exit(128 + second)
    };
    let name = std::thread::Builder::new().name("signals".to_owned());
    name.spawn(move || runtime.block_on(listen)).context("the thread for signals cannot be started")?;
    Ok(asked)
}
