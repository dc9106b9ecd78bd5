//! Lays defaults, a file and flags over each other, and makes a pool of what is on top.
//!
//! A setting that is refused is taken out, default and all, so that nothing is concluded from a value nobody meant.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use toml::Value as Toml;

use super::check::{Problem, assemble, check, read};
use super::document::{self, Document, Fault};
use super::file::{MAX_SLOTS, PoolFile};
use super::keys::{ENV, KEYS, KeyPath};
use super::{ConfigError, ConfigErrors, DEFAULT_POOL, Loaded, Origin, Output, Overrides, Pool, Retry, Value};
use crate::flow::retry::Schedule;
use crate::message::{OutputPolicy, RetryPolicy, Span};

/// Pairs of settings of which the first must not exceed the second.
const ORDERED: [(&str, &str); 3] = [
    ("slots", "prefetch"),
    ("timeout", "max_timeout"),
    ("retry.initial", "retry.max"),
];

/// A pool that is being put together.
pub(super) struct Draft {
    /// What is being read: the file, or the defaults.
    source: Origin,
    settings: BTreeMap<KeyPath, Setting>,
    errors: Vec<ConfigError>,
    /// Whether some of the file could not be read, so that a default may stand where the file has a value.
    incomplete: bool,
}

struct Setting {
    value: Toml,
    origin: Origin,
}

impl Draft {
    /// Puts a pool together from defaults, a file and flags.
    pub(super) fn of_file(path: &Path, overrides: &Overrides) -> Self {
        let mut draft = Self::new(Origin::File(path.to_owned()));
        match fs::read(path) {
            Ok(text) => draft.lay_document(document::parse(&text)),
            Err(error) => {
                draft.incomplete = true;
                draft.refuse(
                    draft.source.clone(),
                    Problem::of_all(format!("cannot be read: {error}")),
                );
            }
        }
        draft.lay_flags(overrides);
        draft.conclude();
        draft
    }

    /// Puts a pool together from defaults and flags alone.
    pub(super) fn of_defaults(overrides: &Overrides) -> Self {
        let mut draft = Self::new(Origin::Default);
        draft.lay_flags(overrides);
        draft.conclude();
        draft
    }

    fn new(source: Origin) -> Self {
        let (settings, errors) = (BTreeMap::new(), Vec::new());
        let mut draft = Self {
            source,
            settings,
            errors,
            incomplete: false,
        };
        let cpus = available_parallelism().map_or(1, usize::from);
        draft.lay(
            KeyPath::of("slots"),
            integer(cpus.min(MAX_SLOTS.into())),
            Origin::Computed,
        );
        for written in document::parse(DEFAULT_POOL.as_bytes()).settings {
            draft.lay(written.key, written.value, Origin::Default);
        }
        draft
    }

    fn lay_document(&mut self, document: Document) {
        self.incomplete = !document.faults.is_empty();
        let fault = |fault: Fault| (fault.at, Problem::of_all(fault.message));
        let mut found: Vec<(usize, Problem)> = document.faults.into_iter().map(fault).collect();
        for written in document.settings {
            let problem = self.lay(written.key, written.value, self.source.clone());
            found.extend(problem.map(|problem| (written.at, problem)));
        }
        found.sort_by_key(|(at, _)| *at);
        for (_, problem) in found {
            self.refuse(self.source.clone(), problem);
        }
    }

    fn lay_flags(&mut self, overrides: &Overrides) {
        let flags = [
            ("slots", "--slots", overrides.slots),
            ("prefetch", "--prefetch", overrides.prefetch.map(usize::from)),
        ];
        for (key, flag, number) in flags {
            let Some(number) = number else { continue };
            let origin = Origin::Flag(flag);
            if let Some(problem) = self.lay(KeyPath::of(key), integer(number), origin.clone()) {
                self.refuse(origin, problem);
            }
        }
    }

    /// Does what takes more than one setting.
    fn conclude(&mut self) {
        self.compute_prefetch();
        if !self.incomplete {
            self.check_order();
        }
    }

    /// Puts a setting over what is there, or takes both away.
    fn lay(&mut self, key: KeyPath, value: Toml, origin: Origin) -> Option<Problem> {
        let problem = check(&key, &value).err();
        match problem {
            None => self.settings.insert(key, Setting { value, origin }),
            Some(_) => self.settings.remove(&key),
        };
        problem
    }

    fn refuse(&mut self, origin: Origin, Problem { key, message }: Problem) {
        self.errors.push(ConfigError { origin, key, message });
    }

    fn compute_prefetch(&mut self) {
        if let Some(slots) = self.settings.get(&KeyPath::of("slots")) {
            let (value, origin) = (slots.value.clone(), Origin::Computed);
            let prefetch = self.settings.entry(KeyPath::of("prefetch"));
            prefetch.or_insert(Setting { value, origin });
        }
    }

    fn check_order(&mut self) {
        for (low, high) in ORDERED {
            let setting = |key| Some((key, self.settings.get(&KeyPath::of(key))?));
            if let (Some(low), Some(high)) = (setting(low), setting(high)) {
                self.errors.extend(out_of_order(low, high));
            }
        }
    }

    /// Returns the pool's name, unless it is unknown whether that is the one the file gives.
    fn name(&self) -> Option<&Setting> {
        let name = self.settings.get(&KeyPath::of("pool"));
        name.filter(|name| !(self.incomplete && name.origin == Origin::Default))
    }

    /// Makes the pool, if nothing is wrong.
    pub(super) fn finish(self) -> Result<Loaded, ConfigErrors> {
        if !self.errors.is_empty() {
            return Err(ConfigErrors(self.errors));
        }
        let values = KEYS
            .iter()
            .flat_map(|key| self.settings.iter().filter(|(path, _)| key.is(path)))
            .map(|(path, setting)| shown(path, setting))
            .collect();
        let table = assemble(self.settings.iter().map(|(path, setting)| (path, &setting.value)));
        let file = read(table).expect("settings that are right alone are right together");
        let pool = pool(file).expect("workers/default.toml has every key that can't be without a value");
        Ok(Loaded { pool, values })
    }
}

/// Refuses a file that describes the same pool as one before it.
pub(super) fn refuse_same_names(drafts: &mut [Draft]) {
    for index in 1..drafts.len() {
        let (before, rest) = drafts.split_at_mut(index);
        let Some(name) = rest[0].name() else { continue };
        let is_same = |other: &&Draft| other.name().is_some_and(|other| other.value == name.value);
        let Some(same) = before.iter().find(is_same) else {
            continue;
        };
        let got = format!(
            "{}{}, which {} has too",
            name.value,
            name.note(&rest[0].source),
            same.source
        );
        let message = format!("expected a name that no other file has, got {got}");
        let origin = rest[0].source.clone();
        rest[0].refuse(
            origin,
            Problem {
                key: "pool".to_owned(),
                message,
            },
        );
    }
}

/// Refuses a setting that exceeds another: blames the one whose origin is over the other's, and shows both.
fn out_of_order(low: (&str, &Setting), high: (&str, &Setting)) -> Option<ConfigError> {
    if low.1.magnitude()? <= high.1.magnitude()? {
        return None;
    }
    let (bound, (key, blamed), (other_key, other)) = if low.1.origin > high.1.origin {
        ("most", low, high)
    } else {
        ("least", high, low)
    };
    let note = other.note(&blamed.origin);
    let message = format!(
        "expected at {bound} {other_key} ({}{note}), got {}",
        other.value, blamed.value
    );
    Some(ConfigError {
        origin: blamed.origin.clone(),
        key: key.to_owned(),
        message,
    })
}

impl Setting {
    /// Returns a number that orders settings of the same kind.
    fn magnitude(&self) -> Option<u128> {
        match &self.value {
            Toml::Integer(number) => u128::try_from(*number).ok(),
            Toml::String(text) => text.parse::<Span>().ok().map(|span| span.get().as_nanos()),
            _ => None,
        }
    }

    /// Says where the value comes from, for a message about what comes from `here`.
    fn note(&self, here: &Origin) -> String {
        match &self.origin {
            same if same == here => String::new(),
            Origin::Default => ", the default".to_owned(),
            Origin::Computed => ", the number of CPUs".to_owned(),
            origin @ (Origin::File(_) | Origin::Flag(_)) => format!(", from {origin}"),
        }
    }
}

fn integer(number: usize) -> Toml {
    Toml::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn shown(path: &KeyPath, setting: &Setting) -> Value {
    let hidden = path.section() == ENV && setting.origin != Origin::Default;
    let value = if hidden {
        "(hidden)".to_owned()
    } else {
        setting.value.to_string()
    };
    Value {
        key: path.to_string(),
        value,
        origin: setting.origin.clone(),
    }
}

/// Turns a complete file into a pool; `None` when a key is missing that has to be there.
fn pool(file: PoolFile) -> Option<Pool> {
    Some(Pool {
        name: file.pool?.into(),
        slots: file.slots?.into(),
        prefetch: file.prefetch?.get(),
        handler: file.handler,
        declare: file.declare?,
        delivery_limit: file.delivery_limit?.get(),
        max_job_bytes: file.max_job_bytes?.get(),
        stop_grace: file.stop_grace?.get(),
        timeout: file.timeout?.get(),
        max_timeout: file.max_timeout?.get(),
        kill_grace: file.kill_grace?.get(),
        term_signal: file.term_signal?,
        shell: file.shell?,
        cwd: file.cwd,
        env: file.env?,
        retry: retry(file.retry?)?,
        limits: file.limits.unwrap_or_default(),
        output: output(file.output?)?,
    })
}

fn retry(policy: RetryPolicy) -> Option<Retry> {
    Some(Retry {
        max_attempts: policy.max_attempts?,
        schedule: Schedule {
            initial: policy.initial?.get(),
            max: policy.max?.get(),
            multiplier: policy.multiplier?,
        },
        statuses: policy.statuses,
        exit_codes: policy.exit_codes,
    })
}

fn output(policy: OutputPolicy) -> Option<Output> {
    Some(Output {
        max_bytes: policy.max_bytes?.get(),
        live: policy.live?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(text: &[u8]) -> Result<Loaded, ConfigErrors> {
        let mut draft = Draft::new(Origin::File("x.toml".into()));
        draft.lay_document(document::parse(text));
        draft.conclude();
        draft.finish()
    }

    /// What is expected of a file is that it loads or that its errors say something, whatever it holds.
    fn assert_decided(text: &[u8]) {
        match finished(text) {
            Ok(loaded) => assert!(loaded.pool.slots >= 1),
            Err(errors) => assert!(!errors.0.is_empty() && errors.0.iter().all(|error| !error.message.is_empty())),
        }
    }

    #[test]
    fn no_damage_to_a_file_is_a_panic() {
        let whole = fs::read("tests/fixtures/pools/render.toml").unwrap();
        assert!(finished(&whole).is_ok());
        for at in 0..whole.len() {
            assert_decided(&whole[..at]);
            for byte in *b"\"[" {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                assert_decided(&damaged);
            }
        }
    }

    #[test]
    fn a_refused_setting_decides_nothing_about_others() {
        let errors = finished(b"timeout = 'soon'\nmax_timeout = '1m'\nslots = 0\nprefetch = 1\n").unwrap_err();
        let keys: Vec<&str> = errors.0.iter().map(|error| &*error.key).collect();
        assert_eq!(keys, ["timeout", "slots"]);
    }

    #[test]
    fn a_default_that_may_stand_for_an_unreadable_value_decides_nothing() {
        let errors = finished(b"timeout = '48h'\nmax_timeout = 72h\n").unwrap_err();
        assert_eq!(errors.0.len(), 1, "{errors}");
    }
}
