//! Segment files: `<first number>.log`, one line an event, numbers without a hole within a file.
//!
//! Everything here blocks and is called on the blocking pool or on the writer's thread. No index is kept: the lines
//! say their numbers, so a place is found by bisection with a few small reads.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Gap, Record, Slice, line};

/// Bytes read at once when a place is looked for; a usual line is a fraction of it.
const PROBE_BYTES: usize = 4 << 10;

/// Bisection ends at a stretch this long; reading on is cheaper than another probe.
const SCAN_BYTES: u64 = 64 << 10;

/// One segment as far as it is readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// The number of its first line, or of the line it waits for.
    pub(super) first: u64,
    /// Its readable length.
    pub(super) bytes: u64,
}

/// Where the segment lies that begins with `first`. Twenty digits hold every number, so names sort as numbers do.
pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.log"))
}

/// The segments of a stream, oldest first, with the lengths their files have now.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(digits) = name.to_str().and_then(|name| name.strip_suffix(".log")) else {
            continue;
        };
        let Ok(first) = digits.parse() else { continue };
        segments.push(Segment { first, bytes: entry.metadata()?.len() });
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok(segments)
}

/// Cuts off what follows the last whole line (a write that `kill -9` interrupted; nobody was shown it) and answers
/// the number of that line, or `None` if the segment has none.
pub(super) fn mend_tail(dir: &Path, segment: &mut Segment) -> io::Result<Option<u64>> {
    let file = OpenOptions::new().read(true).write(true).open(path(dir, segment.first))?;
    let (good, last) = tail(&file, *segment)?;
    cut(&file, segment, good)?;
    Ok(last)
}

/// Like [`mend_tail`], but looks at every line: after a power cut any page that was not synced may be zeros, also
/// before good ones.
pub(super) fn mend_whole(dir: &Path, segment: &mut Segment) -> io::Result<Option<u64>> {
    let file = OpenOptions::new().read(true).write(true).open(path(dir, segment.first))?;
    let mut reader = BufReader::new(&file).take(segment.bytes);
    let (mut good, mut last, mut line) = (0, None, Vec::new());
    loop {
        line.clear();
        // A stretch of zeros has no line end: never take in more than a line can have.
        let n = reader.by_ref().take(line::LINE_LIMIT as u64 + 1).read_until(b'\n', &mut line)? as u64;
        let expected = last.map_or(segment.first, |last| last + 1);
        let whole = line.ends_with(b"}\n") && !line.contains(&0);
        if !whole || line::head(&line).is_none_or(|(seq, _)| seq != expected) {
            break;
        }
        good += n;
        last = Some(expected);
    }
    cut(&file, segment, good)?;
    Ok(last)
}

fn cut(file: &File, segment: &mut Segment, good: u64) -> io::Result<()> {
    if good < segment.bytes {
        tracing::warn!(
            first = segment.first,
            dropped = segment.bytes - good,
            "journal segment ends within a line"
        );
        file.set_len(good)?;
        file.sync_data()?;
        segment.bytes = good;
    }
    Ok(())
}

/// Where the last whole line ends, and its number.
fn tail(file: &File, segment: Segment) -> io::Result<(u64, Option<u64>)> {
    let mut end = segment.bytes;
    while let Some(newline) = newline_before(file, end)? {
        let start = newline_before(file, newline)?.map_or(0, |before| before + 1);
        if let Some(seq) = seq_at(file, start, newline)? {
            return Ok((newline + 1, Some(seq)));
        }
        end = newline;
    }
    Ok((0, None))
}

/// The place of the last line end before `end`.
fn newline_before(file: &File, mut end: u64) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; PROBE_BYTES];
    while end > 0 {
        let start = end.saturating_sub(chunk.len() as u64);
        let part = &mut chunk[..(end - start) as usize];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().rposition(|b| *b == b'\n') {
            return Ok(Some(start + at as u64));
        }
        end = start;
    }
    Ok(None)
}

/// The place of the first line end in `start..end`.
fn newline_after(file: &File, mut start: u64, end: u64) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; PROBE_BYTES];
    while start < end {
        let want = chunk.len().min((end - start) as usize);
        let part = &mut chunk[..want];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().position(|b| *b == b'\n') {
            return Ok(Some(start + at as u64));
        }
        start += want as u64;
    }
    Ok(None)
}

/// The number of the line that begins at `start`.
fn seq_at(file: &File, start: u64, end: u64) -> io::Result<Option<u64>> {
    let mut head = [0; line::HEAD_BYTES];
    let part = &mut head[..line::HEAD_BYTES.min((end - start) as usize)];
    file.read_exact_at(part, start)?;
    Ok(line::head(part).map(|(seq, _)| seq))
}

/// A line's beginning at or before the line `seq`, near it, and that line's number.
fn locate(file: &File, segment: Segment, seq: u64) -> io::Result<(u64, u64)> {
    let (mut low, mut low_seq, mut high) = (0, segment.first, segment.bytes);
    // The line is known to begin within low..high, and one begins at low.
    while low_seq < seq && high - low > SCAN_BYTES {
        let middle = low + (high - low) / 2;
        let Some(newline) = newline_after(file, middle - 1, high)?.filter(|at| at + 1 < high) else {
            high = middle;
            continue;
        };
        // A line without a number is damage: what is before it can still be read.
        match seq_at(file, newline + 1, segment.bytes)? {
            Some(found) if found <= seq => (low, low_seq) = (newline + 1, found),
            _ => high = middle,
        }
    }
    Ok((low, low_seq))
}

/// Which end of too many bytes is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Oldest,
    Newest,
}

/// Records `after + 1 ..= upto` from the segments, at most `max_records` and about `max_bytes`, up to the first hole.
/// A hole right after `after` is told as the gap. A damaged line is logged and ends its segment, as if trimmed.
pub(super) fn forward(
    dir: &Path,
    segments: &[Segment],
    after: u64,
    upto: u64,
    max_records: usize,
    max_bytes: usize,
) -> io::Result<Slice> {
    collect(dir, segments, after, upto, max_records, max_bytes, Keep::Oldest)
}

fn collect(
    dir: &Path,
    segments: &[Segment],
    after: u64,
    upto: u64,
    max_records: usize,
    max_bytes: usize,
    keep: Keep,
) -> io::Result<Slice> {
    let mut next = after + 1;
    let mut gap = None;
    let mut records = VecDeque::new();
    let mut size = 0;
    let start = segments.partition_point(|segment| segment.first <= next).saturating_sub(1);
    'segments: for segment in &segments[start..] {
        if segment.first > upto + 1 {
            break;
        }
        if segment.first > next {
            if !records.is_empty() {
                break;
            }
            gap = Some(Gap { from: after + 1, to: segment.first - 1 });
            next = segment.first;
        }
        if segment.bytes == 0 {
            continue;
        }
        let mut lines = Lines::open(dir, *segment, next)?;
        while next <= upto && records.len() < max_records {
            let Some(record) = lines.next(next)? else {
                continue 'segments;
            };
            next += 1;
            size += record.data.len();
            records.push_back(record);
            while size > max_bytes && records.len() > 1 && keep == Keep::Newest {
                size -= records.pop_front().map_or(0, |record: Record| record.data.len());
            }
            if size >= max_bytes && keep == Keep::Oldest {
                break 'segments;
            }
        }
        if records.len() >= max_records {
            break;
        }
    }
    if records.is_empty() && next <= upto {
        gap = Some(Gap { from: after + 1, to: upto });
    }
    Ok(Slice { gap, records: records.into(), newest: upto })
}

/// The newest records before `before`, oldest first, at most `max_records` and about `max_bytes`, down to the first
/// hole. A hole right before `before` is told as the gap. `newest` is the last segment's newest line.
pub(super) fn backward(
    dir: &Path,
    segments: &[Segment],
    before: u64,
    newest: u64,
    max_records: usize,
    max_bytes: usize,
) -> io::Result<Slice> {
    let last_of = |at: usize| match segments.get(at) {
        Some(segment) if segment.bytes == 0 => Ok(None),
        Some(_) if at + 1 == segments.len() => Ok(Some(newest)),
        Some(segment) => Ok::<_, io::Error>(tail(&File::open(path(dir, segment.first))?, *segment)?.1),
        None => Ok(None),
    };
    let nothing = Slice { gap: (before > 1).then(|| Gap { from: 1, to: before - 1 }), ..Slice::default() };
    let mut at = segments.partition_point(|segment| segment.first < before);
    let top = loop {
        let Some(lower) = at.checked_sub(1) else {
            return Ok(nothing);
        };
        at = lower;
        if let Some(last) = last_of(at)? {
            break last.min(before - 1);
        }
    };
    let wanted = (top + 1).saturating_sub(max_records as u64).max(1);
    while at > 0 && segments[at].first > wanted && last_of(at - 1)? == Some(segments[at].first - 1) {
        at -= 1;
    }
    let after = wanted.max(segments[at].first) - 1;
    let mut slice = collect(dir, segments, after, top, max_records, max_bytes, Keep::Newest)?;
    slice.gap = (top < before - 1).then_some(Gap { from: top + 1, to: before - 1 });
    Ok(slice)
}

/// Reads a segment's lines one after the other.
struct Lines {
    reader: io::Take<BufReader<File>>,
    first: u64,
}

impl Lines {
    /// Opens the segment where the line `seq` begins.
    fn open(dir: &Path, segment: Segment, seq: u64) -> io::Result<Self> {
        let mut file = File::open(path(dir, segment.first))?;
        let (start, mut at) = locate(&file, segment, seq)?;
        file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::with_capacity(32 << 10, file).take(segment.bytes - start);
        while at < seq && reader.skip_until(b'\n')? > 0 {
            at += 1;
        }
        Ok(Self { reader, first: segment.first })
    }

    /// The next line, which must be the line `seq`; `None` at the readable end, or at a line that is not.
    fn next(&mut self, seq: u64) -> io::Result<Option<Record>> {
        let mut line = Vec::with_capacity(512);
        self.reader.by_ref().take(line::LINE_LIMIT as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        let whole = line.pop() == Some(b'\n');
        line.shrink_to_fit();
        let record = line::record(seq, line.into()).filter(|_| whole);
        if record.is_none() {
            tracing::error!(
                segment = self.first,
                seq,
                "journal line is damaged; what follows it is passed over"
            );
        }
        Ok(record)
    }
}
