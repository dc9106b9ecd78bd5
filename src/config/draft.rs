//! Lays defaults, a file and flags over each other, and makes a pool of what is on top.
//!
//! A setting that is refused is taken out, default and all, so that nothing is concluded from a value nobody meant.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use toml::Value as Toml;

use super::account::{Accounts, Machine, Wanted, resolve};
use super::allow::Allowed;
use super::check::{Problem, assemble, check, read, read_umask};
use super::document::{self, Document, Fault};
use super::file::{BreakerKeys, MAX_SLOTS, PoolFile, RateKeys};
use super::keys::{ALLOW, ENV, KEYS, KeyPath};
use super::rate::ProgramRates;
use super::{Breaker, ConfigError, ConfigErrors, DEFAULT_POOL, Loaded, Origin, Output, Overrides, Pool, Retry, Value};
use crate::executor::{Rights, UserIds};
use crate::flow::rate::Rate;
use crate::flow::retry::Schedule;
use crate::message::{OutputPolicy, RetryPolicy, Span};

/// Pairs of settings, and what the first has to be to the second.
const ORDERED: [(&str, Order, &str); 4] = [
    ("slots", Order::AtMost, "prefetch"),
    ("timeout", Order::AtMost, "max_timeout"),
    ("warn_before", Order::LessThan, "timeout"),
    ("retry.initial", Order::AtMost, "retry.max"),
];

/// How one setting stands to another.
#[derive(Clone, Copy)]
enum Order {
    AtMost,
    LessThan,
}

/// A pool that is being put together.
pub(super) struct Draft {
    /// What is being read: the file, or the defaults.
    source: Origin,
    settings: BTreeMap<KeyPath, Setting>,
    errors: Vec<ConfigError>,
    /// Whether some of the file could not be read, so that a default may stand where the file has a value.
    incomplete: bool,
    /// Who commands run as, where that is not the worker's own user.
    user: Option<UserIds>,
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
        draft.conclude(&Machine);
        draft
    }

    /// Puts a pool together from defaults and flags alone.
    pub(super) fn of_defaults(overrides: &Overrides) -> Self {
        let mut draft = Self::new(Origin::Default);
        draft.lay_flags(overrides);
        draft.conclude(&Machine);
        draft
    }

    fn new(source: Origin) -> Self {
        let (settings, errors) = (BTreeMap::new(), Vec::new());
        let mut draft = Self {
            source,
            settings,
            errors,
            incomplete: false,
            user: None,
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
    fn conclude(&mut self, accounts: &impl Accounts) {
        self.compute_prefetch();
        self.find_user(accounts);
        if !self.incomplete {
            self.check_order();
            self.check_writable();
            self.check_restricted();
            self.check_burst();
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

    fn find_user(&mut self, accounts: &impl Accounts) {
        let text = |key| self.settings.get(&KeyPath::of(key))?.value.as_str();
        let wanted = Wanted {
            user: text("user"),
            group: text("group"),
        };
        match resolve(&wanted, accounts) {
            Ok(user) => self.user = user,
            Err(refused) => refused.into_iter().for_each(|(key, message)| {
                let key = key.to_owned();
                self.refuse(self.source.clone(), Problem { key, message });
            }),
        }
    }

    fn check_order(&mut self) {
        for (low, order, high) in ORDERED {
            let setting = |key| Some((key, self.settings.get(&KeyPath::of(key))?));
            if let (Some(low), Some(high)) = (setting(low), setting(high)) {
                self.errors.extend(out_of_order(low, order, high));
            }
        }
    }

    /// The kernel takes rules for writing from a process that can gain no rights; root alone is exempt, and a user
    /// who is not is what such rules are for.
    fn check_writable(&mut self) {
        let is_set = |key| self.settings.contains_key(&KeyPath::of(key));
        let kept = self.settings.get(&KeyPath::of("no_new_privs"));
        if is_set("writable") && kept.is_some_and(|kept| kept.value.as_bool() == Some(false)) {
            let problem = Problem {
                key: "no_new_privs".to_owned(),
                message: "expected true, which writable needs, got false".to_owned(),
            };
            self.refuse(self.source.clone(), problem);
        }
    }

    /// What a pool allows must never be ignored, and one that allows nothing is nobody's wish.
    fn check_restricted(&mut self) {
        let setting = |key| self.settings.get(&KeyPath::of(key)).map(|setting| &setting.value);
        let Some(restricted) = setting("restricted").and_then(Toml::as_bool) else {
            return;
        };
        let has_rules = self.settings.keys().any(|key| key.section() == ALLOW);
        let has_bad_rules = self.errors.iter().any(|error| error.key.starts_with(ALLOW));
        let (key, message) = if has_rules && !restricted {
            ("restricted", "expected true, which [allow] needs, got false")
        } else if restricted && !has_rules && !has_bad_rules {
            (ALLOW, "expected the programs that a restricted pool runs, got none")
        } else if restricted && setting("handler").is_some() {
            (
                "handler",
                "expected none in a pool that is restricted, as its messages are jobs",
            )
        } else {
            return;
        };
        let (key, message) = (key.to_owned(), message.to_owned());
        self.refuse(self.source.clone(), Problem { key, message });
    }

    /// A burst alone limits nothing.
    fn check_burst(&mut self) {
        let is_set = |key| self.settings.contains_key(&KeyPath::of(key));
        let is_refused = self.errors.iter().any(|error| error.key == "rate.jobs");
        if is_set("rate.burst") && !is_set("rate.jobs") && !is_refused {
            let problem = Problem {
                key: "rate.burst".to_owned(),
                message: "expected rate.jobs beside it, of which it is the burst, got none".to_owned(),
            };
            self.refuse(self.source.clone(), problem);
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
        let pool = pool(file, self.user).expect("workers/default.toml has every key that can't be without a value");
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

/// Refuses a setting that is not to another as it has to be: blames the one whose origin is over the other's, and shows both.
fn out_of_order(low: (&str, &Setting), order: Order, high: (&str, &Setting)) -> Option<ConfigError> {
    let (least, most) = (low.1.magnitude()?, high.1.magnitude()?);
    let (is_right, below, above) = match order {
        Order::AtMost => (least <= most, "at most", "at least"),
        Order::LessThan => (least < most, "less than", "more than"),
    };
    if is_right {
        return None;
    }
    let (bound, (key, blamed), (other_key, other)) = if low.1.origin > high.1.origin {
        (below, low, high)
    } else {
        (above, high, low)
    };
    let note = other.note(&blamed.origin);
    let message = format!(
        "expected {bound} {other_key} ({}{note}), got {}",
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
fn pool(file: PoolFile, user: Option<UserIds>) -> Option<Pool> {
    let rights = rights(&file, user)?;
    Some(Pool {
        name: file.pool?.into(),
        slots: file.slots?.into(),
        prefetch: file.prefetch?.get(),
        handler: file.handler,
        allowed: allowed(file.restricted?, file.allow),
        events: file.events?,
        declare: file.declare?,
        delivery_limit: file.delivery_limit?.get(),
        max_job_bytes: file.max_job_bytes?.get(),
        stop_grace: file.stop_grace?.get(),
        timeout: file.timeout?.get(),
        max_timeout: file.max_timeout?.get(),
        kill_grace: file.kill_grace?.get(),
        term_signal: file.term_signal?,
        warn_before: file.warn_before.map(Span::get),
        warn_signal: file.warn_signal?,
        leftovers: file.leftovers?,
        rights,
        shell: file.shell?,
        cwd: file.cwd,
        env: Arc::new(file.env?.into()),
        retry: retry(file.retry?, file.dead_letter_exit_codes)?,
        limits: file.limits.unwrap_or_default(),
        output: output(file.output?)?,
        rate: rate(&file.rate.unwrap_or_default()),
        program_rates: ProgramRates::new(&file.program_rates.unwrap_or_default()),
        breaker: breaker(&file.breaker?)?,
    })
}

fn rights(file: &PoolFile, user: Option<UserIds>) -> Option<Rights> {
    Some(Rights {
        user,
        umask: file.umask.as_deref().and_then(read_umask),
        may_gain: !file.no_new_privs?,
        writable: file.writable.clone(),
    })
}

fn allowed(restricted: bool, rules: Option<BTreeMap<String, Vec<String>>>) -> Option<Arc<Allowed>> {
    let allowed = || Allowed::read(&rules.unwrap_or_default()).expect("each rule was checked alone");
    restricted.then(|| Arc::new(allowed()))
}

fn retry(policy: RetryPolicy, dead_letter_exit_codes: Option<Vec<i32>>) -> Option<Retry> {
    Some(Retry {
        max_attempts: policy.max_attempts?,
        schedule: Schedule {
            initial: policy.initial?.get(),
            max: policy.max?.get(),
            multiplier: policy.multiplier?,
        },
        statuses: policy.statuses,
        exit_codes: policy.exit_codes,
        dead_letter_exit_codes: dead_letter_exit_codes.unwrap_or_default(),
    })
}

fn output(policy: OutputPolicy) -> Option<Output> {
    Some(Output {
        max_bytes: policy.max_bytes?.get(),
        live: policy.live?,
    })
}

fn rate(keys: &RateKeys) -> Option<Rate> {
    Some(keys.jobs?.with_burst(keys.burst))
}

fn breaker(keys: &BreakerKeys) -> Option<Breaker> {
    Some(Breaker {
        failures: keys.failures?.get(),
        delay: keys.delay?.get(),
        put_offs: keys.put_offs?.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::account::tests::Fake;
    use super::*;

    fn finished(text: &[u8]) -> Result<Loaded, ConfigErrors> {
        finished_as(0, text)
    }

    /// Loads a file as a worker of the user `uid`.
    fn finished_as(uid: u32, text: &[u8]) -> Result<Loaded, ConfigErrors> {
        let mut draft = Draft::new(Origin::File("x.toml".into()));
        draft.lay_document(document::parse(text));
        draft.conclude(&Fake { uid });
        draft.finish()
    }

    /// What is wrong with a file, line by line.
    fn errors_of(uid: u32, text: &str) -> Vec<String> {
        let errors = finished_as(uid, text.as_bytes()).unwrap_err();
        errors.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_user_and_a_group_reach_the_pool_and_are_shown_as_they_are_written() {
        let loaded = finished(b"user = 'render'\ngroup = 'audio'\n").unwrap();
        let expected = UserIds {
            uid: 1001,
            gid: 29,
            groups: vec![29, 44],
        };
        assert_eq!(loaded.pool.rights.user, Some(expected));
        let shown: Vec<String> = loaded
            .values
            .iter()
            .filter(|value| ["user", "group"].contains(&&*value.key))
            .map(|value| format!("{} = {} # {}", value.key, value.value, value.origin))
            .collect();
        assert_eq!(shown, [r#"user = "render" # x.toml"#, r#"group = "audio" # x.toml"#]);
        let own = finished_as(1001, b"user = 'render'\n").unwrap();
        assert_eq!(own.pool.rights.user, None);
    }

    #[test]
    fn who_there_is_not_is_told_with_all_else_that_is_wrong() {
        assert_eq!(
            errors_of(
                0,
                "user = 'nobody-here'\numask = '999'\ngroup = 'nor-here'\nslots = 0\n"
            ),
            [
                r#"x.toml: umask: expected octal digits from "000" to "777", as a text, got "999""#,
                "x.toml: slots: expected a whole number from 1 to 10000, got 0",
                r#"x.toml: user: expected a user that this machine has, by its name or number, got "nobody-here""#,
                r#"x.toml: group: expected a group that this machine has, by its name or number, got "nor-here""#,
            ]
        );
        assert_eq!(
            errors_of(1000, "user = 'render'\n"),
            [r#"x.toml: user: expected the worker's own user (1000), or a worker that runs as root, got "render""#]
        );
    }

    #[test]
    fn a_warning_comes_before_the_timeout() {
        for (text, error) in [
            (
                "warn_before = '1h'",
                r#"x.toml: warn_before: expected less than timeout ("1h", the default), got "1h""#,
            ),
            (
                "warn_before = '10s'\ntimeout = '9s'",
                r#"x.toml: timeout: expected more than warn_before ("10s"), got "9s""#,
            ),
        ] {
            assert_eq!(errors_of(0, text), [error]);
        }
        let pool = finished(b"warn_before = '59m'\nwarn_signal = 'INT'").unwrap().pool;
        assert_eq!(pool.warn_before, Some(std::time::Duration::from_secs(59 * 60)));
        assert_eq!(pool.warn_signal.number(), 2);
    }

    #[test]
    fn a_burst_is_of_a_rate() {
        assert_eq!(
            errors_of(0, "rate.burst = 5\n"),
            ["x.toml: rate.burst: expected rate.jobs beside it, of which it is the burst, got none"]
        );
        assert_eq!(errors_of(0, "rate = { jobs = '0/s', burst = 5 }\n").len(), 1);
    }

    #[test]
    fn rules_for_writing_need_commands_that_gain_no_rights() {
        assert_eq!(
            errors_of(0, "writable = ['/srv']\nno_new_privs = false\n"),
            ["x.toml: no_new_privs: expected true, which writable needs, got false"]
        );
        let rights = |text: &str| finished(text.as_bytes()).unwrap().pool.rights;
        assert_eq!(rights("writable = ['/srv']").writable, Some(vec!["/srv".into()]));
        assert!(rights("no_new_privs = false").may_gain);
        assert!(!rights("").may_gain && rights("").writable.is_none());
        assert_eq!((rights("umask = '027'").umask, rights("").umask), (Some(0o27), None));
    }

    #[test]
    fn what_a_restricted_pool_allows_is_never_ignored() {
        let rule = "[allow]\n'/bin/echo' = ['[a-z]+']\n";
        let allowed = |text: String| finished(text.as_bytes()).unwrap().pool.allowed;
        let restricted = allowed(format!("restricted = true\n{rule}")).unwrap();
        assert!(restricted.check("/bin/echo", &["hi".to_owned()]).is_ok());
        assert!(restricted.check("/bin/echo", &["HI".to_owned()]).is_err());
        assert!(allowed(String::new()).is_none());
        for (text, error) in [
            (
                rule.to_owned(),
                "x.toml: restricted: expected true, which [allow] needs, got false",
            ),
            (
                "restricted = true\n[allow]\n".to_owned(),
                "x.toml: allow: expected the programs that a restricted pool runs, got none",
            ),
            (
                format!("restricted = true\nhandler = ['cat']\n{rule}"),
                "x.toml: handler: expected none in a pool that is restricted, as its messages are jobs",
            ),
            (
                "restricted = true\nallow.echo = []\n".to_owned(),
                "x.toml: allow.echo: expected as its name the full path of a program, in which * and ? may stand for \
                 characters of one part, got \"echo\"",
            ),
            (
                "restricted = true\nallow.'/bin/echo' = ['a', '(']\n".to_owned(),
                "x.toml: allow.\"/bin/echo\"[1]: expected a regular expression for a whole argument, got \"(\" (unclosed \
                 group)",
            ),
        ] {
            assert_eq!(errors_of(0, &text), [error]);
        }
    }

    #[test]
    fn every_example_in_the_reference_is_valid() {
        let is_key = |c: char| c.is_ascii_alphabetic() || c == '_';
        let uncommented = DEFAULT_POOL.lines().map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split_once(" = ").is_some_and(|(name, _)| name.chars().all(is_key)) => rest,
            _ => line,
        });
        let text = uncommented.collect::<Vec<_>>().join("\n");
        let loaded = finished(text.as_bytes()).unwrap();
        let more = KEYS.len() - 1;
        assert_eq!(
            loaded.values.len(),
            more,
            "all keys, of env two, of allow and program_rates none"
        );
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
