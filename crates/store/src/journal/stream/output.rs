//! The writer's side of a stream: from the intake to the file, and only then to the readers.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::{DiskStream, lock};
use crate::journal::boot::{self, UNSYNCED_LINES};
use crate::journal::segment::{self, Segment};
use crate::journal::writer::BATCH_BYTES;

/// The writer's own.
pub(super) struct Output {
    file: Option<File>,
    segment: Segment,
    /// Lines on their way to the file; after a failed write the same bytes go to the same place again.
    inflight: Vec<Bytes>,
    written_at: Instant,
    warm: bool,
    deleted: bool,
}

/// Lines of one segment that a power cut could take.
pub(super) struct Unsynced {
    first: u64,
    lines: u64,
}

/// What the writer has to know after a write.
pub(in crate::journal) struct Wrote {
    /// The newest number, if it is another one: to be told by [`DiskStream::announce`].
    pub(in crate::journal) newest: Option<u64>,
    /// There is more to write.
    pub(in crate::journal) more: bool,
    /// A file was opened for it.
    pub(in crate::journal) opened: bool,
    /// The stream was cold before.
    pub(in crate::journal) warmed: bool,
}

impl Output {
    /// A cold one that goes on at the end of `segment`.
    pub(super) fn at(segment: Segment) -> Self {
        Self {
            file: None,
            segment,
            inflight: Vec::new(),
            written_at: Instant::now(),
            warm: false,
            deleted: false,
        }
    }
}

impl DiskStream {
    /// Writes the next batch with one write, and shows it to readers. An error leaves all as it was, to be tried again.
    pub(in crate::journal) fn write_batch(&self, buffer: &mut Vec<u8>) -> io::Result<Wrote> {
        let mut output = lock(&self.output);
        let output = &mut *output;
        if output.inflight.is_empty() {
            self.take_batch(&mut output.inflight);
        }
        let mut wrote = Wrote { more: false, opened: false, warmed: false, newest: None };
        if !output.inflight.is_empty() {
            if !output.deleted {
                wrote.opened = self.write_inflight(output, buffer)?;
            }
            output.written_at = Instant::now();
            wrote.warmed = !std::mem::replace(&mut output.warm, true);
            wrote.newest = Some(self.publish(output));
        }
        let mut intake = lock(&self.intake);
        wrote.more = !intake.pending.is_empty();
        intake.queued = wrote.more;
        if !wrote.more && intake.pending.capacity() > 64 {
            intake.pending = VecDeque::new();
        }
        Ok(wrote)
    }

    fn take_batch(&self, batch: &mut Vec<Bytes>) {
        let mut intake = lock(&self.intake);
        let mut size = 0;
        while let Some(line) = intake.pending.front() {
            size += line.len() + 1;
            if size > BATCH_BYTES && !batch.is_empty() {
                return;
            }
            batch.extend(intake.pending.pop_front());
        }
    }

    /// Brings the lines in flight into the file; answers whether it had to be opened.
    fn write_inflight(&self, output: &mut Output, buffer: &mut Vec<u8>) -> io::Result<bool> {
        buffer.clear();
        for line in &output.inflight {
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
        }
        let first = lock(&self.readable).ring.end();
        let full = output.segment.bytes + buffer.len() as u64 > self.core.options.segment_bytes;
        if output.segment.bytes > 0 && full && self.may_roll(output.segment.first) {
            output.file = None;
            output.segment = Segment { first, bytes: 0 };
            self.core.sync_soon();
        }
        let opened = output.file.is_none();
        let file = match output.file.take() {
            Some(file) => file,
            None => self.open_segment(&mut output.segment, first)?,
        };
        let file = output.file.insert(file);
        self.write_at(file, buffer, output.segment.bytes)?;
        output.segment.bytes += buffer.len() as u64;
        self.note_unsynced(output.segment.first, output.inflight.len() as u64);
        Ok(opened)
    }

    /// At most two segments may be unsynced: that is how many a power cut's recovery looks through.
    fn may_roll(&self, active: u64) -> bool {
        lock(&self.unsynced).iter().all(|unsynced| unsynced.first == active)
    }

    fn open_segment(&self, segment: &mut Segment, next: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if segment.bytes > 0 {
            match options.open(segment::path(&self.dir, segment.first)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::error!(
                        stream = self.name,
                        first = segment.first,
                        "journal segment was removed by others"
                    );
                    *segment = Segment { first: next, bytes: 0 };
                }
                other => return other,
            }
        }
        options.create(true).open(segment::path(&self.dir, segment.first))
    }

    /// Writes all of it at its place. A part that was written before an error is written again with the rest, at the
    /// same place, so no line is torn by it.
    fn write_at(&self, file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let allowed = self.core.options.allowed(bytes.len())?;
            match file.write_at(&bytes[..allowed], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    at += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes the written lines readable and trims; answers the newest number.
    fn publish(&self, output: &mut Output) -> u64 {
        let options = &self.core.options;
        let mut size = 0;
        let mut trimmed = Vec::new();
        let newest = {
            let mut readable = lock(&self.readable);
            for line in output.inflight.drain(..) {
                size += line.len();
                readable.ring.push(line, options.ring_bytes);
            }
            if !output.deleted {
                match readable.segments.last_mut() {
                    Some(last) if last.first == output.segment.first => *last = output.segment,
                    _ => readable.segments.push(output.segment),
                }
                let mut kept: u64 = readable.segments.iter().map(|segment| segment.bytes).sum();
                while kept > options.keep_bytes && readable.segments.len() > 1 {
                    let oldest = readable.segments.remove(0);
                    kept -= oldest.bytes;
                    trimmed.push(oldest.first);
                }
                let oldest = readable.segments[0].first;
                readable.ring.trim(oldest);
            }
            readable.newest()
        };
        output.inflight.shrink_to(64);
        lock(&self.intake).bytes -= size;
        self.core.pending.fetch_sub(size, Ordering::Relaxed);
        for first in trimmed {
            if let Err(error) = std::fs::remove_file(segment::path(&self.dir, first)) {
                tracing::warn!(stream = self.name, first, %error, "trimmed journal segment stays on disk");
            }
        }
        newest
    }

    /// Wakes who waits for events up to `newest`.
    pub(in crate::journal) fn announce(&self, newest: u64) {
        self.newest.send_replace(newest);
    }

    fn note_unsynced(&self, first: u64, lines: u64) {
        let mut unsynced = lock(&self.unsynced);
        if unsynced.is_empty() {
            self.core.mark_dirty(self.this.upgrade());
        }
        match unsynced.last_mut() {
            Some(last) if last.first == first => last.lines += lines,
            _ => unsynced.push(Unsynced { first, lines }),
        }
        let total: u64 = unsynced.iter().map(|unsynced| unsynced.lines).sum();
        drop(unsynced);
        if total > UNSYNCED_LINES
            && let Err(error) = self.sync()
        {
            self.core.sync_failed(&self.name, &error);
        }
    }

    /// Makes durable what is written; answers whether more was written meanwhile. Blocks.
    pub(in crate::journal) fn sync(&self) -> io::Result<bool> {
        let _turn = lock(&self.sync_turn);
        let now: Vec<(u64, u64)> = lock(&self.unsynced).iter().map(|part| (part.first, part.lines)).collect();
        for (first, _) in &now {
            match File::open(segment::path(&self.dir, *first)).and_then(|file| file.sync_data()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // Trimmed or deleted meanwhile: nothing of it can be missed.
                _ => {}
            }
        }
        match boot::sync_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut unsynced = lock(&self.unsynced);
        for (first, lines) in now {
            if let Some(part) = unsynced.iter_mut().find(|part| part.first == first) {
                part.lines -= lines;
            }
        }
        unsynced.retain(|part| part.lines > 0);
        Ok(!unsynced.is_empty())
    }

    pub(in crate::journal) fn written_at(&self) -> Instant {
        lock(&self.output).written_at
    }

    /// Gives the file handle back; answers whether there was one.
    pub(in crate::journal) fn close_file(&self) -> bool {
        lock(&self.output).file.take().is_some()
    }

    /// Lets go of what only a busy stream needs; answers whether a file was closed.
    pub(in crate::journal) fn cool(&self) -> bool {
        let mut output = lock(&self.output);
        output.warm = false;
        lock(&self.readable).ring.clear();
        output.inflight = Vec::new();
        output.file.take().is_some()
    }

    /// Goes on without files; blocks while a write is under way.
    pub(in crate::journal) fn forget_files(&self) {
        let mut output = lock(&self.output);
        output.deleted = true;
        output.file = None;
        lock(&self.readable).segments.clear();
    }
}
