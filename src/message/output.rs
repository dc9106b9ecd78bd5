//! What a result keeps of a stream: its beginning, its end, and how much is missing between.
//!
//! Text stays text: a stream of UTF-8 with a gap is still UTF-8, though the gap cut characters at its
//! edges. Anything else is base64, byte for byte.
//!
//! Invariant: the bytes of the text, decoded, plus `truncated_bytes` are `bytes`.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is kept of one stream of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The beginning and the end of the stream, or all of it.
    pub text: String,
    /// How `text` holds the stream's bytes.
    pub encoding: Encoding,
    /// How many bytes the command wrote.
    pub bytes: u64,
    /// How many of them are not in `text`; they are missing from its middle.
    pub truncated_bytes: u64,
}

/// How a text holds bytes: as they are (`utf-8`), or as base64 of RFC 4648 section 4, padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Encoding {
    /// The stream is valid UTF-8, and the text is the stream.
    #[serde(rename = "utf-8")]
    Utf8,
    /// The stream isn't valid UTF-8, and the text is its base64.
    #[serde(rename = "base64")]
    Base64,
}

/// A result says that its output is base64, and it isn't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("decode output as base64")]
pub struct OutputError(#[from] base64::DecodeError);

impl Output {
    /// Makes the output of a command that wrote nothing.
    pub fn empty() -> Self {
        Self::from_kept(&[], &[], 0)
    }

    /// Makes an output of the first and the last bytes of a stream that had `total` bytes.
    ///
    /// Where nothing is missing, `head` and `tail` meet. Where something is, a character that the
    /// gap cut in two counts as missing too.
    pub fn from_kept(head: &[u8], tail: &[u8], total: u64) -> Self {
        let missing = total.saturating_sub(len(head) + len(tail));
        let (text_head, text_tail) = match missing {
            0 => (head, tail),
            _ => (without_cut_end(head), without_cut_start(tail)),
        };
        let (text, encoding) = match String::from_utf8([text_head, text_tail].concat()) {
            Ok(text) => (text, Encoding::Utf8),
            Err(_) => (STANDARD.encode([head, tail].concat()), Encoding::Base64),
        };
        let kept = match encoding {
            Encoding::Utf8 => len(text_head) + len(text_tail),
            Encoding::Base64 => len(head) + len(tail),
        };
        let bytes = missing + len(head) + len(tail);
        Self {
            text,
            encoding,
            bytes,
            truncated_bytes: bytes - kept,
        }
    }

    /// Returns the bytes that are kept.
    ///
    /// # Errors
    ///
    /// When the text isn't base64 and should be; never for an output of [`from_kept`](Self::from_kept).
    pub fn decode(&self) -> Result<Cow<'_, [u8]>, OutputError> {
        decode(&self.text, self.encoding)
    }
}

/// The bytes that a text holds.
pub(super) fn decode(text: &str, encoding: Encoding) -> Result<Cow<'_, [u8]>, OutputError> {
    match encoding {
        Encoding::Utf8 => Ok(Cow::Borrowed(text.as_bytes())),
        Encoding::Base64 => Ok(Cow::Owned(STANDARD.decode(text)?)),
    }
}

fn len(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

/// Cuts off a character that begins and doesn't end.
fn without_cut_end(head: &[u8]) -> &[u8] {
    match std::str::from_utf8(head) {
        Err(error) if error.error_len().is_none() => &head[..error.valid_up_to()],
        _ => head,
    }
}

/// Cuts off the rest of a character that began earlier: at most 3 continuation bytes.
fn without_cut_start(tail: &[u8]) -> &[u8] {
    let is_continuation = |byte: &&u8| **byte & 0b1100_0000 == 0b1000_0000;
    let cut = tail.iter().take(3).take_while(is_continuation).count();
    &tail[cut..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the two ends of a stream as a worker would, and checks the invariant.
    fn kept(stream: &[u8], head: usize, tail: usize) -> Output {
        let tail_from = stream.len().saturating_sub(tail).max(head.min(stream.len()));
        let head = &stream[..head.min(stream.len())];
        let output = Output::from_kept(head, &stream[tail_from..], len(stream));
        let decoded = output.decode().unwrap();
        assert_eq!(len(&decoded) + output.truncated_bytes, output.bytes);
        assert_eq!(output.bytes, len(stream));
        output
    }

    #[test]
    fn a_whole_text_is_itself() {
        assert_eq!(kept("né".as_bytes(), 2, 9).text, "né"); // cut inside a character, nothing missing
        assert_eq!(kept(b"", 4, 4), Output::empty());
        assert_eq!(Output::empty().text, "");
        assert_eq!(Output::empty().encoding, Encoding::Utf8);
    }

    #[test]
    fn a_text_with_a_gap_is_still_a_text_wherever_the_gap_cuts() {
        let stream = "aé€😀z".repeat(3);
        for head in 0..=stream.len() {
            for tail in 0..=stream.len() {
                let output = kept(stream.as_bytes(), head, tail);
                assert_eq!(output.encoding, Encoding::Utf8, "{head} {tail}");
                let missing = len(stream.as_bytes()).saturating_sub((head + tail) as u64);
                let most = if missing == 0 { 0 } else { missing + 6 };
                assert!(output.truncated_bytes <= most, "{head} {tail}");
            }
        }
    }

    #[test]
    fn other_bytes_are_base64() {
        let output = kept(b"\xff\x00ab", 2, 2);
        assert_eq!((output.text.as_str(), output.encoding), ("/wBhYg==", Encoding::Base64));
        assert_eq!(output.truncated_bytes, 0);
        let output = kept(b"\xff12345678\xff", 2, 2);
        assert_eq!(output.decode().unwrap(), &b"\xff18\xff"[..]);
        assert_eq!((output.bytes, output.truncated_bytes), (10, 6));
    }

    #[test]
    fn an_unfinished_character_at_the_very_end_is_base64() {
        assert_eq!(kept(b"ab\xc3", 9, 9).encoding, Encoding::Base64);
        assert_eq!(kept(b"\xa9ab", 9, 9).encoding, Encoding::Base64);
        assert_eq!(kept(b"ab......\xc3", 2, 2).encoding, Encoding::Base64);
    }

    #[test]
    fn a_total_smaller_than_what_is_kept_does_not_break_the_sum() {
        let output = Output::from_kept(b"abc", b"def", 1);
        assert_eq!((output.bytes, output.truncated_bytes), (6, 0));
    }

    #[test]
    fn decode_refuses_what_is_not_base64() {
        let output = Output {
            text: "?".into(),
            encoding: Encoding::Base64,
            ..Output::empty()
        };
        assert_eq!(output.decode().unwrap_err().to_string(), "decode output as base64");
    }
}
