//! The archive form of a login (T-014): a gzip tar whose names are relative to `home/`, as every backend stores it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::Component;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::seeds::{SEED_LIMIT, SeedFiles};
use crate::{Account, Result, StoreError};

/// Codex makes the credential 0600 (T-016), and so does every writer here, whatever the archive said before (T-019).
const AUTH_MODE: u32 = 0o600;
/// Mode of the other files of a new archive, as Codex leaves `config.toml`.
const OTHER_MODE: u32 = 0o644;
/// Most entries of one archive. Two are usual; this is for an archive that somebody else wrote.
const MEMBER_LIMIT: usize = 1_000;

/// One regular file as it stands in an archive.
struct Member {
    name: String,
    header: tar::Header,
    bytes: Bytes,
}

/// Makes an archive. `mtime` is in seconds since 1970.
pub(crate) fn encode(files: &SeedFiles, mtime: u64) -> Result<Vec<u8>> {
    let mut members = Vec::new();
    for (name, bytes) in &files.0 {
        let name = safe_name(name.as_bytes())?.ok_or_else(|| refused("a file has an empty name"))?;
        members.push(Member { header: fresh_header(&name, mtime), name, bytes: bytes.clone() });
    }
    write(&members)
}

/// Reads an archive: of two members with one name, the last one counts (T-018).
pub(crate) fn decode(archive: &[u8]) -> Result<SeedFiles> {
    let mut files = BTreeMap::new();
    for member in read(archive)? {
        files.insert(member.name, member.bytes);
    }
    Ok(SeedFiles(files))
}

/// Puts another credential into an archive. The other members keep their header, bytes and order, and the
/// credential comes last (T-017) with the header it had (T-019).
pub(crate) fn replace_auth(archive: &[u8], auth_json: Bytes, mtime: u64) -> Result<Vec<u8>> {
    let mut members = read(archive)?;
    let mut header = members.iter().rev().find(|m| m.name == SeedFiles::AUTH).map(|m| m.header.clone());
    members.retain(|m| m.name != SeedFiles::AUTH);
    let mut header = header.take().unwrap_or_else(|| fresh_header(SeedFiles::AUTH, mtime));
    header.set_mode(AUTH_MODE);
    header.set_mtime(mtime);
    members.push(Member { name: SeedFiles::AUTH.to_owned(), header, bytes: auth_json });
    write(&members)
}

/// Names the single-use lineage a ChatGPT login belongs to now (INV-36): a digest of its account and refresh token.
/// `None` for a login that has no refresh token, thus nothing that two seeds could spend.
pub(crate) fn lineage(auth_json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Auth {
        tokens: Option<Tokens>,
    }
    #[derive(Deserialize)]
    struct Tokens {
        account_id: Option<String>,
        refresh_token: Option<String>,
    }
    let tokens = serde_json::from_slice::<Auth>(auth_json).ok()?.tokens?;
    let token = tokens.refresh_token.filter(|token| !token.is_empty())?;
    let account = tokens.account_id.unwrap_or_default();
    let mut digest = Sha256::new();
    digest.update(b"optio login lineage\0");
    digest.update((account.len() as u64).to_be_bytes());
    digest.update(account);
    digest.update(token);
    Some(hex(&digest.finalize()))
}

/// Whose login it is, as far as the credential says so in the clear: account id and kind.
pub(crate) fn account(auth_json: &[u8]) -> Account {
    #[derive(Deserialize)]
    struct Auth {
        #[serde(rename = "OPENAI_API_KEY")]
        api_key: Option<String>,
        tokens: Option<Tokens>,
    }
    #[derive(Deserialize)]
    struct Tokens {
        account_id: Option<String>,
    }
    let auth = serde_json::from_slice(auth_json).unwrap_or(Auth { api_key: None, tokens: None });
    let (id, kind) = match (auth.tokens, auth.api_key) {
        (Some(tokens), _) => (tokens.account_id, "chatgpt"),
        (None, Some(_)) => (None, "api_key"),
        (None, None) => (None, "unknown"),
    };
    Account { id, kind: kind.to_owned(), ..Account::default() }
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

fn fresh_header(name: &str, mtime: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(if name == SeedFiles::AUTH { AUTH_MODE } else { OTHER_MODE });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header
}

fn write(members: &[Member]) -> Result<Vec<u8>> {
    let total: usize = members.iter().map(|m| m.bytes.len()).sum();
    if total > SEED_LIMIT {
        return Err(too_large());
    }
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for member in members {
        let mut header = member.header.clone();
        header.set_size(member.bytes.len() as u64);
        builder
            .append_data(&mut header, &member.name, member.bytes.as_ref())
            .map_err(|e| refused(&format!("{}: {e}", member.name)))?;
    }
    let finished = builder.into_inner().and_then(|mut gzip| {
        gzip.flush()?;
        gzip.finish()
    });
    let archive = finished.map_err(|e| refused(&e.to_string()))?;
    if archive.len() > SEED_LIMIT {
        return Err(too_large());
    }
    Ok(archive)
}

/// Every regular file, in order. Refuses what could leave `home/` when it is planted (T-042).
fn read(archive: &[u8]) -> Result<Vec<Member>> {
    if archive.len() > SEED_LIMIT {
        return Err(too_large());
    }
    // The files may be SEED_LIMIT together; the rest is room for headers and padding. A gzip bomb ends here.
    let room = (SEED_LIMIT + MEMBER_LIMIT * 2048) as u64;
    let mut tar = tar::Archive::new(GzDecoder::new(archive).take(room));
    let mut members = Vec::new();
    let mut total = 0;
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if members.len() == MEMBER_LIMIT {
            return Err(refused("it has too many files"));
        }
        let kind = entry.header().entry_type();
        let name = safe_name(&entry.path_bytes())?;
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() {
            return Err(refused(&format!("{} is no regular file", name.unwrap_or_default())));
        }
        let name = name.ok_or_else(|| refused("a file has an empty name"))?;
        let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
        total = size.saturating_add(total);
        if total > SEED_LIMIT {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(size);
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        if bytes.len() != size {
            return Err(damaged(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let mut header = tar::Header::new_gnu();
        copy_header(entry.header(), &mut header);
        members.push(Member { name, header, bytes: bytes.into() });
    }
    // A tar that is cut between two members reads as complete; the gzip trailer proves the end.
    std::io::copy(&mut tar.into_inner(), &mut std::io::sink()).map_err(damaged)?;
    Ok(members)
}

/// Keeps what a header says of the file, in a form that can carry a name of any length.
fn copy_header(from: &tar::Header, to: &mut tar::Header) {
    to.set_entry_type(tar::EntryType::Regular);
    to.set_mode(from.mode().unwrap_or(AUTH_MODE) & 0o777);
    to.set_uid(from.uid().unwrap_or(0));
    to.set_gid(from.gid().unwrap_or(0));
    to.set_mtime(from.mtime().unwrap_or(0));
    // An owner's name that is too long for the field was never in the field.
    if let Ok(Some(name)) = from.username() {
        let _fits = to.set_username(name);
    }
    if let Ok(Some(name)) = from.groupname() {
        let _fits = to.set_groupname(name);
    }
}

/// Drops `./` (T-015) and trailing slashes; `None` for the root itself.
fn safe_name(raw: &[u8]) -> Result<Option<String>> {
    let text = std::str::from_utf8(raw).map_err(|_| refused("a name is not UTF-8"))?;
    if text.contains('\0') {
        return Err(refused("a name has a zero byte"));
    }
    let mut parts = Vec::new();
    for part in std::path::Path::new(text).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            _ => return Err(refused(&format!("{text:?} leaves the home directory"))),
        }
    }
    if parts.is_empty() { Ok(None) } else { Ok(Some(parts.join("/"))) }
}

fn refused(why: &str) -> StoreError {
    StoreError::Invalid { field: "seed archive", why: why.to_owned() }
}

fn too_large() -> StoreError {
    refused(&format!("it is larger than {SEED_LIMIT} bytes"))
}

fn damaged(error: std::io::Error) -> StoreError {
    StoreError::Damaged { what: "seed archive".to_owned(), why: error.to_string() }
}

/// Refuses names that could not be planted, before anything is written.
pub(crate) fn check(files: &SeedFiles) -> Result<()> {
    if !files.0.contains_key(SeedFiles::AUTH) {
        return Err(StoreError::Invalid {
            field: "files",
            why: format!("they must hold {}", SeedFiles::AUTH),
        });
    }
    let mut seen = BTreeSet::new();
    for name in files.0.keys() {
        let clean = safe_name(name.as_bytes())?;
        if clean.as_deref() != Some(name) || !seen.insert(clean) {
            return Err(refused(&format!("{name:?} must be a plain relative name")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> SeedFiles {
        SeedFiles(pairs.iter().map(|(n, b)| ((*n).to_owned(), Bytes::from((*b).to_owned()))).collect())
    }

    /// An archive as somebody else might have written it, with any name and kind.
    fn foreign(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_mtime(77);
            header.set_uid(1234);
            header.set_gid(12);
            header.set_username("codex").unwrap();
            header.set_size(content.len() as u64);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    const FILE: tar::EntryType = tar::EntryType::Regular;

    #[test]
    fn files_come_back_as_they_went_in() {
        let long = format!("{}/x", "d".repeat(150));
        let files = files(&[(SeedFiles::AUTH, "{}"), (SeedFiles::CONFIG, "a=1"), (&long, "long")]);
        assert_eq!(decode(&encode(&files, 1).unwrap()).unwrap(), files);
        let again = replace_auth(&encode(&files, 1).unwrap(), Bytes::from_static(b"{}"), 2).unwrap();
        assert_eq!(decode(&again).unwrap(), files);
    }

    #[test]
    fn a_leading_dot_is_normalised_and_the_last_duplicate_wins() {
        let archive = foreign(&[("./.codex/auth.json", FILE, "old"), (".codex/auth.json", FILE, "new")]);
        assert_eq!(decode(&archive).unwrap(), files(&[(SeedFiles::AUTH, "new")]));
        let replaced = replace_auth(&archive, Bytes::from_static(b"newest"), 9).unwrap();
        assert_eq!(read(&replaced).unwrap().len(), 1);
    }

    #[test]
    fn names_and_links_that_leave_home_are_refused() {
        for name in ["/etc/x", "../x", "a/../../x"] {
            assert!(
                matches!(decode(&foreign(&[(name, FILE, "x")])), Err(StoreError::Invalid { .. })),
                "{name}"
            );
        }
        for kind in [tar::EntryType::Symlink, tar::EntryType::Link, tar::EntryType::Fifo] {
            assert!(
                matches!(decode(&foreign(&[("x", kind, "")])), Err(StoreError::Invalid { .. })),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn a_replaced_credential_comes_last_0600_and_the_others_keep_header_and_bytes() {
        let archive = foreign(&[(".codex/auth.json", FILE, "old"), (".codex/config.toml", FILE, "conf")]);
        let members = read(&replace_auth(&archive, Bytes::from_static(b"new"), 99).unwrap()).unwrap();
        let names: Vec<_> = members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, [SeedFiles::CONFIG, SeedFiles::AUTH]);
        let header = |i: usize| {
            let h: &tar::Header = &members[i].header;
            (h.mode().unwrap(), h.uid().unwrap(), h.gid().unwrap(), h.mtime().unwrap())
        };
        assert_eq!(header(0), (0o640, 1234, 12, 77));
        assert_eq!(header(1), (0o600, 1234, 12, 99));
        assert_eq!(members[1].header.username().unwrap(), Some("codex"));
        assert_eq!((&members[0].bytes[..], &members[1].bytes[..]), (&b"conf"[..], &b"new"[..]));
    }

    #[test]
    fn an_archive_over_the_limit_is_refused_also_when_it_is_small_while_compressed() {
        let big = SeedFiles([(SeedFiles::AUTH.to_owned(), Bytes::from(vec![0; SEED_LIMIT + 1]))].into());
        assert!(matches!(encode(&big, 0), Err(StoreError::Invalid { .. })));
        let bomb = foreign(&[(".codex/auth.json", FILE, &"0".repeat(SEED_LIMIT + 1))]);
        assert!(bomb.len() < SEED_LIMIT);
        assert!(matches!(decode(&bomb), Err(StoreError::Invalid { .. })));
    }

    #[test]
    fn a_cut_archive_is_damaged() {
        let archive = encode(&files(&[(SeedFiles::AUTH, "some credential")]), 0).unwrap();
        for len in [0, 5, archive.len() / 2, archive.len() - 1] {
            assert!(matches!(decode(&archive[..len]), Err(StoreError::Damaged { .. })), "{len}");
        }
    }

    #[test]
    fn a_lineage_is_account_and_refresh_token_only() {
        let login = |id: &str, token: &str, other: &str| {
            let text = format!(
                r#"{{"tokens":{{"account_id":"{id}","refresh_token":"{token}","access_token":"{other}"}},"x":1}}"#
            );
            lineage(text.as_bytes())
        };
        assert_eq!(login("a", "r", "1"), login("a", "r", "2"));
        assert_ne!(login("a", "r", "1"), login("a", "r2", "1"));
        assert_ne!(login("ab", "c", "1"), login("a", "bc", "1"));
        assert_eq!(login("a", "", "1"), None);
        assert_eq!(lineage(br#"{"OPENAI_API_KEY":"sk","tokens":null}"#), None);
        assert_eq!(lineage(b"not json"), None);
    }
}
