//! `--range 1-1000:2`: items that are numbers.

use std::fmt;
use std::str::FromStr;

/// Numbers from one to another, both included, by steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NumberRange {
    from: u64,
    to: u64,
    step: u64,
    /// Digits of each at least, with zeros before it.
    width: usize,
}

/// A text that is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(r#"expected FROM-TO or FROM-TO:STEP, such as "1-1000" or "0-100:5", {0}"#)]
pub struct RangeError(String);

impl NumberRange {
    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        ((self.to - self.from) / self.step).saturating_add(1)
    }

    /// The item at `index`, from 0.
    pub(super) fn get(&self, index: u64) -> Option<String> {
        let number = self.step.checked_mul(index)?.checked_add(self.from)?;
        (number <= self.to).then(|| format!("{number:0width$}", width = self.width))
    }
}

impl FromStr for NumberRange {
    type Err = RangeError;

    /// Reads it; where a bound is written with zeros before it, all numbers are as wide as the wider bound.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (bounds, step) = text.split_once(':').unwrap_or((text, "1"));
        let (from, to) = bounds
            .split_once('-')
            .ok_or_else(|| RangeError(format!("got {text:?}")))?;
        let has_zeros = [from, to].iter().any(|bound| bound.len() > 1 && bound.starts_with('0'));
        let range = Self {
            from: number(from)?,
            to: number(to)?,
            step: number(step)?,
            width: if has_zeros { from.len().max(to.len()) } else { 0 },
        };
        match range {
            Self { step: 0, .. } => Err(RangeError("and a step of at least 1".to_owned())),
            Self { from, to, .. } if from > to => Err(RangeError(format!("with {from} not after {to}"))),
            _ => Ok(range),
        }
    }
}

impl fmt::Display for NumberRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, step, .. } = self;
        write!(out, "{from}-{to}:{step}")
    }
}

fn number(text: &str) -> Result<u64, RangeError> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_digits);
    number.ok_or_else(|| RangeError(format!("got {text:?} for a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<String> {
        let range: NumberRange = text.parse().unwrap();
        let numbers: Vec<String> = (0..).map_while(|index| range.get(index)).collect();
        assert_eq!(numbers.len() as u64, range.len(), "{text}");
        numbers
    }

    #[test]
    fn a_range_has_both_ends_and_the_width_of_its_zeros() {
        assert_eq!(numbers("1-3"), ["1", "2", "3"]);
        assert_eq!(numbers("1-6:2"), ["1", "3", "5"]);
        assert_eq!(numbers("7-7"), ["7"]);
        assert_eq!(numbers("08-10"), ["08", "09", "10"]);
        assert_eq!(numbers("0-1"), ["0", "1"]);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let max = u64::MAX;
        assert_eq!(numbers(&format!("{}-{max}:2", max - 1)), [(max - 1).to_string()]);
        let all: NumberRange = format!("0-{max}").parse().unwrap();
        assert_eq!((all.len(), all.get(max)), (max, Some(max.to_string())));
    }

    #[test]
    fn what_is_no_range_says_what_is() {
        for (text, wrong) in [
            ("", r#"got """#),
            ("5", r#"got "5""#),
            ("1-", r#"got "" for a number"#),
            ("-1-5", r#"got "" for a number"#),
            ("1-+5", r#"got "+5" for a number"#),
            ("1-5:0", "and a step of at least 1"),
            ("1-5:x", r#"got "x" for a number"#),
            ("9-1", "with 9 not after 1"),
        ] {
            let error = text.parse::<NumberRange>().unwrap_err().to_string();
            assert!(error.ends_with(wrong), "{text}: {error}");
        }
    }
}
