//! Rates as pool files have them, `"100/s"`, and which programs of a pool have one of their own.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Deserializer, de};

use super::allow::{is_wild, program};
use crate::flow::rate::Rate;
use crate::message::units::quoted;

/// What belongs where a rate does.
pub(super) const RATE: &str = r#"a rate such as "100/s""#;
/// What belongs at the name of a program's rate.
pub(super) const PROGRAM: &str = "a program as jobs name it, in which * and ? may stand for characters of one part";
/// The shape of a rate.
pub(super) const PATTERN: &str = "^0*[1-9][0-9]*/(s|m|h)$";

/// Most of any period: more is no limit.
const MAX: u32 = 1_000_000;
/// The periods by their names.
const PERIODS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3_600)];

/// So many a period, such as `"100/s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frequency {
    count: NonZeroU32,
    per: Duration,
}

impl Frequency {
    /// The rate with that burst; without one, as many at once as in a period.
    pub(super) fn with_burst(self, burst: Option<NonZeroU32>) -> Rate {
        Rate {
            count: self.count,
            per: self.per,
            burst: burst.unwrap_or(self.count),
        }
    }
}

impl FromStr for Frequency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("expected {RATE}, got {}", quoted(text));
        let (digits, name) = text.split_once('/').ok_or_else(refused)?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let period = PERIODS.iter().find(|(period, _)| *period == name);
        let (true, Some((_, seconds))) = (is_number, period) else {
            return Err(refused());
        };
        // What is too large to be read is too large.
        let count = NonZeroU32::new(digits.parse().unwrap_or(u32::MAX)).ok_or_else(refused)?;
        if count.get() > MAX {
            return Err(format!(
                r#"expected a rate of at most "{MAX}/{name}", got {}"#,
                quoted(text)
            ));
        }
        let per = Duration::from_secs(*seconds);
        Ok(Self { count, per })
    }
}

impl<'de> Deserialize<'de> for Frequency {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

/// The programs of a pool that have a rate of their own: each program that a rule covers has it for itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProgramRates(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    glob: String,
    program: Regex,
    rate: Rate,
}

impl ProgramRates {
    /// Makes rules of names that [`is_program`] accepts.
    pub(super) fn new(rates: &BTreeMap<String, Frequency>) -> Self {
        let rule = |(glob, rate): (&String, &Frequency)| Rule {
            glob: glob.clone(),
            program: program(glob),
            rate: rate.with_burst(None),
        };
        let mut rules: Vec<Rule> = rates.iter().map(rule).collect();
        // A name before any glob, and of globs the longest, which says most.
        rules.sort_by_key(|rule| (rule.glob.contains(is_wild), std::cmp::Reverse(rule.glob.len())));
        Self(rules)
    }

    /// The rate of a program, as its job names it.
    #[must_use]
    pub fn of(&self, program: &str) -> Option<Rate> {
        let rule = self.0.iter().find(|rule| rule.program.is_match(program));
        rule.map(|rule| rule.rate)
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        (&self.glob, self.rate) == (&other.glob, other.rate)
    }
}

/// Whether a text can be the name of a program, or a glob of such names.
pub(super) fn is_program(name: &str) -> bool {
    !name.is_empty() && !name.contains('\0') && !name.contains("**")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        match text.parse::<Frequency>() {
            Ok(Frequency { count, per }) => format!("{count} in {per:?}"),
            Err(error) => error,
        }
    }

    #[test]
    fn a_rate_is_a_count_and_a_period() {
        for (text, expected) in [
            ("100/s", "100 in 1s"),
            ("007/m", "7 in 60s"),
            ("1/h", "1 in 3600s"),
            ("1000000/s", "1000000 in 1s"),
            (
                "1000001/s",
                r#"expected a rate of at most "1000000/s", got "1000001/s""#,
            ),
            (
                "99999999999/h",
                r#"expected a rate of at most "1000000/h", got "99999999999/h""#,
            ),
        ] {
            assert_eq!(parsed(text), expected);
        }
        for text in [
            "", "100", "/s", "0/s", "1/d", "1 / s", "-1/s", "1.5/s", "+1/s", "1/s/s", "1/",
        ] {
            assert_eq!(
                parsed(text),
                format!(r#"expected a rate such as "100/s", got {text:?}"#)
            );
        }
    }

    #[test]
    fn a_burst_is_a_period_s_count_unless_it_is_said() {
        let rate: Frequency = "5/s".parse().unwrap();
        assert_eq!(rate.with_burst(None).burst.get(), 5);
        assert_eq!(rate.with_burst(NonZeroU32::new(2)).burst.get(), 2);
    }

    #[test]
    fn a_program_has_the_rate_of_the_rule_that_says_most() {
        let rules = [
            ("/usr/bin/*", "1/s"),
            ("/usr/bin/con*", "2/s"),
            ("/usr/bin/convert", "3/s"),
            ("c?t", "4/s"),
        ];
        let rules = rules.map(|(glob, rate)| (glob.to_owned(), rate.parse().unwrap()));
        let rates = ProgramRates::new(&rules.into());
        for (program, count) in [
            ("/usr/bin/convert", Some(3)),
            ("/usr/bin/conjure", Some(2)),
            ("/usr/bin/x", Some(1)),
            ("/usr/bin/x/y", None),
            ("cat", Some(4)),
            ("cart", None),
        ] {
            assert_eq!(rates.of(program).map(|rate| rate.count.get()), count, "{program}");
        }
    }
}
