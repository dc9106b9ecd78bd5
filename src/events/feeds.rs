//! What runs have written for those who listen, and what is not published yet.
//!
//! Taking something ([`Feeds::take`]) never waits. Of each stream the last [`STREAM_MAX`] bytes wait at most, of all
//! together [`ALL_MAX`]: what comes over that has the oldest bytes of its stream dropped, and the next chunk says how many.
//! Small writes that wait together go out as one chunk.
//!
//! Runs take turns, and of one run one message is under way at a time, so that its messages stay in order: what was kept
//! for one who came, bytes, the end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::message::{Status, Stream};
use crate::worker::event::{Event, Kept, Listener, RunOf};

/// Most bytes of one stream that wait.
const STREAM_MAX: usize = 256 * 1024;
/// Most bytes that wait in all.
const ALL_MAX: usize = 16 * 1024 * 1024;
/// Most runs that have something waiting.
const RUNS_MAX: usize = 10_000;
/// Most answers that wait for one run: each may hold all that is kept of it.
const ANSWERS_MAX: usize = 16;
/// Most bytes of one chunk.
const CHUNK_MAX: usize = 32 * 1024;
/// A character of UTF-8 has at most so many bytes.
const CHARACTER_MAX: usize = 4;

/// Shared by those who tell and the one who publishes.
#[derive(Default)]
pub(super) struct Feeds {
    state: Mutex<State>,
    ready: Notify,
}

#[derive(Default)]
struct State {
    feeds: BTreeMap<u64, Feed>,
    /// Runs with something to publish and nothing under way, each once.
    turns: VecDeque<u64>,
    waiting: usize,
}

/// What a run has for its listeners.
struct Feed {
    run: RunOf,
    answers: VecDeque<Answer>,
    stdout: Pending,
    stderr: Pending,
    /// Whose turn it is.
    first: Stream,
    end: Option<End>,
    /// No more bytes come.
    closed: bool,
    /// In `turns`, or one of its messages is under way.
    busy: bool,
}

/// What was written so far, for those who came.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) kept: Arc<[Kept]>,
    pub(super) to: Listener,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) status: Status,
    pub(super) is_final: bool,
    pub(super) stdout_bytes: u64,
    pub(super) stderr_bytes: u64,
}

/// The next message of a run.
#[derive(Debug)]
pub(super) enum Piece {
    Answer(Answer),
    Chunk(Kept),
    End(End),
}

/// What came of taking something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Bytes that were dropped.
    pub(super) bytes: u64,
    /// Whole messages that were.
    pub(super) messages: u64,
}

impl Feeds {
    /// Takes what an event says of a run, if it does.
    pub(super) fn take(&self, event: &Event) -> Lost {
        if !is_of_output(event) {
            return Lost::default();
        }
        let mut state = self.state();
        let lost = match event {
            Event::OutputKept { run, kept, listeners } => state.answer(run, kept, listeners),
            Event::OutputHeard {
                run,
                stream,
                offset,
                bytes,
            } => state.push(run, *stream, *offset, bytes),
            Event::OutputEnded {
                run,
                status,
                is_final,
                stdout_bytes,
                stderr_bytes,
            } => state.end(
                run,
                End {
                    status: *status,
                    is_final: *is_final,
                    stdout_bytes: *stdout_bytes,
                    stderr_bytes: *stderr_bytes,
                },
            ),
            Event::OutputClosed { run } => {
                state.close(*run);
                Lost::default()
            }
            _ => Lost::default(),
        };
        let is_ready = !state.turns.is_empty();
        drop(state);
        if is_ready {
            self.ready.notify_one();
        }
        lost
    }

    /// The next message of a run whose turn it is, waiting for one. Nothing more comes of that run before
    /// [`Feeds::done`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&self) -> (RunOf, Piece) {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.ready.notified().await;
        }
    }

    /// The next message, if there is one now.
    pub(super) fn try_next(&self) -> Option<(RunOf, Piece)> {
        self.state().next()
    }

    /// Says that a run's message is on its way no more.
    pub(super) fn done(&self, run: u64) {
        self.state().done(run);
        self.ready.notify_one();
    }

    /// Says that no message is on its way: who saw to those that were has ended without a word.
    pub(super) fn nothing_under_way(&self) {
        let mut state = self.state();
        state.turns.clear();
        let runs: Vec<u64> = state.feeds.keys().copied().collect();
        for run in runs {
            state.done(run);
        }
        drop(state);
        self.ready.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug, but what was in the state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_output(event: &Event) -> bool {
    matches!(
        event,
        Event::OutputKept { .. } | Event::OutputHeard { .. } | Event::OutputEnded { .. } | Event::OutputClosed { .. }
    )
}

impl State {
    /// The feed of a run, made if there is room for one more.
    fn feed(&mut self, run: &RunOf) -> Option<&mut Feed> {
        if self.feeds.len() >= RUNS_MAX && !self.feeds.contains_key(&run.number) {
            return None;
        }
        Some(self.feeds.entry(run.number).or_insert_with(|| Feed::new(run)))
    }

    fn answer(&mut self, run: &RunOf, kept: &Arc<[Kept]>, listeners: &[Listener]) -> Lost {
        let Some(feed) = self.feed(run) else {
            return Lost::messages(listeners.len());
        };
        let room = ANSWERS_MAX - feed.answers.len().min(ANSWERS_MAX);
        let answers = listeners.iter().take(room).map(|to| Answer {
            kept: kept.clone(),
            to: to.clone(),
        });
        feed.answers.extend(answers);
        self.turn(run.number);
        Lost::messages(listeners.len().saturating_sub(room))
    }

    fn push(&mut self, run: &RunOf, stream: Stream, offset: u64, bytes: &Bytes) -> Lost {
        let room = ALL_MAX.saturating_sub(self.waiting);
        let Some(feed) = self.feed(run) else {
            return Lost::bytes(bytes.len());
        };
        let pending = feed.pending(stream);
        let before = pending.bytes.len();
        let most = STREAM_MAX.min(before + room);
        let lost = pending.push(offset, bytes, most);
        let after = pending.bytes.len();
        self.waiting = self.waiting + after - before;
        self.turn(run.number);
        Lost::bytes(lost)
    }

    fn end(&mut self, run: &RunOf, end: End) -> Lost {
        let Some(feed) = self.feed(run) else {
            return Lost::messages(1);
        };
        (feed.end, feed.closed) = (Some(end), true);
        self.turn(run.number);
        Lost::default()
    }

    fn close(&mut self, run: u64) {
        if let Some(feed) = self.feeds.get_mut(&run) {
            feed.closed = true;
            self.turn(run);
        }
    }

    /// Gives a run its turn, if it has something to publish; forgets it if it has nothing at all.
    fn turn(&mut self, run: u64) {
        let Some(feed) = self.feeds.get_mut(&run).filter(|feed| !feed.busy) else {
            return;
        };
        if feed.has_next() {
            feed.busy = true;
            self.turns.push_back(run);
        } else if feed.is_empty() {
            self.feeds.remove(&run);
        }
    }

    fn next(&mut self) -> Option<(RunOf, Piece)> {
        let feed = self.feeds.get_mut(&self.turns.pop_front()?)?;
        let piece = feed.next()?;
        if let Piece::Chunk(chunk) = &piece {
            self.waiting -= chunk.bytes.len();
        }
        Some((feed.run.clone(), piece))
    }

    fn done(&mut self, run: u64) {
        if let Some(feed) = self.feeds.get_mut(&run) {
            feed.busy = false;
            self.turn(run);
        }
    }
}

impl Lost {
    fn bytes(count: usize) -> Self {
        Self {
            bytes: count as u64,
            messages: 0,
        }
    }

    fn messages(count: usize) -> Self {
        Self {
            bytes: 0,
            messages: count as u64,
        }
    }
}

impl Feed {
    fn new(run: &RunOf) -> Self {
        Self {
            run: run.clone(),
            answers: VecDeque::new(),
            stdout: Pending::default(),
            stderr: Pending::default(),
            first: Stream::Stdout,
            end: None,
            closed: false,
            busy: false,
        }
    }

    fn pending(&mut self, stream: Stream) -> &mut Pending {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn has_next(&self) -> bool {
        let has_bytes = |pending: &Pending| pending.sendable(self.closed) > 0;
        !self.answers.is_empty() || has_bytes(&self.stdout) || has_bytes(&self.stderr) || self.end.is_some()
    }

    fn is_empty(&self) -> bool {
        !self.has_next() && self.stdout.bytes.is_empty() && self.stderr.bytes.is_empty()
    }

    fn next(&mut self) -> Option<Piece> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(Piece::Answer(answer));
        }
        let closed = self.closed;
        let other = match self.first {
            Stream::Stdout => Stream::Stderr,
            Stream::Stderr => Stream::Stdout,
        };
        let first = std::mem::replace(&mut self.first, other);
        let chunk = self.pending(first).take(first, closed);
        let chunk = chunk.or_else(|| self.pending(other).take(other, closed));
        chunk.map(Piece::Chunk).or_else(|| self.end.take().map(Piece::End))
    }
}

/// Bytes of a stream that wait.
#[derive(Default)]
struct Pending {
    bytes: VecDeque<u8>,
    /// Where the first of them is in the stream.
    offset: u64,
    /// How many just before them were dropped.
    dropped: u64,
}

impl Pending {
    /// Takes the next bytes, and drops the oldest over `most`; returns how many.
    fn push(&mut self, offset: u64, bytes: &[u8], most: usize) -> usize {
        let follows = self.offset + self.bytes.len() as u64;
        if self.bytes.is_empty() || offset != follows {
            // Bytes between were for nobody: those who came since were told of them.
            let is_gap = offset != follows;
            (self.offset, self.dropped) = (offset, if is_gap { 0 } else { self.dropped });
            self.bytes.clear();
        }
        let over = (self.bytes.len() + bytes.len()).saturating_sub(most);
        let old = over.min(self.bytes.len());
        self.bytes.drain(..old);
        self.bytes.extend(&bytes[over - old..]);
        self.offset += over as u64;
        self.dropped += over as u64;
        over
    }

    /// How many bytes can go out now: not the beginning of a character whose end is still to come.
    fn sendable(&self, closed: bool) -> usize {
        let len = self.bytes.len();
        if closed {
            return len;
        }
        let end: Vec<u8> = self
            .bytes
            .range(len.saturating_sub(CHARACTER_MAX - 1)..)
            .copied()
            .collect();
        len - cut_character(&end)
    }

    fn take(&mut self, stream: Stream, closed: bool) -> Option<Kept> {
        let sendable = self.sendable(closed);
        let mut count = sendable.min(CHUNK_MAX);
        if count < sendable {
            let end: Vec<u8> = self.bytes.range(count + 1 - CHARACTER_MAX..count).copied().collect();
            count -= cut_character(&end);
        }
        if count == 0 {
            return None;
        }
        let bytes: Vec<u8> = self.bytes.drain(..count).collect();
        let chunk = Kept {
            stream,
            offset: self.offset,
            dropped: std::mem::take(&mut self.dropped),
            bytes: bytes.into(),
        };
        self.offset += count as u64;
        Some(chunk)
    }
}

/// How many bytes at the end of some text begin a character and do not end it.
fn cut_character(end: &[u8]) -> usize {
    let needs = |first: u8| match first {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    };
    let is_first = |byte: &u8| byte & 0b1100_0000 != 0b1000_0000;
    match end.iter().rposition(is_first) {
        Some(at) if needs(end[at]) > end.len() - at => end.len() - at,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64) -> RunOf {
        RunOf {
            number,
            pool: "p".into(),
            job_id: "j".parse().unwrap(),
            attempt: 1,
        }
    }

    fn heard(number: u64, stream: Stream, offset: u64, bytes: &[u8]) -> Event {
        Event::OutputHeard {
            run: run(number),
            stream,
            offset,
            bytes: Bytes::copy_from_slice(bytes),
        }
    }

    fn ended(number: u64) -> Event {
        Event::OutputEnded {
            run: run(number),
            status: Status::Succeeded,
            is_final: true,
            stdout_bytes: 0,
            stderr_bytes: 0,
        }
    }

    /// A word for the next message: what it is, where, and what was dropped before it.
    fn next(feeds: &Feeds) -> Option<(u64, String)> {
        let (run, piece) = feeds.try_next()?;
        let word = match piece {
            Piece::Answer(answer) => format!("to {}", answer.to.reply_to),
            Piece::End(_) => "end".to_owned(),
            Piece::Chunk(Kept {
                stream,
                offset,
                dropped,
                bytes,
            }) => {
                let text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| format!("{} bytes", bytes.len()));
                format!("{} {offset} -{dropped} {text}", stream.as_str())
            }
        };
        Some((run.number, word))
    }

    /// All that is there, each published at once.
    fn all(feeds: &Feeds) -> Vec<String> {
        let mut words = Vec::new();
        while let Some((run, word)) = next(feeds) {
            words.push(word);
            feeds.done(run);
        }
        words
    }

    #[test]
    fn small_writes_go_out_together_and_in_order_with_the_end_last() {
        let feeds = Feeds::default();
        for (offset, text) in [(0, "ab"), (2, "c")] {
            feeds.take(&heard(1, Stream::Stdout, offset, text.as_bytes()));
        }
        feeds.take(&heard(1, Stream::Stderr, 0, b"e"));
        feeds.take(&ended(1));
        assert_eq!(all(&feeds), ["stdout 0 -0 abc", "stderr 0 -0 e", "end"]);
        assert!(feeds.state().feeds.is_empty(), "a run that is told is forgotten");
    }

    #[test]
    fn one_message_of_a_run_is_under_way_at_a_time_and_runs_take_turns() {
        let feeds = Feeds::default();
        feeds.take(&heard(1, Stream::Stdout, 0, &[b'x'; 2 * CHUNK_MAX]));
        feeds.take(&heard(2, Stream::Stdout, 0, b"y"));
        assert_eq!(next(&feeds).unwrap().0, 1);
        assert_eq!(next(&feeds).unwrap(), (2, "stdout 0 -0 y".to_owned()));
        assert!(next(&feeds).is_none(), "the first of run 1 is still under way");
        feeds.done(1);
        assert_eq!(next(&feeds).unwrap().0, 1);
    }

    #[test]
    fn a_flood_on_one_stream_does_not_hold_up_the_other() {
        let feeds = Feeds::default();
        feeds.take(&heard(1, Stream::Stdout, 0, &[b'x'; 3 * CHUNK_MAX]));
        feeds.take(&heard(1, Stream::Stderr, 0, b"error"));
        let words = all(&feeds);
        assert_eq!(words[1], "stderr 0 -0 error");
        assert_eq!(words.len(), 4);
    }

    #[test]
    fn what_comes_faster_than_it_goes_has_its_oldest_bytes_dropped_and_says_so() {
        let feeds = Feeds::default();
        let (mut lost, size) = (0, 1000);
        let writes = STREAM_MAX as u64 / 1000 + 10;
        for write in 0..writes {
            lost += feeds.take(&heard(1, Stream::Stdout, write * 1000, &[b'x'; 1000])).bytes;
        }
        assert_eq!(lost, writes * size - STREAM_MAX as u64);
        let (run, piece) = feeds.try_next().unwrap();
        let Piece::Chunk(chunk) = piece else {
            panic!("{piece:?}")
        };
        assert_eq!((chunk.offset, chunk.dropped), (lost, lost));
        feeds.done(run.number);
        let (_, Piece::Chunk(next)) = feeds.try_next().unwrap() else {
            panic!("there is more")
        };
        assert_eq!((next.offset, next.dropped), (lost + CHUNK_MAX as u64, 0));
    }

    #[test]
    fn all_runs_together_have_a_bound_too() {
        let feeds = Feeds::default();
        let runs = (ALL_MAX / STREAM_MAX) as u64 + 3;
        let lost: u64 = (0..runs)
            .map(|number| {
                feeds
                    .take(&heard(number, Stream::Stdout, 0, &vec![b'x'; STREAM_MAX]))
                    .bytes
            })
            .sum();
        assert_eq!(lost, 3 * STREAM_MAX as u64);
        assert_eq!(feeds.state().waiting, ALL_MAX);
        all(&feeds);
        assert_eq!(feeds.state().waiting, 0);
    }

    #[test]
    fn a_character_waits_for_its_end_until_there_is_none() {
        let feeds = Feeds::default();
        for (offset, byte) in "a€😀".bytes().enumerate() {
            feeds.take(&heard(1, Stream::Stdout, offset as u64, &[byte]));
        }
        assert_eq!(all(&feeds), ["stdout 0 -0 a€😀"]);
        feeds.take(&heard(1, Stream::Stdout, 8, b"b\xe2\x82"));
        assert_eq!(all(&feeds), ["stdout 8 -0 b"]);
        feeds.take(&Event::OutputClosed { run: 1 });
        assert_eq!(all(&feeds), ["stdout 9 -0 2 bytes"]);
        assert!(feeds.state().feeds.is_empty());
    }

    #[test]
    fn chunks_are_cut_between_characters() {
        let feeds = Feeds::default();
        let text = format!("a{}", "€".repeat(CHUNK_MAX));
        feeds.take(&heard(1, Stream::Stdout, 0, text.as_bytes()));
        let words = all(&feeds);
        assert!(words.len() > 3 && words.iter().all(|word| !word.ends_with("bytes")));
    }

    #[test]
    fn who_came_is_told_what_was_written_before_what_comes() {
        let feeds = Feeds::default();
        let listener = |name: &str| Listener {
            reply_to: name.to_owned(),
            correlation_id: None,
        };
        let names: Vec<_> = (0..ANSWERS_MAX + 2)
            .map(|number| listener(&number.to_string()))
            .collect();
        feeds.take(&heard(1, Stream::Stdout, 7, b"x"));
        let kept = Event::OutputKept {
            run: run(1),
            kept: Arc::new([]),
            listeners: names.into(),
        };
        assert_eq!(feeds.take(&kept).messages, 2, "answers have a bound");
        let words = all(&feeds);
        assert_eq!((words[0].as_str(), words.len()), ("to 0", ANSWERS_MAX + 1));
        assert_eq!(words[ANSWERS_MAX], "stdout 7 -0 x");
    }
}
