//! Archives of a [`super::FakeHost`]: a plain tar behind a checksum, so that a cut or changed one is noticed.

use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::tree::{Node, Tree};
use crate::error::{HostError, Result};
use crate::{Codec, Excludes};

const MAGIC: &[u8; 8] = b"fakearc1";
const HEADER: usize = MAGIC.len() + 1 + 32;

pub(super) fn pack(tree: &Tree, workdir: &Path, excludes: &Excludes, codec: Codec) -> std::io::Result<Bytes> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut pruned: Option<&PathBuf> = None;
    for (at, node) in tree.below(workdir) {
        if pruned.is_some_and(|pruned| at.starts_with(pruned)) {
            continue;
        }
        let rel = at.strip_prefix(workdir).map_err(std::io::Error::other)?;
        if excludes.matches(rel.as_os_str().as_encoded_bytes()) {
            pruned = Some(at);
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o700);
        match node {
            Node::Dir => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, rel, std::io::empty())?;
            }
            Node::File { bytes, mode } => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, rel, bytes.as_ref())?;
            }
            Node::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, rel, target)?;
            }
        }
    }
    let tar = tar.into_inner()?;
    let mut packed = Vec::with_capacity(HEADER + tar.len());
    packed.extend_from_slice(MAGIC);
    packed.push(number(codec));
    packed.extend_from_slice(&Sha256::digest(&tar));
    packed.extend_from_slice(&tar);
    Ok(packed.into())
}

/// Reads an archive of [`pack`] as paths relative to the workdir.
pub(super) fn unpack(packed: &[u8], codec: Codec) -> Result<Vec<(PathBuf, Node)>> {
    let bad = |why: &str| HostError::BadArchive(why.to_owned());
    let (header, tar) = packed.split_at_checked(HEADER).ok_or_else(|| bad("it is cut short"))?;
    if !header.starts_with(MAGIC) {
        return Err(bad("no fake host has made it"));
    }
    if header[MAGIC.len()] != number(codec) {
        return Err(bad("its codec is another one"));
    }
    if header[MAGIC.len() + 1..] != Sha256::digest(tar)[..] {
        return Err(bad("its checksum is wrong"));
    }
    let unreadable = |error: std::io::Error| HostError::BadArchive(error.to_string());
    let mut nodes = Vec::new();
    for entry in tar::Archive::new(tar).entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path().map_err(unreadable)?.into_owned();
        let mode = entry.header().mode().map_err(unreadable)?;
        let node = match entry.header().entry_type() {
            tar::EntryType::Directory => Node::Dir,
            tar::EntryType::Symlink => {
                let target =
                    entry.link_name().map_err(unreadable)?.ok_or_else(|| bad("a link has no target"))?;
                Node::Link(target.into_owned())
            }
            _ => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(unreadable)?;
                Node::File { bytes: bytes.into(), mode }
            }
        };
        nodes.push((path, node));
    }
    Ok(nodes)
}

fn number(codec: Codec) -> u8 {
    match codec {
        Codec::Gzip => 1,
        Codec::Zstd => 2,
    }
}
