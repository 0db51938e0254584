//! Archives of live trees, and what a hostile or torn archive can do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use optio_host::archive::{CHUNK, Codec, Excludes, pack, restore_beside, unpack};
use optio_host::{ByteStream, HostError};
use proptest::prelude::*;
use tar::{EntryType, Header};

const BOTH: [Codec; 2] = [Codec::Gzip, Codec::Zstd];

/// What is at a path: its kind, mode, time and content.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Dir { mode: u32 },
    File { mode: u32, mtime: i64, content: Vec<u8>, first_name: Option<PathBuf> },
    Link { target: PathBuf },
}

/// A tree as it is on disk, by relative path.
fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        let mut paths: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let meta = fs::symlink_metadata(&path).unwrap();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            let mode = meta.mode() & 0o7777;
            let node = if meta.is_dir() {
                waiting.push(path);
                Node::Dir { mode }
            } else if meta.is_symlink() {
                Node::Link { target: fs::read_link(&path).unwrap() }
            } else {
                let first_name = (meta.nlink() > 1)
                    .then(|| names.entry(meta.ino()).or_insert_with(|| relative.clone()).clone());
                Node::File { mode, mtime: meta.mtime(), content: fs::read(&path).unwrap(), first_name }
            };
            nodes.insert(relative, node);
        }
    }
    nodes
}

async fn collect(mut stream: ByteStream) -> Result<Vec<u8>, HostError> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        assert!(!chunk.is_empty() && chunk.len() <= CHUNK);
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

fn streamed(bytes: impl Into<Vec<u8>>) -> ByteStream {
    let bytes = Bytes::from(bytes.into());
    let chunks: Vec<_> = bytes.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    stream::iter(chunks).boxed()
}

async fn packed(root: &Path, codec: Codec) -> Vec<u8> {
    collect(pack(root.to_owned(), Excludes::default(), codec)).await.unwrap()
}

fn compressed(tar: &[u8], codec: Codec) -> Vec<u8> {
    match codec {
        Codec::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(tar).unwrap();
            out.finish().unwrap()
        }
        Codec::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

fn decompressed(bytes: &[u8], codec: Codec) -> Vec<u8> {
    let mut out = Vec::new();
    match codec {
        Codec::Gzip => flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap(),
        Codec::Zstd => zstd::Decoder::new(bytes).unwrap().read_to_end(&mut out).unwrap(),
    };
    out
}

/// Members as an archive has them: kind and name.
fn members(bytes: &[u8], codec: Codec) -> BTreeMap<Vec<u8>, EntryType> {
    let tar = decompressed(bytes, codec);
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().unwrap().map(Result::unwrap);
    entries.map(|e| (e.path_bytes().into_owned(), e.header().entry_type())).collect()
}

/// A tar put together by hand, so that it can hold what no writer writes.
#[derive(Default)]
struct Hostile(Vec<u8>);

impl Hostile {
    fn member(mut self, kind: EntryType, name: &[u8], target: &[u8], mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn file(self, name: &str, content: &str) -> Self {
        self.member(EntryType::Regular, name.as_bytes(), b"", 0o644, content.as_bytes())
    }
    fn dir(self, name: &str) -> Self {
        self.member(EntryType::Directory, name.as_bytes(), b"", 0o755, b"")
    }
    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.member(kind, name.as_bytes(), target.as_bytes(), 0o777, b"")
    }
    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

async fn extracted(tar: &[u8]) -> (tempfile::TempDir, PathBuf, Result<(), HostError>) {
    let room = tempfile::tempdir().unwrap();
    let into = room.path().join("into");
    let result = unpack(streamed(compressed(tar, Codec::Zstd)), Codec::Zstd, into.clone()).await;
    (room, into, result)
}

async fn refused(tar: &[u8]) -> String {
    let (room, into, result) = extracted(tar).await;
    assert!(!into.exists(), "a refused archive leaves its directory");
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
    match result {
        Err(HostError::BadArchive(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

// ---- what is kept ------------------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Plan {
    Dir(Vec<(Vec<u8>, Plan)>, u32),
    File(Vec<u8>, u32),
    Link(Vec<u8>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let short = prop::collection::vec(prop_oneof![b'a'..=b'z', 0x80u8..=0xff, Just(b' '), Just(b'\n')], 1..6);
    let long = (b'a'..=b'z', 90usize..=255).prop_map(|(c, len)| vec![c; len]);
    prop_oneof![8 => short, 1 => long]
}

fn plan() -> impl Strategy<Value = Plan> {
    let mode = prop::sample::select(vec![0o644u32, 0o600, 0o755, 0o400, 0o777]);
    let file = (prop::collection::vec(any::<u8>(), 0..2000), mode).prop_map(|(c, m)| Plan::File(c, m));
    let link = prop::collection::vec(1u8..=255, 1..150).prop_map(Plan::Link);
    let leaf = prop_oneof![4 => file, 1 => link];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let mode = prop::sample::select(vec![0o755u32, 0o700, 0o555]);
        (prop::collection::vec((name(), inner), 0..6), mode).prop_map(|(c, m)| Plan::Dir(c, m))
    })
}

fn build(path: &Path, plan: &Plan) {
    match plan {
        Plan::File(content, mode) => {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Plan::Link(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        Plan::Dir(children, mode) => {
            fs::create_dir(path).unwrap();
            for (name, child) in children {
                let path = path.join(OsStr::from_bytes(name));
                if fs::symlink_metadata(&path).is_err() {
                    build(&path, child);
                }
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn pack_then_unpack_gives_the_same_tree(children in prop::collection::vec((name(), plan()), 0..6), zstd: bool) {
        let codec = if zstd { Codec::Zstd } else { Codec::Gzip };
        let room = tempfile::tempdir().unwrap();
        let (from, into) = (room.path().join("from"), room.path().join("into"));
        build(&from, &Plan::Dir(children, 0o755));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(unpack(pack(from.clone(), Excludes::default(), codec), codec, into.clone())).unwrap();
        prop_assert_eq!(tree(&into), tree(&from));
        prop_assert_eq!(fs::metadata(&into).unwrap().mode() & 0o7777, 0o700);
    }
}

#[tokio::test]
async fn empty_directories_links_and_hard_links_are_kept() {
    for codec in BOTH {
        let room = tempfile::tempdir().unwrap();
        let (from, into) = (room.path().join("from"), room.path().join("into"));
        fs::create_dir_all(from.join("empty/inner")).unwrap();
        fs::create_dir(from.join("full")).unwrap();
        fs::write(from.join("full/file"), "content").unwrap();
        fs::hard_link(from.join("full/file"), from.join("second")).unwrap();
        symlink("full", from.join("to-dir")).unwrap();
        symlink("/opt//codex/../bin/codex", from.join("dangling")).unwrap();
        symlink("a/".repeat(100), from.join("long-target")).unwrap();
        unpack(streamed(packed(&from, codec).await), codec, into.clone()).await.unwrap();
        assert_eq!(tree(&into), tree(&from));
        let ino = |name: &str| fs::metadata(into.join(name)).unwrap().ino();
        assert_eq!(ino("full/file"), ino("second"));
    }
}

#[tokio::test]
async fn gnu_tar_reads_what_we_write_and_we_read_what_it_writes() {
    let room = tempfile::tempdir().unwrap();
    let from = room.path().join("from");
    fs::create_dir_all(from.join("d".repeat(200)).join("e".repeat(200))).unwrap();
    fs::write(from.join("d".repeat(200)).join("file"), "x").unwrap();
    fs::write(from.join("caf\u{e9}"), vec![7; 100_000]).unwrap();
    symlink("t".repeat(150), from.join("link")).unwrap();
    let tar = |args: &[&OsStr]| {
        let output = std::process::Command::new("tar").args(args).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    };
    let file = room.path().join("ours.tar.gz");
    fs::write(&file, packed(&from, Codec::Gzip).await).unwrap();
    let theirs = room.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    tar(&["-xzf".as_ref(), file.as_ref(), "-C".as_ref(), theirs.as_ref()]);
    assert_eq!(tree(&theirs), tree(&from));
    for format in ["gnu", "pax"] {
        let file = room.path().join(format);
        let format = format!("--format={format}");
        // Members are named `./a/b`, and `./` is one of them.
        tar(&["-czf".as_ref(), file.as_ref(), format.as_ref(), "-C".as_ref(), from.as_ref(), ".".as_ref()]);
        let into = room.path().join(format!("into{format}"));
        unpack(streamed(fs::read(&file).unwrap()), Codec::Gzip, into.clone()).await.unwrap();
        assert_eq!(tree(&into), tree(&from), "{format}");
    }
}

#[tokio::test]
async fn what_is_excluded_stays_out_with_everything_below_it() {
    let room = tempfile::tempdir().unwrap();
    let from = room.path();
    for dir in ["home/.cache/deep", "x/home/.cache", "node_modules/a", "data.sqlite.d"] {
        fs::create_dir_all(from.join(dir)).unwrap();
        fs::write(from.join(dir).join("file"), "x").unwrap();
    }
    fs::write(from.join(OsStr::from_bytes(b"\xff.pyc")), "x").unwrap();
    let excludes = Excludes::new(["home/.cache/", "node_modules", "*.sqlite*", "*.pyc"]).unwrap();
    let bytes = collect(pack(from.to_owned(), excludes, Codec::Zstd)).await.unwrap();
    let members = members(&bytes, Codec::Zstd);
    let names: Vec<&[u8]> = members.keys().map(Vec::as_slice).collect();
    let expected: [&[u8]; 5] = [b"home", b"x", b"x/home", b"x/home/.cache", b"x/home/.cache/file"];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn a_tree_deeper_than_any_path_may_be_is_kept() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, open, openat};
    const DEPTH: usize = 300;
    let room = tempfile::tempdir().unwrap();
    let from = room.path().join("from");
    fs::create_dir(&from).unwrap();
    let segment = "d".repeat(20);
    let mut dir = open(&from, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&dir, segment.as_str(), Mode::RWXU).unwrap();
        dir = openat(&dir, segment.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let bytes = packed(&from, Codec::Zstd).await;
    let into = room.path().join("into");
    unpack(streamed(bytes), Codec::Zstd, into.clone()).await.unwrap();
    let mut dir = openat(CWD, &into, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        dir = openat(&dir, segment.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}

// ---- a live tree -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn sockets_fifos_and_vanished_files_do_not_stop_a_capture() {
    let room = tempfile::tempdir().unwrap();
    let from = room.path();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(from.join("fifo")).status().unwrap().success());
    fs::write(from.join("file"), "x").unwrap();
    let members = members(&packed(from, Codec::Gzip).await, Codec::Gzip);
    assert_eq!(members.into_keys().collect::<Vec<_>>(), [b"file"]);
}

#[tokio::test]
async fn files_that_grow_shrink_come_and_go_leave_every_archive_whole() {
    let room = tempfile::tempdir().unwrap();
    let from = room.path().join("from");
    fs::create_dir(&from).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (from, stop) = (from.clone(), stop.clone());
        move || {
            let mut round = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let path = from.join(format!("f{}", round % 7));
                match round % 5 {
                    0 => drop(fs::remove_file(&path)),
                    1 => drop(fs::OpenOptions::new().write(true).open(&path).map(|f| f.set_len(10))),
                    _ => fs::write(&path, vec![b'x'; (round % 11) as usize * 100_000]).unwrap(),
                }
                let dir = from.join("dir");
                drop(fs::create_dir_all(dir.join("sub")));
                drop(fs::remove_dir_all(dir));
            }
        }
    });
    for round in 0..30 {
        let into = room.path().join(format!("into{round}"));
        unpack(pack(from.clone(), Excludes::default(), Codec::Zstd), Codec::Zstd, into).await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn nothing_runs_before_the_first_poll_and_a_missing_workdir_is_an_error_item() {
    let room = tempfile::tempdir().unwrap();
    let from = room.path().join("later");
    let early = pack(from.clone(), Excludes::default(), Codec::Zstd);
    let error = collect(pack(from.clone(), Excludes::default(), Codec::Zstd)).await.unwrap_err();
    assert!(matches!(error, HostError::NotFound { .. }), "{error}");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    assert_eq!(members(&collect(early).await.unwrap(), Codec::Zstd).len(), 1);
}

#[tokio::test]
async fn dropping_a_capture_half_way_ends_its_thread() {
    let room = tempfile::tempdir().unwrap();
    // Far more than the chunks that wait, and slow to read to its end.
    fs::File::create(room.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    let reads_it = || {
        let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| fs::read_link(e.ok()?.path()).ok());
        open.filter(|path| path.starts_with(room.path())).count()
    };
    let mut stream = pack(room.path().to_owned(), Excludes::default(), Codec::Gzip);
    stream.next().await.unwrap().unwrap();
    assert!(reads_it() > 0);
    drop(stream);
    let start = Instant::now();
    while reads_it() > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "the thread goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// ---- hostile archives --------------------------------------------------------------------------------------------

#[tokio::test]
async fn names_that_lead_out_are_refused() {
    for name in ["/abs", "../up", "a/../../up", "a/..", ".."] {
        assert!(refused(&Hostile::default().file(name, "x").end()).await.contains("member"), "{name}");
        refused(&Hostile::default().dir(name).end()).await;
        refused(&Hostile::default().file("a", "").link(EntryType::Link, "b", name).end()).await;
    }
}

#[tokio::test]
async fn nothing_is_written_through_a_link_of_the_archive_itself() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let link = |target| Hostile::default().link(EntryType::Symlink, "link", target);
    for target in [target, "dir", "."] {
        refused(&link(target).file("link/file", "x").end()).await;
        refused(&link(target).dir("link/dir").end()).await;
        refused(&link(target).dir("link").end()).await;
        refused(&link(target).file("a", "x").link(EntryType::Link, "link/b", "a").end()).await;
        refused(&link(target).link(EntryType::Symlink, "link/b", "a").end()).await;
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // A file in place of the link replaces it and leaves its target alone.
    let victim = outside.path().join("victim");
    fs::write(&victim, "old").unwrap();
    let (_room, into, result) = extracted(&link(victim.to_str().unwrap()).file("link", "new").end()).await;
    result.unwrap();
    assert_eq!(fs::read(victim).unwrap(), b"old");
    assert!(fs::symlink_metadata(into.join("link")).unwrap().is_file());
}

#[tokio::test]
async fn a_hard_link_reaches_members_of_the_archive_only() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    let target = outside.path().to_str().unwrap();
    refused(&Hostile::default().link(EntryType::Link, "a", "missing").end()).await;
    refused(&Hostile::default().link(EntryType::Link, "a", &format!("{target}/secret")).end()).await;
    let through = Hostile::default().link(EntryType::Symlink, "out", target);
    refused(&through.link(EntryType::Link, "a", "out/secret").end()).await;
    refused(&Hostile::default().dir("d").link(EntryType::Link, "a", "d").end()).await;
}

#[tokio::test]
async fn devices_are_left_out_and_special_bits_dropped() {
    let tar = Hostile::default()
        .member(EntryType::Char, b"null", b"", 0o666, b"")
        .member(EntryType::Fifo, b"fifo", b"", 0o666, b"")
        .member(EntryType::Regular, b"su", b"", 0o6755, b"x")
        .member(EntryType::Directory, b"sticky", b"", 0o1777, b"")
        .member(EntryType::Regular, b"old-style-dir/", b"", 0o755, b"")
        .end();
    let (_room, into, result) = extracted(&tar).await;
    result.unwrap();
    let tree = tree(&into);
    assert_eq!(tree.len(), 3, "{tree:?}");
    assert!(matches!(tree[Path::new("su")], Node::File { mode: 0o755, mtime: 1_000_000_000, .. }));
    assert_eq!(tree[Path::new("sticky")], Node::Dir { mode: 0o777 });
    assert_eq!(tree[Path::new("old-style-dir")], Node::Dir { mode: 0o755 });
}

#[tokio::test]
async fn headers_that_would_fill_the_memory_are_refused() {
    let name = vec![b'a'; 3 << 20];
    let tar = Hostile::default()
        .member(EntryType::GNULongName, b"././@LongLink", b"", 0o644, &name)
        .file("a", "x")
        .end();
    assert!(refused(&tar).await.contains("headers"));
}

#[tokio::test]
async fn content_after_the_end_is_refused_and_filling_is_not() {
    let whole = Hostile::default().file("a", "x").end();
    let mut filled = whole.clone();
    filled.resize(10240, 0);
    assert!(extracted(&filled).await.2.is_ok());
    let mut half_end = whole[..whole.len() - 512].to_vec();
    half_end.extend_from_slice(&Hostile::default().file("b", "x").end());
    refused(&half_end).await;
    let mut endless = whole;
    endless.resize(4 << 20, 0);
    refused(&endless).await;
}

// ---- torn archives -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_tar_cut_at_any_block_is_refused() {
    let tar = Hostile::default().dir("d").file("d/a", &"x".repeat(1500)).file("b", "").end();
    for len in (0..tar.len()).step_by(256) {
        refused(&tar[..len]).await;
    }
    assert!(extracted(&tar).await.2.is_ok());
}

#[tokio::test]
async fn a_compressed_stream_cut_or_changed_anywhere_is_refused() {
    let room = tempfile::tempdir().unwrap();
    let from = room.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), (0..3000u32).flat_map(|n| (n * n).to_le_bytes()).collect::<Vec<_>>())
        .unwrap();
    for codec in BOTH {
        let whole = packed(&from, codec).await;
        let last_bytes = whole.len() - 12..whole.len();
        for len in (0..whole.len()).step_by(whole.len() / 25).chain(last_bytes) {
            let into = room.path().join("into");
            let result = unpack(streamed(&whole[..len]), codec, into.clone()).await;
            assert!(matches!(result, Err(HostError::BadArchive(_))), "{codec:?} cut at {len}: {result:?}");
            assert!(!into.exists());
        }
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 0x10;
        let result = unpack(streamed(changed), codec, room.path().join("into")).await;
        assert!(matches!(result, Err(HostError::BadArchive(_))), "{codec:?}: {result:?}");
    }
}

#[tokio::test]
async fn an_error_of_the_stream_is_the_error_of_the_restore() {
    let room = tempfile::tempdir().unwrap();
    let workdir = room.path().join("workdir");
    fs::create_dir(&workdir).unwrap();
    fs::write(workdir.join("old"), "x").unwrap();
    let tar = compressed(&Hostile::default().file("new", "x").end(), Codec::Zstd);
    let broken = HostError::Unreachable { host: "far".into(), why: "cut".into() };
    let stream = streamed(tar).chain(stream::iter([Err(broken)])).boxed();
    let error = restore_beside(stream, Codec::Zstd, workdir.clone()).await.unwrap_err();
    assert!(matches!(error, HostError::Unreachable { .. }), "{error}");
    assert!(workdir.join("old").exists());
    assert_eq!(fs::read_dir(room.path()).unwrap().count(), 1, "something is left beside the workdir");
}

// ---- restore -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_restore_replaces_the_workdir_and_leaves_nothing_beside_it() {
    let room = tempfile::tempdir().unwrap();
    let workdir = room.path().join("workdir");
    fs::create_dir_all(workdir.join("old/read-only")).unwrap();
    fs::write(workdir.join("old/read-only/file"), "x").unwrap();
    fs::set_permissions(workdir.join("old/read-only"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::create_dir(room.path().join(".workdir.new-crashed")).unwrap();
    fs::write(room.path().join("side-file"), "x").unwrap();
    let tar = compressed(&Hostile::default().file("new", "x").end(), Codec::Gzip);
    restore_beside(streamed(tar), Codec::Gzip, workdir.clone()).await.unwrap();
    assert_eq!(tree(&workdir).into_keys().collect::<Vec<_>>(), [Path::new("new")]);
    assert_eq!(fs::metadata(&workdir).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(tree(room.path()).len(), 3, "{:?}", tree(room.path()));
}

#[tokio::test]
async fn a_bad_archive_leaves_the_workdir_as_it_was() {
    let room = tempfile::tempdir().unwrap();
    let workdir = room.path().join("workdir");
    fs::create_dir(&workdir).unwrap();
    fs::write(workdir.join("old"), "x").unwrap();
    let before = tree(room.path());
    let bad = Hostile::default().file("new", "x").file("../up", "x").end();
    for bytes in [compressed(&bad, Codec::Zstd), b"no archive at all".to_vec(), Vec::new()] {
        let error = restore_beside(streamed(bytes), Codec::Zstd, workdir.clone()).await.unwrap_err();
        assert!(matches!(error, HostError::BadArchive(_)), "{error}");
        assert_eq!(tree(room.path()), before);
    }
}

#[tokio::test]
async fn a_restore_nobody_waits_for_any_more_changes_nothing() {
    let room = tempfile::tempdir().unwrap();
    let workdir = room.path().join("workdir");
    fs::create_dir(&workdir).unwrap();
    fs::write(workdir.join("old"), "x").unwrap();
    let before = tree(room.path());
    let tar = compressed(&Hostile::default().file("new", "x").end(), Codec::Zstd);
    let stream = streamed(tar).chain(stream::pending()).boxed();
    let restore = restore_beside(stream, Codec::Zstd, workdir.clone());
    let beside = async {
        while fs::read_dir(room.path()).unwrap().count() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = restore => panic!("it ended: {result:?}"),
        () = beside => {}
    }
    let start = Instant::now();
    while fs::read_dir(room.path()).unwrap().count() > 1 {
        assert!(start.elapsed() < Duration::from_secs(5), "the sibling stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(tree(room.path()), before);
}
