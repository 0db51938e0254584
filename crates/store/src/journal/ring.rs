//! The newest lines of a stream, in memory, shared with every viewer that keeps up.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a line costs beside its bytes: its slot, its shared count, the allocator's rounding.
const LINE_OVERHEAD: usize = 96;

/// The newest lines, without a hole; empty for a stream that is idle.
#[derive(Debug, Default)]
pub(super) struct Ring {
    lines: VecDeque<Bytes>,
    bytes: usize,
    /// The number after the newest line's.
    end: u64,
}

impl Ring {
    /// An empty one before the line `end`.
    pub(super) fn before(end: u64) -> Self {
        Self { lines: VecDeque::new(), bytes: 0, end }
    }

    /// Adds the next line and drops the oldest beyond `limit` bytes.
    pub(super) fn push(&mut self, line: Bytes, limit: usize) {
        self.bytes += line.len() + LINE_OVERHEAD;
        self.lines.push_back(line);
        self.end += 1;
        while self.bytes > limit && self.pop() {}
    }

    /// Drops the lines before the number `first`: a trimmed event must not be found by some readers and not by others.
    pub(super) fn trim(&mut self, first: u64) {
        while self.first() < first && self.pop() {}
    }

    fn pop(&mut self) -> bool {
        let Some(oldest) = self.lines.pop_front() else {
            return false;
        };
        self.bytes -= oldest.len() + LINE_OVERHEAD;
        true
    }

    /// The number after the newest line's.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The number of the oldest line, or of the next one when there is none.
    pub(super) fn first(&self) -> u64 {
        self.end - self.lines.len() as u64
    }

    /// The lines from number `from` on, with their numbers. Nothing when `from` is older than the ring.
    pub(super) fn since(&self, from: u64) -> impl Iterator<Item = (u64, &Bytes)> {
        let first = self.first();
        let skip = if from < first { self.lines.len() } else { (from - first) as usize };
        self.lines.iter().enumerate().skip(skip).map(move |(i, line)| (first + i as u64, line))
    }

    /// Lets go of every line and of the room they took.
    pub(super) fn clear(&mut self) {
        self.lines = VecDeque::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_lines_within_the_limit_stay() {
        let mut ring = Ring::before(10);
        for i in 10..20u8 {
            ring.push(Bytes::copy_from_slice(&[i; 100]), 3 * (100 + LINE_OVERHEAD));
        }
        assert_eq!(ring.first(), 17);
        let seen: Vec<_> = ring.since(18).map(|(seq, line)| (seq, line[0])).collect();
        assert_eq!(seen, [(18, 18), (19, 19)]);
        assert_eq!(ring.since(16).count(), 0, "older than the ring");
        assert_eq!(ring.since(20).count(), 0);
        ring.clear();
        assert_eq!((ring.first(), ring.since(20).count()), (20, 0));
    }

    #[test]
    fn a_line_beyond_the_limit_is_not_held() {
        let mut ring = Ring::before(1);
        ring.push(Bytes::from(vec![0; 1000]), 500);
        assert_eq!(ring.first(), 2);
    }
}
