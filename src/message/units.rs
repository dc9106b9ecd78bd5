//! Durations, sizes and signals as people write them: `"30s"`, `"512MiB"`, `"TERM"`.
//!
//! Each is a newtype whose text form is the same in messages, pool files, flags and logs.
//!
//! Invariants: a [`Span`] and a [`ByteSize`] are never zero and have an upper bound, so adding one
//! to a clock or a counter doesn't overflow; what `Display` writes, `FromStr` reads back unchanged;
//! the pattern in the JSON Schema accepts what `FromStr` accepts, but for the upper bounds, which a
//! pattern can't express.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that isn't what was asked for: says what was expected, and quotes a little of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {got}")]
pub struct ParseError {
    expected: Cow<'static, str>,
    got: String,
}

impl ParseError {
    pub(super) fn new(expected: impl Into<Cow<'static, str>>, got: &str) -> Self {
        Self {
            expected: expected.into(),
            got: quoted(got),
        }
    }
}

/// Most characters of a bad value that an error message quotes.
const QUOTED_MAX: usize = 64;

/// Quotes `text` for an error message: escaped, and cut to 64 characters.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
    }
}

/// A length of time, such as `"30s"`: positive, in whole milliseconds, at most 100 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

/// A number of bytes, such as `"512MiB"`: positive, at most 1 EiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// A signal by its number on Linux, such as `"TERM"`.
///
/// Producers and pool files may name the 31 standard ones. The real-time ones (`SIGRTMIN+3`) exist
/// for results only: a command may die of one, but none can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalName(i32);

impl Span {
    /// What error messages call a duration.
    pub(super) const EXPECTED: &str = r#"a duration such as "30s""#;
    pub(super) const PATTERN: &str = "^0*[1-9][0-9]*(ms|s|m|h)$";
    /// 100 years: a clock plus a span stays a date that can be written.
    const MAX_HOURS: u64 = 876_000;
    const MAX_MS: u64 = Self::MAX_HOURS * 3_600_000;
    /// Milliseconds of each unit, the longest first.
    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

    /// Returns the time as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }

    fn as_ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(Self::MAX_MS)
    }
}

impl From<Duration> for Span {
    /// Rounds up to a whole millisecond, and clamps to 1 ms and 100 years.
    fn from(time: Duration) -> Self {
        let ms = time.as_nanos().div_ceil(1_000_000);
        let ms = u64::try_from(ms).unwrap_or(Self::MAX_MS);
        Self(Duration::from_millis(ms.clamp(1, Self::MAX_MS)))
    }
}

impl FromStr for Span {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match scaled(text, &Self::UNITS) {
            Some(ms @ 1..=Self::MAX_MS) => Ok(Self(Duration::from_millis(ms))),
            Some(0) | None => Err(ParseError::new(Self::EXPECTED, text)),
            Some(_) => {
                let most = format!(r#"a duration of at most "{}h""#, Self::MAX_HOURS);
                Err(ParseError::new(most, text))
            }
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(out, self.as_ms(), &Self::UNITS)
    }
}

impl ByteSize {
    /// What error messages call a size.
    pub(super) const EXPECTED: &str = r#"a size such as "512MiB""#;
    pub(super) const PATTERN: &str = "^0*[1-9][0-9]*(B|KiB|MiB|GiB|TiB)$";
    /// 1 EiB: fits every signed 64-bit counter of the kernel.
    const MAX: u64 = 1 << 60;
    /// Bytes of each unit, the largest first.
    const UNITS: [(&str, u64); 5] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
    ];

    /// Makes a size of `bytes`, clamped to 1 byte and 1 EiB.
    pub fn from_bytes(bytes: u64) -> Self {
        Self(bytes.clamp(1, Self::MAX))
    }

    /// Returns the number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match scaled(text, &Self::UNITS) {
            Some(bytes @ 1..=Self::MAX) => Ok(Self(bytes)),
            Some(0) | None => Err(ParseError::new(Self::EXPECTED, text)),
            Some(_) => {
                let most = format!(r#"a size of at most "{}""#, Self(Self::MAX));
                Err(ParseError::new(most, text))
            }
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(out, self.0, &Self::UNITS)
    }
}

/// Reads digits and a unit; a number too big to count is `u64::MAX`, `None` is another shape.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(unit_at);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    match digits {
        "" => None,
        _ => Some(digits.parse().unwrap_or(u64::MAX).saturating_mul(*scale)),
    }
}

/// Writes `number` in the largest unit that divides it, which is the shortest exact form.
fn write_scaled(out: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let exact = units.iter().find(|(_, scale)| number.is_multiple_of(*scale));
    let (unit, scale) = exact.expect("the smallest unit is 1, which divides everything");
    write!(out, "{}{unit}", number / scale)
}

/// The standard signals of Linux by number, from 1 (`signal(7)`; x86, ARM and RISC-V agree).
const STANDARD: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The real-time signals of the kernel; the C library keeps the first two for itself.
const REALTIME: std::ops::RangeInclusive<i32> = 32..=64;

/// What C programs know as `SIGRTMIN` (glibc).
const SIGRTMIN: i32 = 34;

impl SignalName {
    /// Asks a process to end.
    pub const TERM: Self = Self(15);
    /// Ends a process at once.
    pub const KILL: Self = Self(9);

    /// What error messages call a signal.
    pub(super) const EXPECTED: &str = r#"a signal such as "TERM""#;

    /// Returns the signal of that number, or `None` where Linux has none.
    pub fn from_number(number: i32) -> Option<Self> {
        let known = (1..=31).contains(&number) || REALTIME.contains(&number);
        known.then_some(Self(number))
    }

    /// Returns the number that the kernel knows the signal by.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// Reads any signal that a result may hold, the real-time ones too.
    fn from_result(text: &str) -> Result<Self, ParseError> {
        text.parse().or_else(|refused| {
            let offset = text.strip_prefix("SIGRTMIN").and_then(|rest| rest.parse::<i32>().ok());
            let number = offset.and_then(|offset| offset.checked_add(SIGRTMIN));
            number
                .filter(|number| REALTIME.contains(number))
                .map(Self)
                .ok_or(refused)
        })
    }

    /// Deserializes the optional signal of a result.
    pub(super) fn deserialize_in_result<'de, D>(from: D) -> Result<Option<Self>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = Option::<Cow<'de, str>>::deserialize(from)?;
        text.map(|text| Self::from_result(&text).map_err(de::Error::custom))
            .transpose()
    }

    pub(super) fn pattern() -> String {
        format!("^(SIG)?({})$", STANDARD.join("|"))
    }

    /// Describes the optional signal of a result.
    pub(super) fn schema_in_result(_: &mut SchemaGenerator) -> Schema {
        let pattern = format!(r"^SIG({}|RTMIN[+-][0-9]+)$", STANDARD.join("|"));
        json_schema!({ "type": "string", "pattern": pattern, "examples": ["SIGKILL"] })
    }
}

impl FromStr for SignalName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        (1..)
            .zip(STANDARD)
            .find_map(|(number, standard)| (standard == name).then_some(Self(number)))
            .ok_or_else(|| ParseError::new(Self::EXPECTED, text))
    }
}

impl fmt::Display for SignalName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let standard = usize::try_from(self.0 - 1).ok().and_then(|index| STANDARD.get(index));
        match standard {
            Some(name) => write!(out, "SIG{name}"),
            None => write!(out, "SIGRTMIN{:+}", self.0 - SIGRTMIN),
        }
    }
}

/// Gives a type with a text form its serde and schema: a string, of the pattern given.
macro_rules! as_text {
    ($type:ty, $name:literal, $schema:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}
pub(super) use as_text;

as_text!(
    Span,
    "Duration",
    json_schema!({
        "description": "A length of time: a whole number and a unit, one of ms, s, m and h. \
            Positive, at most 876000h (100 years).",
        "type": "string",
        "pattern": Self::PATTERN,
        "examples": ["250ms", "30s", "10m", "2h"],
    })
);

as_text!(
    ByteSize,
    "Size",
    json_schema!({
        "description": "A number of bytes: a whole number and a unit, one of B, KiB, MiB, GiB and \
            TiB. Positive, at most 1048576TiB.",
        "type": "string",
        "pattern": Self::PATTERN,
        "examples": ["64KiB", "1GiB"],
    })
);

as_text!(
    SignalName,
    "Signal",
    json_schema!({
        "description": "One of the standard signals of Linux by its name, with or without SIG.",
        "type": "string",
        "pattern": Self::pattern(),
        "examples": ["TERM", "SIGINT"],
    })
);

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: FromStr<Err = ParseError> + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().expect_err(text).to_string()
    }

    #[test]
    fn span_reads_every_unit() {
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("2h", 7_200_000)] {
            assert_eq!(text.parse::<Span>().unwrap().get(), Duration::from_millis(ms));
        }
    }

    #[test]
    fn span_refuses_what_is_not_a_positive_duration() {
        for text in [
            "", "0", "0s", "000ms", "5", "s", "-5s", "+5s", "1.5s", "5 s", "5S", "5d", "٣s",
        ] {
            let got = format!("expected a duration such as \"30s\", got {text:?}");
            assert_eq!(error::<Span>(text), got);
        }
        assert_eq!(
            error::<Span>("lots"),
            r#"expected a duration such as "30s", got "lots""#
        );
    }

    #[test]
    fn span_has_an_upper_bound_and_says_which() {
        assert!("876000h".parse::<Span>().is_ok());
        for text in ["876001h", "99999999999999999999999ms", "5124095576030432h"] {
            let expected = r#"expected a duration of at most "876000h""#;
            assert_eq!(error::<Span>(text), format!("{expected}, got {text:?}"));
        }
    }

    #[test]
    fn span_displays_the_shortest_exact_form() {
        for (ms, text) in [
            (1, "1ms"),
            (1_000, "1s"),
            (1_500, "1500ms"),
            (90_000, "90s"),
            (120_000, "2m"),
            (3_600_000, "1h"),
            (86_400_000, "24h"),
        ] {
            let span = Span::from(Duration::from_millis(ms));
            assert_eq!(span.to_string(), text);
            assert_eq!(text.parse::<Span>().unwrap(), span);
        }
    }

    #[test]
    fn span_from_a_duration_is_never_zero_and_never_too_long() {
        assert_eq!(Span::from(Duration::ZERO).to_string(), "1ms");
        assert_eq!(Span::from(Duration::from_micros(1_001)).to_string(), "2ms");
        assert_eq!(Span::from(Duration::MAX).to_string(), "876000h");
    }

    #[test]
    fn size_reads_and_displays_every_unit() {
        for (text, bytes) in [
            ("1B", 1),
            ("1023B", 1023),
            ("64KiB", 64 << 10),
            ("512MiB", 512 << 20),
            ("1GiB", 1 << 30),
            ("3TiB", 3 << 40),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, text));
        }
        assert_eq!("1024KiB".parse::<ByteSize>().unwrap().to_string(), "1MiB");
    }

    #[test]
    fn size_refuses_what_is_not_a_positive_size() {
        for text in ["lots", "0B", "0GiB", "512", "512MB", "512mib", "-1B", "1.5GiB", ""] {
            let got = format!("expected a size such as \"512MiB\", got {text:?}");
            assert_eq!(error::<ByteSize>(text), got);
        }
        let too_big = r#"expected a size of at most "1048576TiB", got "1048577TiB""#;
        assert_eq!(error::<ByteSize>("1048577TiB"), too_big);
    }

    #[test]
    fn signals_are_read_with_and_without_sig() {
        for text in ["TERM", "SIGTERM"] {
            assert_eq!(text.parse::<SignalName>().unwrap(), SignalName::TERM);
        }
        for (number, name) in [(1, "HUP"), (9, "KILL"), (17, "CHLD"), (19, "STOP"), (31, "SYS")] {
            assert_eq!(name.parse::<SignalName>().unwrap().number(), number);
        }
        for text in ["FOO", "term", "SIGSIGTERM", "15", "", "RTMIN+3", "SIGRTMIN+3"] {
            let got = format!("expected a signal such as \"TERM\", got {text:?}");
            assert_eq!(error::<SignalName>(text), got);
        }
    }

    #[test]
    fn every_signal_of_linux_has_a_name_that_a_result_reads_back() {
        for number in 1..=64 {
            let signal = SignalName::from_number(number).unwrap();
            assert_eq!(signal.number(), number);
            assert_eq!(SignalName::from_result(&signal.to_string()), Ok(signal));
        }
        assert_eq!(SignalName::from_number(37).unwrap().to_string(), "SIGRTMIN+3");
        for number in [i32::MIN, -1, 0, 65, i32::MAX] {
            assert_eq!(SignalName::from_number(number), None);
        }
        assert!(SignalName::from_result("SIGRTMIN+2147483647").is_err());
    }

    #[test]
    fn quotes_are_escaped_and_cut() {
        assert_eq!(quoted("a\n\"b"), r#""a\n\"b""#);
        assert_eq!(quoted(&"é".repeat(64)), format!("\"{}\"", "é".repeat(64)));
        assert_eq!(quoted(&"é".repeat(65)), format!("\"{}\"…", "é".repeat(64)));
    }
}
