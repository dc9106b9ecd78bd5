//! Makes of what workers tell of a job's output the output as it was written: each byte once, gaps named.
//!
//! It holds what was said so far of one attempt, the latest; what comes late of an earlier one is passed over. Pure:
//! nothing is received or printed here.

use crate::message::event::{Event, RunId};
use crate::message::{Chunk, JobResult, Output, Status, Stream};

/// What one listener has heard of a job.
#[derive(Debug, Default)]
pub struct Transcript {
    run: Option<Run>,
    /// The latest attempt whose end was heard.
    ended: u32,
    /// Each run is heard from its first byte on.
    whole: bool,
    /// Something was passed over because what was written before it is not known yet.
    behind: bool,
}

#[derive(Debug)]
struct Run {
    id: RunId,
    /// How many bytes were said, of stdout and of stderr.
    said: [u64; 2],
    /// All from here on comes: what is missing is gone.
    joined: bool,
}

/// What there is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// An attempt runs.
    Began(RunId),
    /// These bytes come next.
    Bytes(RunId, Chunk),
    /// So many bytes that come next are in no message.
    Missing(Stream, u64),
    /// An attempt is over, and so is the job if it was the last one.
    Ended {
        /// Which.
        run: RunId,
        /// How it ended.
        status: Status,
        /// Whether it is the end of the job.
        is_final: bool,
        /// How many bytes it wrote, to stdout and to stderr.
        bytes: [u64; 2],
    },
}

impl Transcript {
    /// Of a job that is heard since before it was submitted, and whose workers publish all that it writes: what is missing
    /// then is gone.
    #[must_use]
    pub fn of_whole() -> Self {
        Self {
            whole: true,
            ..Self::default()
        }
    }

    /// What was passed over may be asked for: what was written before it. Says so once.
    pub fn is_behind(&mut self) -> bool {
        std::mem::take(&mut self.behind)
    }

    /// Takes a worker's answer: what was written so far.
    pub fn answer(&mut self, id: &RunId, chunks: &[Chunk]) -> Vec<Said> {
        let mut said = Vec::new();
        if let Some(run) = self.run(id, &mut said) {
            run.joined = true;
            for chunk in chunks {
                run.put(chunk, &mut said);
            }
        }
        said
    }

    /// Takes an event; those that are not about output say nothing.
    pub fn event(&mut self, event: &Event) -> Vec<Said> {
        match event {
            Event::Output { run, chunk } => self.chunk(run, chunk),
            Event::OutputEnded {
                run,
                status,
                is_final,
                stdout_bytes,
                stderr_bytes,
            } => {
                let totals = [(Stream::Stdout, *stdout_bytes), (Stream::Stderr, *stderr_bytes)];
                let mut said = Vec::new();
                let Some(run) = self.run(run, &mut said) else {
                    return said;
                };
                for (stream, total) in totals {
                    run.skip_to(stream, total, &mut said);
                }
                self.end(*status, *is_final, &mut said);
                said
            }
            _ => Vec::new(),
        }
    }

    /// Takes the result of an attempt, which may have what did not come.
    pub fn result(&mut self, result: &JobResult) -> Vec<Said> {
        let id = RunId {
            worker: result.worker.id.clone(),
            pool: result.worker.pool.clone(),
            job_id: result.job_id.clone(),
            attempt: result.attempt,
        };
        let mut said = Vec::new();
        let Some(run) = self.run(&id, &mut said) else {
            return said;
        };
        for (stream, output) in [(Stream::Stdout, &result.stdout), (Stream::Stderr, &result.stderr)] {
            run.fill(stream, output, &mut said);
        }
        self.end(result.status, result.is_final, &mut said);
        said
    }

    /// Whether all that a result counts was said.
    #[must_use]
    pub fn is_complete(&self, result: &JobResult) -> bool {
        let said = match &self.run {
            Some(run) if run.id.attempt == result.attempt => run.said,
            _ => [0, 0],
        };
        said == [result.stdout.bytes, result.stderr.bytes]
    }

    fn chunk(&mut self, id: &RunId, chunk: &Chunk) -> Vec<Said> {
        let mut said = Vec::new();
        let is_known = self.run.as_ref().is_some_and(|run| run.id == *id);
        if !is_known && chunk.offset > 0 && !self.whole && !self.is_over(id) {
            self.behind = true;
            return said;
        }
        let Some(run) = self.run(id, &mut said) else {
            return said;
        };
        // Heard from its first byte on, it was heard whole; but its other stream may have begun before that.
        if chunk.offset > run.said[index(chunk.stream)] && !run.joined {
            self.behind = true;
            return said;
        }
        run.put(chunk, &mut said);
        said
    }

    /// The run that is told of now, which is this one; `None` if that is over.
    fn run(&mut self, id: &RunId, said: &mut Vec<Said>) -> Option<&mut Run> {
        if self.is_over(id) {
            return None;
        }
        if self.run.as_ref().is_none_or(|run| run.id != *id) {
            said.push(Said::Began(id.clone()));
            self.run = Some(Run {
                id: id.clone(),
                said: [0, 0],
                joined: self.whole,
            });
        }
        self.run.as_mut()
    }

    /// Whether a run is not the latest one, or has ended.
    fn is_over(&self, id: &RunId) -> bool {
        let latest = self.run.as_ref();
        let is_older = latest.is_some_and(|run| run.id != *id && id.attempt <= run.id.attempt);
        is_older || id.attempt <= self.ended
    }

    /// All was said, or is missing.
    fn end(&mut self, status: Status, is_final: bool, said: &mut Vec<Said>) {
        let Some(run) = self.run.take() else { return };
        self.ended = run.id.attempt;
        said.push(Said::Ended {
            run: run.id,
            status,
            is_final,
            bytes: run.said,
        });
    }
}

impl Run {
    /// Says what is new in a chunk.
    fn put(&mut self, chunk: &Chunk, said: &mut Vec<Said>) {
        let Ok(bytes) = chunk.decode() else { return };
        self.put_bytes(chunk.stream, chunk.offset, &bytes, said);
    }

    fn put_bytes(&mut self, stream: Stream, offset: u64, bytes: &[u8], said: &mut Vec<Said>) {
        self.skip_to(stream, offset, said);
        let known = self.said[index(stream)] - offset;
        let new = usize::try_from(known).ok().and_then(|known| bytes.get(known..));
        if let Some(new) = new.filter(|new| !new.is_empty()) {
            let chunk = Chunk::new(stream, self.said[index(stream)], 0, new);
            self.said[index(stream)] += new.len() as u64;
            said.push(Said::Bytes(self.id.clone(), chunk));
        }
    }

    /// Says how many bytes are missing up to a place.
    fn skip_to(&mut self, stream: Stream, offset: u64, said: &mut Vec<Said>) {
        let at = &mut self.said[index(stream)];
        if offset > *at {
            said.push(Said::Missing(stream, offset - *at));
            *at = offset;
        }
    }

    /// Says of a result's output what was not said.
    fn fill(&mut self, stream: Stream, output: &Output, said: &mut Vec<Said>) {
        let Ok(kept) = output.decode() else { return };
        if output.truncated_bytes == 0 {
            return self.put_bytes(stream, 0, &kept, said);
        }
        if self.said[index(stream)] == 0 {
            // Nobody can tell where in it the gap is, so it is said as it is.
            self.put_bytes(stream, 0, &kept, said);
        } else {
            // Half of what is kept is the end, but for a character that was cut.
            let end = &kept[kept.len() - (kept.len() / 2).saturating_sub(CHARACTER_MAX)..];
            self.put_bytes(stream, output.bytes - end.len() as u64, end, said);
        }
        self.skip_to(stream, output.bytes, said);
    }
}

/// A character of UTF-8 has at most so many bytes.
const CHARACTER_MAX: usize = 4;

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::WorkerInfo;

    fn id(attempt: u32) -> RunId {
        RunId {
            worker: "w".to_owned(),
            pool: "p".to_owned(),
            job_id: "j".parse().unwrap(),
            attempt,
        }
    }

    fn out(offset: u64, text: &str) -> Chunk {
        Chunk::new(Stream::Stdout, offset, 0, text.as_bytes())
    }

    fn chunk(attempt: u32, offset: u64, text: &str) -> Event {
        Event::Output {
            run: id(attempt),
            chunk: out(offset, text),
        }
    }

    fn end(attempt: u32, stdout_bytes: u64, is_final: bool) -> Event {
        Event::OutputEnded {
            run: id(attempt),
            status: Status::Failed,
            is_final,
            stdout_bytes,
            stderr_bytes: 0,
        }
    }

    fn result(attempt: u32, stdout: Output) -> JobResult {
        JobResult {
            job_id: "j".parse().unwrap(),
            attempt,
            status: Status::Succeeded,
            is_final: true,
            exit_code: Some(0),
            signal: None,
            stdout,
            stderr: Output::from_kept(b"e", b"", 1),
            queued_at: None,
            started_at: None,
            finished_at: crate::message::now(),
            duration_ms: 1,
            phases: None,
            ended_by: None,
            usage: None,
            limits_applied: crate::message::LimitsApplied::default(),
            worker: WorkerInfo {
                id: "w".to_owned(),
                host: "h".to_owned(),
                pool: "p".to_owned(),
                version: "0".to_owned(),
            },
            error: None,
            labels: std::collections::BTreeMap::new(),
        }
    }

    /// What is said, in short: text, `[n]` for bytes that are missing, `<` and `>` around an attempt.
    fn short(said: Vec<Said>) -> String {
        let word = |said| match said {
            Said::Began(id) => format!("<{} ", id.attempt),
            Said::Bytes(_, chunk) => chunk.text,
            Said::Missing(_, bytes) => format!("[{bytes}]"),
            Said::Ended { run, .. } => format!(" {}>", run.attempt),
        };
        said.into_iter().map(word).collect()
    }

    #[test]
    fn who_comes_in_the_middle_hears_what_was_kept_and_then_each_byte_once() {
        let mut transcript = Transcript::default();
        assert_eq!(
            short(transcript.event(&chunk(1, 5, "fg"))),
            "",
            "not known what was before"
        );
        assert!(transcript.is_behind() && !transcript.is_behind());
        assert_eq!(
            short(transcript.answer(&id(1), &[out(0, "abc"), out(5, "fgh")])),
            "<1 abc[2]fgh"
        );
        assert_eq!(short(transcript.event(&chunk(1, 5, "fgh"))), "");
        assert_eq!(short(transcript.event(&chunk(1, 7, "hij"))), "ij");
        assert_eq!(
            short(transcript.answer(&id(1), &[out(0, "abc"), out(9, "jk")])),
            "k",
            "asked again"
        );
        assert_eq!(short(transcript.event(&chunk(1, 13, "n"))), "[2]n");
        assert_eq!(short(transcript.event(&end(1, 15, true))), "[1] 1>");
        assert_eq!(short(transcript.event(&chunk(1, 14, "o"))), "", "too late");
    }

    #[test]
    fn who_heard_the_first_byte_needs_no_answer() {
        let mut transcript = Transcript::default();
        assert_eq!(short(transcript.event(&chunk(1, 0, "ab"))), "<1 ab");
        assert_eq!(short(transcript.event(&chunk(1, 2, "c"))), "c");
        assert!(!transcript.is_behind());
        assert_eq!(short(transcript.answer(&id(1), &[out(0, "abcd")])), "d");
    }

    #[test]
    fn who_heard_all_from_the_start_takes_what_is_missing_for_gone() {
        let mut transcript = Transcript::of_whole();
        assert_eq!(short(transcript.event(&chunk(1, 3, "d"))), "<1 [3]d");
        assert_eq!(short(transcript.event(&chunk(1, 6, "g"))), "[2]g");
        assert!(!transcript.is_behind());
    }

    #[test]
    fn a_retry_is_heard_from_its_beginning_and_an_older_attempt_no_more() {
        let mut transcript = Transcript::default();
        transcript.answer(&id(1), &[out(0, "a")]);
        assert_eq!(short(transcript.event(&end(1, 1, false))), " 1>");
        assert_eq!(short(transcript.answer(&id(2), &[])), "<2 ");
        assert_eq!(short(transcript.event(&chunk(1, 1, "b"))), "");
        assert_eq!(short(transcript.event(&chunk(2, 0, "a"))), "a");
        // Its worker was killed.
        assert_eq!(short(transcript.answer(&id(3), &[])), "<3 ");
        assert_eq!(short(transcript.event(&chunk(2, 1, "b"))), "");
        assert_eq!(short(transcript.event(&end(3, 0, true))), " 3>");
    }

    #[test]
    fn a_result_fills_in_what_did_not_come() {
        let whole = || result(1, Output::from_kept(b"abc", b"def", 6));
        let heard = |events: &[Event], result: &JobResult| {
            let mut transcript = Transcript::default();
            for event in events {
                transcript.event(event);
            }
            (transcript.is_complete(result), short(transcript.result(result)))
        };
        assert_eq!(heard(&[], &whole()), (false, "<1 abcdefe 1>".to_owned()));
        assert_eq!(heard(&[chunk(1, 0, "abcd")], &whole()), (false, "efe 1>".to_owned()));
        let cut = result(1, Output::from_kept(&[b'a'; 10], &[b'z'; 10], 100));
        let most = "a".repeat(97);
        assert_eq!(heard(&[chunk(1, 0, &most)], &cut), (false, "zzze 1>".to_owned()));
        assert_eq!(heard(&[chunk(1, 0, "aa")], &cut), (false, "[92]zzzzzze 1>".to_owned()));
        let all = format!("<1 {}{}[80]e 1>", "a".repeat(10), "z".repeat(10));
        assert_eq!(heard(&[], &cut), (false, all));
    }
}
