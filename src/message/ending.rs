//! How a run came to its end, for the result: the step that ended it, the time each phase took, and which limits were
//! enforced by what.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The step of its ending at which a command was gone.
///
/// - `itself`: it ended before anything was done to it
/// - `warn_signal`: after the signal that warns of the timeout, before the timeout
/// - `term_signal`: in its grace, after the signal that asks it to end
/// - `kill`: by SIGKILL
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum EndedBy {
    Itself,
    WarnSignal,
    TermSignal,
    Kill,
}

/// What enforced a limit.
///
/// - `cgroup`: the kernel's control group of the job, over all its processes together
/// - `rlimit`: `setrlimit(2)`, for each process alone (`processes`: for all of the user's)
/// - `none`: nothing; this machine has no way to
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum Enforcer {
    Cgroup,
    Rlimit,
    None,
}

/// Which of the limits that were asked for were enforced by what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitsApplied {
    /// Of `limits.memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Enforcer>,
    /// Of `limits.processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Enforcer>,
    /// Of `limits.open_files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<Enforcer>,
    /// Of `limits.file_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Enforcer>,
    /// Of `limits.cpu_time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<Enforcer>,
}

impl LimitsApplied {
    /// Whether no limit was asked for.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How long each phase of an attempt took, in milliseconds with fractions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Phases {
    /// From `queued_at` to the start, earlier attempts and their waits included; left out where
    /// `queued_at` is. As that has whole seconds, this is up to 1000 too long.
    #[serde(rename = "queued_ms", default, skip_serializing_if = "Option::is_none")]
    #[serde(with = "optional_millis")]
    #[schemars(with = "Option<f64>", range(min = 0))]
    pub queued: Option<Duration>,
    /// From there until the program ran.
    #[serde(rename = "spawn_ms", with = "millis")]
    #[schemars(with = "f64", range(min = 0))]
    pub spawn: Duration,
    /// From there until the command's own process ended, or the first signal was sent to end it.
    #[serde(rename = "run_ms", with = "millis")]
    #[schemars(with = "f64", range(min = 0))]
    pub run: Duration,
    /// From the first signal that was sent to make an end, to the command or to what it left running,
    /// until the last process of the job was gone; left out where nothing had to be ended.
    #[serde(rename = "kill_ms", default, skip_serializing_if = "Option::is_none")]
    #[serde(with = "optional_millis")]
    #[schemars(with = "Option<f64>", range(min = 0))]
    pub kill: Option<Duration>,
}

/// A time as a number of milliseconds, with fractions down to a microsecond.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(time.as_micros() as f64 / 1000.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let millis = f64::deserialize(from)?;
        let time = Duration::try_from_secs_f64(millis / 1000.0).map_err(de::Error::custom)?;
        // A fraction of seconds is binary: what was written is the nearest microsecond.
        let micros = (time.as_nanos() + 500) / 1000;
        u64::try_from(micros)
            .map(Duration::from_micros)
            .map_err(de::Error::custom)
    }
}

/// The same, of a time that may be left out.
mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Millis(#[serde(with = "super::millis")] Duration);

    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        time.map(Millis).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let millis = Option::<Millis>::deserialize(from)?;
        Ok(millis.map(|Millis(time)| time))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    fn phases() -> Phases {
        Phases {
            queued: Some(Duration::from_secs(2)),
            spawn: Duration::from_nanos(612_999),
            run: Duration::from_micros(1_500_001),
            kill: None,
        }
    }

    #[test]
    fn phases_are_milliseconds_down_to_a_microsecond() {
        let written = to_value(phases()).unwrap();
        assert_eq!(
            written,
            json!({"queued_ms": 2000.0, "spawn_ms": 0.612, "run_ms": 1500.001})
        );
        let read: Phases = from_value(written).unwrap();
        assert_eq!((read.queued, read.kill), (phases().queued, None));
        assert_eq!(read.spawn, Duration::from_micros(612));
        assert_eq!(read.run, phases().run);
    }

    #[test]
    fn every_time_comes_back_as_it_was_written() {
        for micros in [0, 1, 999, 12_345, 86_400_000_001, 3_153_600_000_000_001] {
            let run = Duration::from_micros(micros);
            let phases = Phases {
                run,
                kill: Some(run),
                ..phases()
            };
            let read: Phases = from_value(to_value(phases).unwrap()).unwrap();
            assert_eq!((read.run, read.kill), (run, Some(run)), "{micros}");
        }
    }

    #[test]
    fn whole_numbers_are_read_too_and_no_negative_ones() {
        let read = |spawn: Value| from_value::<Phases>(json!({"spawn_ms": spawn, "run_ms": 0}));
        assert_eq!(read(json!(3)).unwrap().spawn, Duration::from_millis(3));
        assert!(read(json!(-0.5)).is_err());
        assert!(read(json!(1e300)).is_err());
    }

    #[test]
    fn limits_that_were_not_asked_for_are_not_told() {
        assert!(LimitsApplied::default().is_empty());
        let applied = LimitsApplied {
            memory: Some(Enforcer::Cgroup),
            cpu_time: Some(Enforcer::None),
            ..LimitsApplied::default()
        };
        assert!(!applied.is_empty());
        assert_eq!(
            to_value(applied).unwrap(),
            json!({"memory": "cgroup", "cpu_time": "none"})
        );
    }
}
