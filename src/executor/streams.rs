//! Moves bytes between a command's pipes and memory.
//!
//! Everything a stream has seen is in its struct, not in a future, so a wait given up (at a
//! timeout) loses nothing. One read buffer a runtime thread is shared by all runs: a run that is
//! silent costs no buffer. The runtime watches a pipe only once somebody had to wait for it: what a
//! short command wrote is read when it has ended.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe;

use super::Run;
use super::audience::{Ear, Listeners};
use super::output::Kept;
use crate::message::{Output, Stream};

/// What a pipe holds by default (pipe(7)): a larger buffer would never be filled.
const READ_SIZE: usize = 64 * 1024;

/// Bytes moved in one go before other futures get their turn: a command that floods must not hold
/// up a timer.
const TURN: usize = 4 * READ_SIZE;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);
}

/// The worker's ends of the command's pipes.
pub(super) struct Pipes {
    /// `None` when the command reads `/dev/null`.
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Makes a command's pipes: the worker's ends, and the command's, in the order of their numbers.
///
/// # Errors
///
/// When there are no more descriptors to be had.
pub(super) fn pipes(run: &Run) -> io::Result<(Pipes, Vec<OwnedFd>)> {
    let mut theirs = Vec::with_capacity(3);
    let mut stdin = None;
    if !run.stdin.is_empty() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Our end alone: a command may not know what to make of a pipe that does not wait.
        rustix::io::ioctl_fionbio(&writer, true)?;
        stdin = Some(writer);
        theirs.push(reader);
    }
    let mut output = || {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        theirs.push(writer);
        rustix::io::ioctl_fionbio(&reader, true)?;
        io::Result::Ok(reader)
    };
    let pipes = Pipes {
        stdin,
        stdout: output()?,
        stderr: output()?,
    };
    Ok((pipes, theirs))
}

/// The three streams of a running command.
pub(super) struct Streams {
    stdin: Feed,
    stdout: Drain,
    stderr: Drain,
}

impl Streams {
    /// Feeds `stdin` and keeps at most `max_output` bytes of each output stream.
    pub(super) fn new(pipes: Pipes, stdin: Bytes, max_output: u64) -> Self {
        Self {
            stdin: Feed {
                pipe: pipes.stdin.map(Writer::Unwatched),
                rest: stdin,
            },
            stdout: Drain::new(pipes.stdout, max_output),
            stderr: Drain::new(pipes.stderr, max_output),
        }
    }

    /// Tells those who came to listen what was written so far, and has them hear what comes.
    pub(super) fn tell(&mut self, listeners: &mut impl Listeners) {
        let ear = listeners.begin([self.stdout.kept.so_far(), self.stderr.kept.so_far()]);
        for (drain, stream) in [(&mut self.stdout, Stream::Stdout), (&mut self.stderr, Stream::Stderr)] {
            drain.ear = ear.clone().map(|ear| (ear, stream));
        }
    }

    /// Writes what the pipe takes of stdin without waiting, and says whether that was all of it.
    pub(super) fn feed_at_once(&mut self) -> bool {
        self.stdin.feed().now_or_never().is_some()
    }

    /// Moves bytes, and tells who comes to listen, for as long as it is polled.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: bytes that were read are kept, and bytes that were written are not written
    /// again.
    pub(super) async fn flow(&mut self, listeners: &mut impl Listeners) -> Infallible {
        loop {
            let moving = async {
                self.ended().await;
                future::pending::<Infallible>().await
            };
            tokio::select! {
                biased;
                never = moving => match never {},
                () = listeners.come() => {}
            }
            self.tell(listeners);
        }
    }

    /// Moves bytes until stdin was fed and nobody holds the output any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`flow`](Self::flow).
    pub(super) async fn ended(&mut self) {
        tokio::join!(self.stdin.feed(), self.stdout.drain(), self.stderr.drain());
    }

    /// What was kept of stdout and of stderr.
    pub(super) fn into_outputs(self) -> (Output, Output) {
        (self.stdout.kept.into_output(), self.stderr.kept.into_output())
    }
}

/// The writing end of stdin, until all is written or nobody reads.
struct Feed {
    pipe: Option<Writer>,
    rest: Bytes,
}

enum Writer {
    Unwatched(OwnedFd),
    Watched(pipe::Sender),
}

impl Feed {
    async fn feed(&mut self) {
        while self.rest.has_remaining() {
            let written = match &self.pipe {
                None => break,
                Some(Writer::Unwatched(fd)) => rustix::io::write(fd, &self.rest).map_err(io::Error::from),
                Some(Writer::Watched(pipe)) => match pipe.writable().await {
                    Ok(()) => pipe.try_write(&self.rest),
                    Err(error) => Err(error),
                },
            };
            match written {
                Ok(count) => self.rest.advance(count),
                Err(error) if is_passing(&error) => self.pipe = self.pipe.take().and_then(Writer::watched),
                // EPIPE: the command closed its stdin or never looked at it, which is its own
                // affair.
                Err(_) => break,
            }
        }
        self.pipe = None;
    }
}

impl Writer {
    /// `None` if it cannot be watched.
    fn watched(self) -> Option<Self> {
        match self {
            Self::Unwatched(fd) => pipe::Sender::from_owned_fd_unchecked(fd).ok().map(Self::Watched),
            Self::Watched(_) => Some(self),
        }
    }
}

/// The reading end of an output stream, until nobody can write to it, and what was kept of it.
struct Drain {
    pipe: Option<Reader>,
    kept: Kept,
    /// Who hears it as this stream.
    ear: Option<(Arc<dyn Ear>, Stream)>,
}

enum Reader {
    Unwatched(OwnedFd),
    Watched(pipe::Receiver),
}

impl Drain {
    fn new(pipe: OwnedFd, max_output: u64) -> Self {
        Self {
            pipe: Some(Reader::Unwatched(pipe)),
            kept: Kept::new(max_output),
            ear: None,
        }
    }

    async fn drain(&mut self) {
        let mut turn = 0;
        while let Some(pipe) = &self.pipe {
            let read = match pipe {
                Reader::Unwatched(fd) => read_once(&mut self.kept, &mut self.ear, |buffer| {
                    Ok(rustix::io::read(fd, buffer)?)
                }),
                Reader::Watched(pipe) => match pipe.readable().await {
                    Ok(()) => read_once(&mut self.kept, &mut self.ear, |buffer| pipe.try_read(buffer)),
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(count @ 1..) => turn += count,
                Err(error) if is_passing(&error) => self.pipe = self.pipe.take().and_then(Reader::watched),
                Ok(0) | Err(_) => self.pipe = None,
            }
            if turn >= TURN {
                turn = 0;
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Reader {
    /// `None` if it cannot be watched.
    fn watched(self) -> Option<Self> {
        match self {
            Self::Unwatched(fd) => pipe::Receiver::from_owned_fd_unchecked(fd).ok().map(Self::Watched),
            Self::Watched(_) => Some(self),
        }
    }
}

/// Reads what is there into the thread's buffer, and from there into `kept` and an ear; 0 is the
/// end of the stream.
fn read_once(
    kept: &mut Kept,
    ear: &mut Option<(Arc<dyn Ear>, Stream)>,
    read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
) -> io::Result<usize> {
    BUFFER.with_borrow_mut(|buffer| {
        let count = read(buffer)?;
        let bytes = &buffer[..count];
        if let Some((listener, stream)) = ear
            && !listener.hear(*stream, kept.total(), bytes)
        {
            *ear = None;
        }
        kept.push(bytes);
        Ok(count)
    })
}

/// Whether to wait for the pipe again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::io::ioctl_fionread;
    use rustix::pipe::fcntl_setpipe_size;

    use super::*;

    /// A pipe that has far more to read than one turn takes must not be read to its end in one go.
    #[tokio::test]
    async fn a_flood_gives_others_their_turn() {
        let (reader, mut writer) = io::pipe().unwrap();
        let size = fcntl_setpipe_size(&writer, 4 * TURN).unwrap();
        writer.write_all(&vec![b'x'; size]).unwrap();
        let reader = OwnedFd::from(reader);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let left = || ioctl_fionread(&reader).unwrap();
        let pipe = reader.try_clone().unwrap();
        let mut drain = Drain::new(pipe, 0);

        for turns in 1..=2 {
            assert!(drain.drain().now_or_never().is_none());
            assert_eq!(left(), (size - turns * TURN) as u64);
        }
    }
}
