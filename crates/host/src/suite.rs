//! The contract of [`Host`], as tests that every host passes: the real ones and the fake.
//!
//! ```ignore
//! async fn fresh() -> (Arc<dyn Host>, impl Sized) { … }   // a host, and what must live as long as it
//! optio_host::host_suite!(crate::fresh: files programs watching archives guarding);
//! ```
//!
//! Each group becomes a module with one `#[tokio::test]` per sentence of the contract. The second value is dropped
//! after the test, e.g. a temporary directory. A test fails by panicking.

// These are tests; they live in the library so that every host's crate can run them. Their names are their documents.
#![allow(clippy::unwrap_used, missing_docs)]

pub mod archives;
pub mod files;
pub mod guarding;
pub mod programs;
pub mod watching;

use std::time::Duration;

use bytes::Bytes;

use crate::fake::FakeLaunch;
use crate::{Command, ExitStatus, Host, RelPath, TaskDir, TaskId};

/// How long anything may take that must happen. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes one test per sentence of the contract, see [`crate::suite`].
#[macro_export]
macro_rules! host_suite {
    ($make:path: $($group:ident)+) => { $( $crate::host_suite!(@$group $make); )+ };
    (@files $make:path) => { $crate::host_suite!(@tests files $make:
        a_write_replaces_the_whole_file_and_its_mode
        a_reader_never_sees_a_part_of_a_write
        a_file_beyond_the_limit_is_not_read
        what_is_missing_is_not_found
        a_growing_file_is_read_from_where_one_stopped
        a_cut_or_replaced_file_shows_it
        a_link_on_the_way_is_never_followed
        a_link_at_the_end_is_never_followed
        a_directory_is_no_file
        an_append_goes_to_the_end_of_a_private_file
        a_rename_replaces_its_target
        removing_what_is_absent_succeeds
        only_an_empty_directory_is_removed
        a_listing_is_sorted_and_limited_and_follows_no_link
        a_link_can_be_pointed_elsewhere
        create_empties_the_workdir_and_keeps_side_files
        cleanup_may_come_twice
        a_streamed_file_is_whole_and_has_its_mode
        a_stream_that_breaks_leaves_no_file
        a_streamed_file_replaces_nothing
        a_socket_path_is_short_and_belongs_to_one_task
    ); };
    (@programs $make:path) => { $crate::host_suite!(@tests programs $make:
        a_failing_program_is_a_result
        a_signal_is_told_from_an_exit_code
        input_output_errors_and_environment_are_passed
        a_program_without_input_reads_its_end
        a_program_over_its_limit_is_timed_out
        the_last_output_is_kept
        a_program_runs_where_it_is_told
        a_spawned_program_talks_through_its_pipes
        a_spawned_program_can_be_signalled_and_waited_for_twice
        a_dropped_process_is_killed
        a_command_without_words_is_refused
        dialling_where_nothing_listens_says_so
    ); };
    (@watching $make:path) => { $crate::host_suite!(@tests watching $make:
        writing_in_place_wakes
        replacing_by_rename_wakes
        making_the_file_wakes
        removing_the_file_wakes
        two_watches_of_one_file_both_wake
        other_files_of_the_directory_do_not_matter
        removing_the_directory_ends_the_watch
        a_wiped_workdir_ends_the_watch
    ); };
    (@archives $make:path) => { $crate::host_suite!(@tests archives $make:
        an_archive_brings_everything_back_but_what_is_excluded
        a_restore_leaves_nothing_of_before
        garbage_leaves_the_workdir_as_it_was
        a_cut_archive_leaves_the_workdir_as_it_was
        a_stream_that_fails_leaves_the_workdir_as_it_was
    ); };
    (@guarding $make:path) => { $crate::host_suite!(@tests guarding $make:
        nothing_is_known_before_a_start
        an_agent_runs_until_it_ends_and_its_end_is_on_record
        a_second_agent_is_refused_while_the_first_lives
        an_ended_agent_makes_room_for_another
        a_signal_reaches_the_agent
        an_agent_whose_heartbeat_stops_is_ended_by_the_guard
        an_agent_that_ignores_sigterm_is_killed_by_the_guard
        a_heartbeat_keeps_the_agent_alive
        leftovers_are_seen_and_killed
        a_program_that_carries_the_mark_is_seen_and_killed
        the_agent_has_its_run_mark_and_its_errors_are_kept
    ); };
    (@tests $group:ident $make:path: $($name:ident)+) => {
        mod $group {
            $(
                #[tokio::test]
                async fn $name() {
                    let (host, _keep) = $make().await;
                    $crate::suite::$group::$name(&*host).await;
                }
            )+
        }
    };
}

/// A fresh task directory.
async fn task(host: &dyn Host) -> TaskDir {
    let dir = host.task_dir(&TaskId::new("suite").unwrap());
    host.create(&dir).await.unwrap();
    dir
}

fn rel(path: &str) -> RelPath {
    RelPath::new(path).unwrap()
}

async fn write(host: &dyn Host, dir: &TaskDir, path: &str, text: &'static str) {
    host.write(dir, &rel(path), Bytes::from_static(text.as_bytes()), 0o600).await.unwrap();
}

async fn text(host: &dyn Host, dir: &TaskDir, path: &str) -> String {
    let bytes = host.read(dir, &rel(path), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Asks again until the answer is yes.
async fn wait_until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let asking = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, asking).await.is_err() {
        panic!("{what}: not within {PATIENCE:?}");
    }
}

/// The scripts of this suite. A host that runs programs runs them by `sh`; the fake plays them by [`play`].
mod script {
    pub(super) const FAIL: &str = "exit 7";
    pub(super) const DIE: &str = "kill -TERM $$";
    pub(super) const COPY: &str = r#"cat; printf '%s' "$WORD" >&2"#;
    pub(super) const FLOOD: &str = r"head -c 3000000 /dev/zero | tr '\0' x; printf end";
    pub(super) const WHERE: &str = "pwd";
    pub(super) const SLEEP: &str = "exec sleep 60";
    pub(super) const STUBBORN: &str = "trap '' TERM INT; echo ready; while :; do sleep 0.1; done";
    pub(super) const SHOW_MARK: &str = r#"printf '%s' "$OPTIO_CODEX_RUN" >&2; exit 3"#;
    pub(super) const LEAVE_TWO: &str = "setsid sleep 60 & setsid sleep 60 & wait & sleep 0.3";
}

fn sh(script: &str) -> Command {
    Command::new(["sh", "-c", script])
}

/// Plays the programs of this suite on a [`crate::fake::FakeHost`]: `fake.on_program(optio_host::suite::play)`.
pub async fn play(mut launch: FakeLaunch) -> ExitStatus {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let script = launch.argv.get(2).map(String::as_str).unwrap_or_default();
    match script {
        script::FAIL => ExitStatus::Code(7),
        script::DIE => ExitStatus::Signal(15),
        script::COPY => {
            let mut chunk = [0; 1024];
            while let Ok(len @ 1..) = launch.stdin.read(&mut chunk).await {
                launch.stdout.write_all(&chunk[..len]).await.unwrap();
            }
            let word = launch.env.get("WORD").cloned().unwrap_or_default();
            launch.stderr.write_all(word.as_bytes()).await.unwrap();
            ExitStatus::Code(0)
        }
        script::FLOOD => {
            launch.stdout.write_all(&vec![b'x'; 3_000_000]).await.unwrap();
            launch.stdout.write_all(b"end").await.unwrap();
            ExitStatus::Code(0)
        }
        script::WHERE => {
            let cwd = format!("{}\n", launch.cwd.display());
            launch.stdout.write_all(cwd.as_bytes()).await.unwrap();
            ExitStatus::Code(0)
        }
        script::SLEEP => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            ExitStatus::Code(0)
        }
        script::STUBBORN => {
            let mut signals = launch.catch_signals();
            launch.stdout.write_all(b"ready\n").await.unwrap();
            loop {
                signals.next().await;
            }
        }
        script::SHOW_MARK => {
            let mark = launch.env.get(crate::guard::RUN_MARK).cloned().unwrap_or_default();
            launch.stderr.write_all(mark.as_bytes()).await.unwrap();
            ExitStatus::Code(3)
        }
        script::LEAVE_TWO => {
            launch.leave_behind(2);
            ExitStatus::Code(0)
        }
        other => panic!("the suite has no program {other:?}"),
    }
}
