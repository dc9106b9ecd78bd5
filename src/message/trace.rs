//! The trace that a message belongs to, as W3C Trace Context has it (<https://www.w3.org/TR/trace-context/>): read from
//! and written to the headers `traceparent` and `tracestate`, which a command finds as `TRACEPARENT` and `TRACESTATE`.
//!
//! What is not as the standard says counts as not there. What is passed on is of version 00, whatever came.

use std::fmt;

use uuid::Uuid;

use super::envelope::{HeaderValue, Properties, header};

/// Most characters of a `tracestate` that are passed on: what the standard has every program take.
const STATE_MAX: usize = 512;
/// How long a `traceparent` of version 00 is. One of a later version may go on after a dash.
const LENGTH: usize = 55;
/// The flags that have a meaning: recorded, and "the id is random".
const KNOWN_FLAGS: u8 = 0b11;
const SAMPLED: u8 = 0b01;
/// Bits of a trace's id that are random whoever made it: all programs that decide by them decide the same.
const RANDOM_BITS: u32 = 56;

/// The number of a trace, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// The number of a span within its trace, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

/// Where in which trace something happens: what caused it, for what comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that what comes next is a part of.
    pub span_id: SpanId,
    flags: u8,
    /// What tracing systems tell each other; never empty.
    pub state: Option<String>,
}

impl TraceId {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().as_u128())
    }

    /// Its 16 bytes, as they travel.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Whether it is among this share of all traces, from 0 to 1.
    #[must_use]
    pub fn is_within(self, share: f64) -> bool {
        let random = self.0 & ((1 << RANDOM_BITS) - 1);
        (random as f64) < share * 2f64.powi(RANDOM_BITS.cast_signed())
    }
}

impl SpanId {
    /// A new one, with room for others after it.
    #[must_use]
    pub fn random() -> Self {
        let [.., a, b, c, d, e, f, g] = Uuid::new_v4().into_bytes();
        Self(u64::from_be_bytes([a | 1, b, c, d, e, f, g, 0]))
    }

    /// The one so many places after this, of the same maker.
    #[must_use]
    pub const fn after(self, places: u8) -> Self {
        Self(self.0.wrapping_add(places as u64))
    }

    /// Its 8 bytes, as they travel.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

impl TraceContext {
    /// Begins a trace with this span, recorded or not.
    #[must_use]
    pub fn begin(trace_id: TraceId, span_id: SpanId, is_sampled: bool) -> Self {
        Self {
            trace_id,
            span_id,
            flags: if is_sampled { SAMPLED } else { 0 },
            state: None,
        }
    }

    /// The same trace, from another span of it on.
    #[must_use]
    pub fn at(&self, span_id: SpanId) -> Self {
        Self {
            span_id,
            ..self.clone()
        }
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The flags, as they travel.
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.flags
    }

    /// Reads what a message's headers say.
    #[must_use]
    pub fn read(properties: &Properties) -> Option<Self> {
        let parent = properties.text_header(header::TRACEPARENT)?;
        Self::parse(parent, properties.text_header(header::TRACESTATE))
    }

    /// Writes it to a message's headers.
    pub fn write(&self, properties: &mut Properties) {
        let headers = &mut properties.headers;
        headers.insert(header::TRACEPARENT.to_owned(), HeaderValue::Text(self.to_string()));
        match &self.state {
            Some(state) => headers.insert(header::TRACESTATE.to_owned(), HeaderValue::Text(state.clone())),
            None => headers.remove(header::TRACESTATE),
        };
    }

    /// Reads a `traceparent`, and the `tracestate` beside it.
    #[must_use]
    pub fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let version = u8::try_from(hex(parent.get(0..2)?)?).ok()?;
        let is_long = parent.len() > LENGTH;
        let is_whole = match version {
            0 => !is_long,
            0xff => false,
            _ => !is_long || parent.as_bytes()[LENGTH] == b'-',
        };
        let dashes = [2, 35, 52].map(|at| parent.as_bytes().get(at));
        if !is_whole || dashes != [Some(&b'-'); 3] {
            return None;
        }
        let trace_id = hex(parent.get(3..35)?).filter(|id| *id != 0)?;
        let span_id = hex(parent.get(36..52)?).filter(|id| *id != 0)?;
        let flags = hex(parent.get(53..LENGTH)?)?;
        Some(Self {
            trace_id: TraceId(trace_id),
            span_id: SpanId(u64::try_from(span_id).ok()?),
            flags: u8::try_from(flags).ok()? & KNOWN_FLAGS,
            state: state.filter(|state| is_state(state)).map(str::to_owned),
        })
    }
}

/// As a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, SpanId(span_id), flags) = (self.trace_id, self.span_id, self.flags);
        write!(out, "00-{trace_id}-{span_id:016x}-{flags:02x}")
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:032x}", self.0)
    }
}

/// A number in small hexadecimal digits, and nothing else.
fn hex(digits: &str) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let number = || u128::from_str_radix(digits, 16).ok();
    digits.bytes().all(is_digit).then(number).flatten()
}

/// What is in it is others' business, but it has to fit into an environment and a header.
fn is_state(state: &str) -> bool {
    let is_printable = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    (1..=STATE_MAX).contains(&state.len()) && state.bytes().all(is_printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_comes_back_as_it_was_written() {
        for (state, flags) in [(None, "00"), (Some("a=1,b@c=2"), "03")] {
            let text = format!("{}{flags}", &PARENT[..53]);
            let context = TraceContext::parse(&text, state).unwrap();
            assert_eq!((context.to_string(), context.is_sampled()), (text, flags == "03"));
            let mut properties = Properties::default();
            properties.headers.insert("tracestate".to_owned(), "stale=1".into());
            context.write(&mut properties);
            assert_eq!(TraceContext::read(&properties), Some(context));
            assert_eq!(properties.text_header("tracestate"), state);
        }
    }

    #[test]
    fn what_is_not_as_the_standard_says_is_not_there() {
        let upper = PARENT.to_uppercase();
        let zeros = |range: std::ops::Range<usize>| {
            let mut text = PARENT.to_owned();
            text.replace_range(range.clone(), &"0".repeat(range.len()));
            text
        };
        for bad in [
            "",
            "00",
            "not a traceparent",
            &PARENT[..54],
            &PARENT[1..],
            &format!("{PARENT}-"),
            &format!("{PARENT}00"),
            &format!("ff{}", &PARENT[2..]),
            &format!("cc{}.", &PARENT[2..]),
            &upper,
            &zeros(3..35),
            &zeros(36..52),
            &PARENT.replace('-', "_"),
            &PARENT.replace("-01", "-+1"),
            &PARENT.replace("4bf9", "é9f"),
        ] {
            assert_eq!(TraceContext::parse(bad, None), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for later in [
            format!("cc{}", &PARENT[2..]),
            format!("01{}-more.of-it", &PARENT[2..]),
            format!("01{}f5", &PARENT[2..53]),
        ] {
            let context = TraceContext::parse(&later, None).unwrap();
            assert_eq!(context.to_string(), PARENT, "{later}");
        }
    }

    #[test]
    fn a_state_that_could_not_be_passed_on_is_left_out() {
        let long = "x".repeat(STATE_MAX + 1);
        for bad in ["", "a=\n", "a=\0", "ä=1", &long] {
            let context = TraceContext::parse(PARENT, Some(bad)).unwrap();
            assert_eq!(context.state, None, "{bad:?}");
        }
        let most = &long[1..];
        assert_eq!(
            TraceContext::parse(PARENT, Some(most)).unwrap().state.as_deref(),
            Some(most)
        );
    }

    #[test]
    fn a_share_of_the_traces_is_about_that_share() {
        let ids: Vec<TraceId> = (0..4000).map(|_| TraceId::random()).collect();
        let within = |share| ids.iter().filter(|id| id.is_within(share)).count();
        assert_eq!((within(0.0), within(1.0)), (0, ids.len()));
        let quarter = within(0.25);
        assert!((800..1200).contains(&quarter), "{quarter} of {}", ids.len());
        let all = |share| ids.iter().filter(|id| id.is_within(share)).all(|id| id.is_within(0.5));
        assert!(all(0.25), "who samples more has all of those who sample less");
    }

    #[test]
    fn new_spans_are_distinct_and_never_0() {
        let (one, other) = (SpanId::random(), SpanId::random());
        assert_ne!(one, other);
        assert_ne!(one, one.after(1));
        assert_ne!(SpanId::random().after(255).to_bytes(), [0; 8]);
    }
}
