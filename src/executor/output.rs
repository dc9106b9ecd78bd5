//! Keeps the start and the end of a stream within a bound.
//!
//! The first half of the bound holds the stream's first bytes, the second half is a ring that holds
//! its last ones. A stream that fits is kept whole. Memory is taken as bytes arrive and never
//! exceeds the bound; a byte is copied at most once as it arrives.

use super::audience::SoFar;
use crate::message::Output;

/// The kept part of a stream, and the count of all its bytes.
pub(super) struct Kept {
    head: Vec<u8>,
    head_max: usize,
    tail: Vec<u8>,
    tail_max: usize,
    /// Where in `tail` the oldest byte is, once the ring is full.
    oldest: usize,
    total: u64,
}

impl Kept {
    /// Keeps at most `max` bytes; with an odd `max` the head has one more.
    pub(super) fn new(max: u64) -> Self {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let tail_max = max / 2;
        Self {
            head: Vec::new(),
            head_max: max - tail_max,
            tail: Vec::new(),
            tail_max,
            oldest: 0,
            total: 0,
        }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.head_max - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        append(&mut self.head, first, self.head_max);
        // Whatever is more than the ring holds would be overwritten by what follows it in the same
        // bytes.
        self.push_tail(&rest[rest.len().saturating_sub(self.tail_max)..]);
    }

    /// What is kept so far.
    pub(super) fn so_far(&self) -> SoFar<'_> {
        let (wrapped, oldest) = self.tail.split_at(self.oldest);
        SoFar {
            head: &self.head,
            tail: [oldest, wrapped],
            total: self.total,
        }
    }

    /// How many bytes the stream had.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The kept bytes as the result carries them.
    pub(super) fn into_output(mut self) -> Output {
        self.tail.rotate_left(self.oldest);
        Output::from_kept(&self.head, &self.tail, self.total)
    }

    /// Takes at most `tail_max` bytes into the ring: first fills it, then overwrites the oldest.
    fn push_tail(&mut self, bytes: &[u8]) {
        let room = self.tail_max - self.tail.len();
        let (fill, over) = bytes.split_at(room.min(bytes.len()));
        append(&mut self.tail, fill, self.tail_max);
        let to_end = (self.tail.len() - self.oldest).min(over.len());
        let (before_end, wrapped) = over.split_at(to_end);
        self.tail[self.oldest..self.oldest + to_end].copy_from_slice(before_end);
        self.tail[..wrapped.len()].copy_from_slice(wrapped);
        if !over.is_empty() {
            self.oldest = (self.oldest + over.len()) % self.tail_max;
        }
    }
}

/// Appends, growing by doubling but never past `max`, where a plain `Vec` would take up to twice of
/// it.
fn append(to: &mut Vec<u8>, bytes: &[u8], max: usize) {
    let needed = to.len() + bytes.len();
    if needed > to.capacity() {
        let capacity = to.capacity().saturating_mul(2).clamp(needed, max);
        to.reserve_exact(capacity - to.len());
    }
    to.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a stream in which every place can be told from its neighbours, and which is ASCII.
    fn stream(len: usize) -> Vec<u8> {
        (0..len)
            .map(|at| b'0' + u8::try_from((at * 7 + at / 64) % 64).expect("below 64"))
            .collect()
    }

    fn kept(max: u64, stream: &[u8], chunk: usize) -> Kept {
        let mut kept = Kept::new(max);
        stream.chunks(chunk).for_each(|bytes| kept.push(bytes));
        kept
    }

    #[test]
    fn keeps_head_and_tail_for_every_bound_length_and_chunk() {
        for max in 0..12 {
            for len in 0..40 {
                for chunk in 1..14 {
                    let stream = stream(len);
                    let kept = kept(max as u64, &stream, chunk);
                    let SoFar { head, tail, total } = kept.so_far();
                    let so_far = [head, tail[0], tail[1]].concat();
                    let output = kept.into_output();
                    let expected = match len <= max {
                        true => stream.clone(),
                        false => [&stream[..max.div_ceil(2)], &stream[len - max / 2..]].concat(),
                    };
                    assert_eq!(
                        output.decode().unwrap(),
                        expected,
                        "max {max}, length {len}, chunk {chunk}"
                    );
                    assert_eq!((so_far, total), (expected.clone(), len as u64));
                    assert_eq!(output.bytes, len as u64);
                    assert_eq!(output.truncated_bytes, (len - expected.len()) as u64);
                }
            }
        }
    }

    #[test]
    fn memory_is_taken_late_and_never_past_the_bound() {
        let empty = Kept::new(u64::MAX);
        assert_eq!(empty.head.capacity() + empty.tail.capacity(), 0);

        let short = kept(1 << 30, &stream(1000), 100);
        assert!(short.head.capacity() + short.tail.capacity() <= 2048);

        let flooded = kept(100_001, &stream(1 << 20), 65_536);
        assert_eq!(flooded.head.capacity() + flooded.tail.capacity(), 100_001);
    }
}
