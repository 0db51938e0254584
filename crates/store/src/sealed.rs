//! Encryption at rest: XChaCha20-Poly1305 with random nonces, whole values and streams.
//!
//! Every sealed thing is bound to its name (as associated data), so a value that was moved to another row or another
//! file does not open. A stream is the STREAM construction: each chunk's nonce is a random prefix, the chunk's number
//! and a mark on the last one, so chunks that are cut off, left out, swapped or repeated do not open either.

use chacha20poly1305::aead::{AeadInOut, Generate, KeyInit};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::{Result, StoreError};

/// Length of a key in bytes.
pub(crate) const KEY_LEN: usize = 32;
/// Plain bytes of one chunk of a stream, but for the last, which may be shorter.
pub(crate) const CHUNK: usize = 1 << 20;
/// Bytes that sealing adds to a chunk.
pub(crate) const TAG_LEN: usize = 16;
/// Begins a sealed whole value: names the form, so that another one can follow.
const WHOLE_MAGIC: &[u8; 4] = b"oxw1";
/// Begins a sealed stream.
const STREAM_MAGIC: &[u8; 4] = b"oxs1";
const NONCE_LEN: usize = 24;
/// The nonce without the chunk's number (4 bytes) and the mark of the last one (1 byte).
const PREFIX_LEN: usize = 19;
/// Length of what stands before a stream's first chunk.
pub(crate) const STREAM_HEADER: usize = STREAM_MAGIC.len() + PREFIX_LEN;

/// Plain bytes of a sealed stream of this length; `None` when no stream has it.
pub(crate) fn plain_len(stored: u64) -> Option<u64> {
    let body = stored.checked_sub(STREAM_HEADER as u64)?;
    let (whole, tag) = ((CHUNK + TAG_LEN) as u64, TAG_LEN as u64);
    let chunks = body.div_ceil(whole);
    // Even an empty stream has a chunk, the one with the mark of the last.
    let last = body - chunks.checked_sub(1)? * whole;
    (last >= tag).then(|| body - chunks * tag)
}

/// Seals and opens with one key.
#[derive(Clone)]
pub(crate) struct Sealer(XChaCha20Poly1305);

impl Sealer {
    /// A sealer with this key.
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Self {
        Self(XChaCha20Poly1305::new(&Key::from(*key)))
    }

    /// A new random key.
    pub(crate) fn new_key() -> Result<[u8; KEY_LEN]> {
        Key::try_generate().map(Into::into).map_err(no_random)
    }

    /// Seals a whole value under its name.
    pub(crate) fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = XNonce::try_generate().map_err(no_random)?;
        let mut sealed = Vec::with_capacity(WHOLE_MAGIC.len() + NONCE_LEN + plain.len() + TAG_LEN);
        sealed.extend_from_slice(WHOLE_MAGIC);
        sealed.extend_from_slice(&nonce);
        let begin = sealed.len();
        sealed.extend_from_slice(plain);
        let tag = self
            .0
            .encrypt_inout_detached(&nonce, name.as_bytes(), (&mut sealed[begin..]).into())
            .map_err(|_| too_long(name))?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    /// Opens what [`Sealer::seal`] sealed under this name.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let rest =
            sealed.strip_prefix(WHOLE_MAGIC).ok_or_else(|| damaged(name, "it is not a sealed value"))?;
        let (nonce, rest) =
            rest.split_first_chunk::<NONCE_LEN>().ok_or_else(|| damaged(name, "it is cut off"))?;
        let mut plain = rest.to_vec();
        self.0
            .decrypt_in_place(&XNonce::from(*nonce), name.as_bytes(), &mut plain)
            .map_err(|_| damaged(name, WRONG))?;
        Ok(plain)
    }

    /// Begins a stream under this name. Its header must be written first.
    pub(crate) fn begin_stream(&self, name: String) -> Result<StreamSealer> {
        let nonce = XNonce::try_generate().map_err(no_random)?;
        let mut prefix = [0; PREFIX_LEN];
        prefix.copy_from_slice(&nonce[..PREFIX_LEN]);
        Ok(StreamSealer { cipher: self.0.clone(), place: Place { name, prefix, next: 0, ended: false } })
    }

    /// Begins reading the stream with this name and header.
    pub(crate) fn open_stream(&self, name: String, header: &[u8; STREAM_HEADER]) -> Result<StreamOpener> {
        let prefix: Option<[u8; PREFIX_LEN]> =
            header.strip_prefix(STREAM_MAGIC).and_then(|prefix| prefix.try_into().ok());
        let prefix = prefix.ok_or_else(|| damaged(&name, "it is not a sealed stream"))?;
        Ok(StreamOpener { cipher: self.0.clone(), place: Place { name, prefix, next: 0, ended: false } })
    }
}

/// Where in a stream one is.
struct Place {
    name: String,
    prefix: [u8; PREFIX_LEN],
    next: u32,
    ended: bool,
}

impl Place {
    /// The next chunk's nonce; never the same twice, as the number never wraps (4 PiB).
    fn advance(&mut self, last: bool) -> Result<XNonce> {
        if self.ended {
            return Err(damaged(&self.name, "a chunk follows the last one"));
        }
        let mut nonce = [0; NONCE_LEN];
        nonce[..PREFIX_LEN].copy_from_slice(&self.prefix);
        nonce[PREFIX_LEN..NONCE_LEN - 1].copy_from_slice(&self.next.to_be_bytes());
        nonce[NONCE_LEN - 1] = u8::from(last);
        self.next = self.next.checked_add(1).ok_or_else(|| too_long(&self.name))?;
        self.ended = last;
        Ok(nonce.into())
    }
}

/// Seals a stream, chunk by chunk.
pub(crate) struct StreamSealer {
    cipher: XChaCha20Poly1305,
    place: Place,
}

impl StreamSealer {
    /// What is written before the first chunk.
    pub(crate) fn header(&self) -> [u8; STREAM_HEADER] {
        let mut header = [0; STREAM_HEADER];
        header[..STREAM_MAGIC.len()].copy_from_slice(STREAM_MAGIC);
        header[STREAM_MAGIC.len()..].copy_from_slice(&self.place.prefix);
        header
    }

    /// Seals the next chunk in its place and adds the tag. Every chunk but the last is [`CHUNK`] long.
    pub(crate) fn seal(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<()> {
        debug_assert!(if last { chunk.len() <= CHUNK } else { chunk.len() == CHUNK });
        let nonce = self.place.advance(last)?;
        let name = self.place.name.as_bytes();
        self.cipher.encrypt_in_place(&nonce, name, chunk).map_err(|_| too_long(&self.place.name))
    }
}

/// Opens a stream, chunk by chunk.
pub(crate) struct StreamOpener {
    cipher: XChaCha20Poly1305,
    place: Place,
}

impl StreamOpener {
    /// Opens the next chunk in its place and takes the tag off. `last` is whether the file ends with it: a file that
    /// was cut between two chunks then has a last chunk without the mark, which does not open.
    pub(crate) fn open(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<()> {
        let nonce = self.place.advance(last)?;
        let name = self.place.name.as_bytes();
        self.cipher.decrypt_in_place(&nonce, name, chunk).map_err(|_| damaged(&self.place.name, WRONG))
    }
}

const WRONG: &str = "its bytes were changed, or the key is another one than it was stored with";

fn damaged(name: &str, why: &str) -> StoreError {
    StoreError::Damaged { what: name.to_owned(), why: why.to_owned() }
}

fn too_long(name: &str) -> StoreError {
    StoreError::Invalid { field: "length", why: format!("{name} is too long to be sealed") }
}

fn no_random(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable { what: "the system's random numbers", why: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sealer(key: u8) -> Sealer {
        Sealer::new(&[key; KEY_LEN])
    }

    #[test]
    fn a_value_opens_only_under_its_name_and_key_and_unchanged() {
        let sealed = sealer(1).seal("record a", b"secret").unwrap();
        assert_eq!(sealer(1).open("record a", &sealed).unwrap(), b"secret");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert!(sealer(1).open("record b", &sealed).is_err());
        assert!(sealer(2).open("record a", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut torn = sealed.clone();
            torn[i] ^= 1;
            assert!(matches!(sealer(1).open("record a", &torn), Err(StoreError::Damaged { .. })), "byte {i}");
            assert!(sealer(1).open("record a", &sealed[..i]).is_err(), "cut at {i}");
        }
    }

    fn stream(chunks: usize) -> ([u8; STREAM_HEADER], Vec<Vec<u8>>) {
        let mut sealer = sealer(1).begin_stream("blob".into()).unwrap();
        let sealed = (0..chunks).map(|i| {
            let last = i + 1 == chunks;
            let mut chunk = vec![i as u8; if last { 10 } else { CHUNK }];
            sealer.seal(&mut chunk, last).unwrap();
            chunk
        });
        let sealed = sealed.collect();
        (sealer.header(), sealed)
    }

    #[test]
    fn the_length_of_a_stream_says_how_much_is_in_it() {
        for plain in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7] {
            let chunks = plain.div_ceil(CHUNK).max(1);
            let stored = STREAM_HEADER + plain + chunks * TAG_LEN;
            assert_eq!(plain_len(stored as u64), Some(plain as u64), "{plain}");
        }
        for torn in [0, STREAM_HEADER, STREAM_HEADER + TAG_LEN - 1, STREAM_HEADER + CHUNK + TAG_LEN + 3] {
            assert_eq!(plain_len(torn as u64), None, "{torn}");
        }
    }

    fn opens(name: &str, header: &[u8; STREAM_HEADER], chunks: &[Vec<u8>]) -> bool {
        let mut opener = sealer(1).open_stream(name.into(), header).unwrap();
        let last = chunks.len() - 1;
        chunks.iter().enumerate().all(|(i, chunk)| opener.open(&mut chunk.clone(), i == last).is_ok())
    }

    #[test]
    fn a_stream_opens_only_whole_in_order_and_under_its_name() {
        let (header, chunks) = stream(3);
        assert!(opens("blob", &header, &chunks));
        assert!(!opens("other", &header, &chunks), "swapped with another blob");
        assert!(!opens("blob", &header, &chunks[..2]), "cut off");
        assert!(!opens("blob", &header, &chunks[1..]), "without its first chunk");
        let swapped = [chunks[1].clone(), chunks[0].clone(), chunks[2].clone()];
        assert!(!opens("blob", &header, &swapped), "out of order");
        let repeated = [chunks.clone(), vec![chunks[2].clone()]].concat();
        assert!(!opens("blob", &header, &repeated), "with a chunk after the last");
        let (other_header, _) = stream(3);
        assert!(!opens("blob", &other_header, &chunks), "with another stream's header");
    }
}
