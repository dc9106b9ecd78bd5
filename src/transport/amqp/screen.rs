//! Keeps headers away from the client library that would end the process.
//!
//! lapin reads headers by recursion and gives its thread a usual stack of 2 MiB: headers nested some 1,500 deep, in a message
//! of 8 KiB, overflow it, and that ends the process. The message would come to the next worker, and end that one too. Who
//! drops, copies or sends such headers later recurses as well, so a larger stack would not be enough.
//!
//! So between the socket and lapin every frame is looked at (AMQP 0-9-1, section 4.2.3), and in a message's own
//! ([`headers`]) what is nested too deep is left out; all else passes as it came. It stands above TLS.
//!
//! A frame of properties is held until all of it is there, as lapin does too. The broker takes none from a producer that
//! is larger than what it has agreed on with that one, 128 KiB unless an operator wants it otherwise.

mod headers;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that are read at once.
const READ: usize = 64 * 1024;

/// A connection whose reader gets no headers that are nested too deep.
pub(super) struct Screened<S> {
    inner: S,
    screen: Screen,
    read: Box<[u8]>,
}

impl<S> Screened<S> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            screen: Screen::default(),
            read: vec![0; READ].into(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screened<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, screen, read } = self.get_mut();
        let before = buffer.remaining();
        loop {
            screen.give(buffer);
            if before == 0 || buffer.remaining() < before {
                return Poll::Ready(Ok(()));
            }
            let mut came = ReadBuf::new(read);
            ready!(Pin::new(&mut *inner).poll_read(cx, &mut came))?;
            if came.filled().is_empty() {
                return Poll::Ready(Ok(())); // the end
            }
            screen.take(came.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screened<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// Bytes of a frame before its payload: type, channel, size of the payload.
const BEGINNING: usize = 7;
/// The one byte after it.
const END: usize = 1;
/// The type of a frame that holds a message's properties.
const CONTENT_HEADER: u8 = 2;

/// Takes a connection's bytes as they come, and gives what its reader may have.
#[derive(Default)]
struct Screen {
    /// Bytes of the current frame that have yet to come and pass as they are.
    passing: usize,
    /// What has come of a frame's beginning, or of a whole frame of properties.
    held: Vec<u8>,
    passed: Vec<u8>,
    /// How many of those have been given.
    given: usize,
}

impl Screen {
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let waiting = &self.passed[self.given..];
        let count = waiting.len().min(buffer.remaining());
        buffer.put_slice(&waiting[..count]);
        self.given += count;
        if self.given == self.passed.len() {
            self.passed.clear();
            self.given = 0;
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let passing = self.passing > 0;
            let missing = if passing {
                self.passing
            } else {
                self.wanted() - self.held.len()
            };
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            if passing {
                self.passed.extend_from_slice(now);
                self.passing -= now.len();
                continue;
            }
            self.held.extend_from_slice(now);
            if self.held.len() == self.wanted() {
                self.decide();
            }
        }
    }

    /// How many bytes have to be held before anything can be decided.
    fn wanted(&self) -> usize {
        match self.held.first_chunk::<BEGINNING>() {
            Some([CONTENT_HEADER, _, _, size @ ..]) => BEGINNING + length(*size) + END,
            _ => BEGINNING,
        }
    }

    /// Lets pass what is held.
    fn decide(&mut self) {
        let held = std::mem::take(&mut self.held);
        let (beginning, rest) = held.split_at(BEGINNING);
        match beginning {
            [CONTENT_HEADER, one, two, ..] => match headers::screen(&rest[..rest.len() - END]) {
                None => self.passed.extend_from_slice(&held),
                Some(payload) => {
                    self.passed.extend([CONTENT_HEADER, *one, *two]);
                    self.passed.extend(headers::size(payload.len()));
                    self.passed.extend(payload);
                    self.passed.extend_from_slice(&rest[rest.len() - END..]);
                }
            },
            [_, _, _, size @ ..] => {
                self.passing = size.try_into().map_or(0, length) + END;
                self.passed.extend_from_slice(&held);
            }
            [..] => {} // there is more of a beginning
        }
        // The room is kept for the next one.
        self.held = held;
        self.held.clear();
    }
}

/// A length as it stands in a frame.
fn length(bytes: [u8; 4]) -> usize {
    u32::from_be_bytes(bytes) as usize
}

#[cfg(test)]
mod tests {
    use super::headers::tests::{nested, properties};
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 7], &headers::size(payload.len())[..], payload, b"\xce"].concat()
    }

    /// What comes out of a screen that is given so many bytes at once, to a reader that takes as many.
    fn screened(bytes: &[u8], at_once: usize) -> Vec<u8> {
        let mut screen = Screen::default();
        let mut buffer = vec![0; at_once];
        let mut out = Vec::new();
        for piece in bytes.chunks(at_once) {
            screen.take(piece);
            loop {
                let mut given = ReadBuf::new(&mut buffer);
                screen.give(&mut given);
                if given.filled().is_empty() {
                    break;
                }
                out.extend(given.filled());
            }
        }
        out
    }

    #[test]
    fn only_what_is_nested_too_deep_is_left_out_however_the_bytes_come() {
        let fine = properties(&[nested("x", 3)]);
        let deep = properties(&[nested("x", 3), nested("deep", 2000)]);
        let without = headers::screen(&deep).unwrap();
        let stream = |properties: &[u8]| {
            [
                frame(1, b"a method, which may be of any kind"),
                frame(CONTENT_HEADER, &fine),
                frame(3, b""),
                frame(CONTENT_HEADER, properties),
                frame(3, &deep),
                frame(8, b""),
            ]
            .concat()
        };
        for at_once in [1, 2, 7, 8, 100, 1_000_000] {
            let (came, wanted) = (stream(&deep), stream(&without));
            assert_eq!(screened(&came, at_once), wanted, "{at_once} bytes at once");
        }
    }

    #[test]
    fn a_broker_that_speaks_another_version_is_heard() {
        assert_eq!(screened(b"AMQP\0\0\x09\x01", 3), b"AMQP\0\0\x09\x01");
    }
}
