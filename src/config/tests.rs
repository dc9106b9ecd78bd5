//! Whole files: what is wrong with them, word for word, and what becomes of them when nothing is.

use std::collections::BTreeSet;

use super::keys::KEYS;
use super::*;

const FIXTURES: &str = "tests/fixtures/pools";

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Loads a file of the fixtures with flags that make the outcome the same on every machine.
fn errors_of(name: &str) -> Vec<String> {
    errors_with(
        name,
        &Overrides {
            slots: Some(4),
            prefetch: None,
        },
    )
}

fn errors_with(name: &str, overrides: &Overrides) -> Vec<String> {
    lines(&load(&fixture(name), overrides).expect_err(name))
}

/// Splits errors into lines, without the folder of the fixtures.
fn lines(errors: &ConfigErrors) -> Vec<String> {
    let text = errors.to_string().replace(&format!("{FIXTURES}/"), "");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn five_mistakes_are_five_lines() {
    assert_eq!(
        errors_of("five_mistakes.toml"),
        [
            r#"five_mistakes.toml: pool: expected 1 to 64 letters, digits, "_" and "-" of ASCII, got "image.resize""#,
            "five_mistakes.toml: slots: expected a whole number from 1 to 10000, got 0",
            "five_mistakes.toml: time_out: unknown key; did you mean timeout?",
            r#"five_mistakes.toml: kill_grace: expected a duration such as "30s", got "soon""#,
            r#"five_mistakes.toml: limits.memory: expected a size such as "512MiB", got 512"#,
        ]
    );
}

#[test]
fn errors_name_the_file_as_it_was_given() {
    let errors = load(&fixture("five_mistakes.toml"), &Overrides::default()).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.starts_with("tests/fixtures/pools/five_mistakes.toml: pool: expected "),
        "{text}"
    );
    assert_eq!(errors.0[3].origin, Origin::File(fixture("five_mistakes.toml")));
    assert_eq!(errors.0[3].key, "kill_grace");
}

#[test]
fn wrong_types_are_named_at_any_depth() {
    assert_eq!(
        errors_of("nested.toml"),
        [
            "nested.toml: handler[1]: expected a string, got 5",
            "nested.toml: env.TOKEN: expected a string, got a value of another type",
            r#"nested.toml: limits: expected a table, got "none""#,
            r#"nested.toml: output.live: expected true or false, got "yes""#,
            "nested.toml: cwd: expected an absolute path, got 7",
            "nested.toml: retry.max_attempts: expected a whole number from 1 to 4294967295, got -3",
            r#"nested.toml: retry.multiplier: expected a number of at least 1, got "twice""#,
            "nested.toml: retry.statuses[1]: expected one of succeeded, failed, signaled, timed_out, out_of_memory, \
             cancelled, expired, not_started, rejected, lost, got \"slow\"",
            "nested.toml: retry.exit_codes[1]: expected an exit code from 0 to 255, got 300",
            "nested.toml: retry.timeout: unknown key; did you mean timeout, which belongs above the first [section]?",
        ]
    );
}

#[test]
fn text_that_is_no_toml_is_named_by_line_and_the_rest_is_still_checked() {
    assert_eq!(
        errors_of("syntax.toml"),
        [
            "syntax.toml: line 3, column 11: string values must be quoted, expected literal string",
            "syntax.toml: line 4, column 18: invalid basic string, expected `\"`",
            "syntax.toml: line 5, column 9: string values must be quoted, expected literal string",
            r#"syntax.toml: kill_grace: expected a duration such as "30s", got "soon""#,
        ]
    );
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let missing = ["missing.toml: cannot be read: No such file or directory (os error 2)"];
    assert_eq!(errors_of("missing.toml"), missing);
    let loaded = load_all(
        &[fixture("missing.toml"), fixture("unnamed.toml")],
        &Overrides::default(),
    );
    assert_eq!(
        lines(&loaded.unwrap_err()),
        missing,
        "nothing is concluded from a file that could not be read"
    );
}

#[test]
fn values_that_contradict_each_other_are_shown_together() {
    assert_eq!(
        errors_with("order.toml", &Overrides::default()),
        [
            "order.toml: prefetch: expected at least slots (8), got 4",
            r#"order.toml: timeout: expected at most max_timeout ("24h", the default), got "48h""#,
            r#"order.toml: retry.max: expected at least retry.initial ("10m"), got "1m""#,
        ]
    );
}

#[test]
fn a_flag_is_blamed_for_what_it_says() {
    let overrides = |slots, prefetch| Overrides { slots, prefetch };
    assert_eq!(
        errors_with("render.toml", &overrides(None, Some(3))),
        ["--prefetch: expected at least slots (4, from render.toml), got 3"]
    );
    assert_eq!(
        errors_with("render.toml", &overrides(Some(10), None)),
        ["--slots: expected at most prefetch (9, from render.toml), got 10"]
    );
    assert_eq!(
        errors_with("render.toml", &overrides(Some(0), Some(0))),
        [
            "--slots: expected a whole number from 1 to 10000, got 0",
            "--prefetch: expected a whole number from 1 to 65535, got 0",
        ]
    );
    let files = [fixture("render.toml"), fixture("unnamed.toml")];
    let once = load_all(&files, &overrides(Some(0), None)).unwrap_err();
    assert_eq!(
        lines(&once),
        ["--slots: expected a whole number from 1 to 10000, got 0"]
    );
}

#[test]
fn two_files_of_one_pool_are_refused_with_all_other_mistakes() {
    let files = ["render.toml", "render_again.toml", "order.toml"].map(fixture);
    let errors = load_all(&files, &Overrides::default()).unwrap_err();
    let lines = lines(&errors);
    assert_eq!(
        lines[..2],
        [
            "render_again.toml: slot: unknown key; did you mean slots?",
            "render_again.toml: pool: expected a name that no other file has, got \"render\", which render.toml has too",
        ]
    );
    assert_eq!(lines.len(), 5, "{lines:?}");
}

#[test]
fn two_files_without_a_name_are_refused() {
    let files = ["unnamed.toml", "unnamed.toml"].map(fixture);
    let errors = load_all(&files, &Overrides::default()).unwrap_err();
    assert_eq!(
        lines(&errors),
        [
            "unnamed.toml: pool: expected a name that no other file has, got \"default\", the default, which unnamed.toml \
          has too"
        ]
    );
}

#[test]
fn files_of_several_pools_load_in_their_order() {
    let files = ["render.toml", "unnamed.toml"].map(fixture);
    let loaded = load_all(&files, &Overrides::default()).unwrap();
    let pools: Vec<(&str, usize)> = loaded
        .iter()
        .map(|loaded| (&*loaded.pool.name, loaded.pool.slots))
        .collect();
    assert_eq!(pools, [("render", 4), ("default", 2)]);
}

#[test]
fn no_message_repeats_a_secret() {
    let errors = errors_of("env_secret.toml");
    assert_eq!(
        errors,
        [
            "env_secret.toml: env.NUMBER: expected a string, got a value of another type",
            r#"env_secret.toml: env: expected names without "=", got one that starts with "KEY""#,
            "env_secret.toml: env.NUL: expected text without NUL, got one at byte 7",
            "env_secret.toml: line 6, column 12: string values must be quoted, expected literal string",
        ]
    );
}

fn render() -> Pool {
    load(&fixture("render.toml"), &Overrides::default()).unwrap().pool
}

#[test]
fn what_a_file_says_of_the_pool_reaches_it() {
    let pool = render();
    assert_eq!((&*pool.name, pool.slots, pool.prefetch), ("render", 4, 9));
    assert_eq!(
        pool.handler,
        Some(vec!["/usr/local/bin/render".to_owned(), "--stdin".to_owned()])
    );
    assert_eq!((pool.declare, pool.delivery_limit), (Declare::Passive, 3));
    assert_eq!((pool.max_job_bytes, pool.stop_grace), (2 << 20, seconds(120)));
}

#[test]
fn what_a_file_says_of_its_jobs_reaches_the_pool() {
    let pool = render();
    assert_eq!((pool.timeout, pool.max_timeout), (seconds(300), seconds(600)));
    assert_eq!(
        (pool.kill_grace, pool.term_signal.number()),
        (Duration::from_millis(1500), 2)
    );
    assert_eq!((pool.warn_before, pool.warn_signal.number()), (Some(seconds(20)), 12));
    assert_eq!(pool.leftovers, Leftovers::Allow);
    let rights = Rights {
        user: None,
        umask: Some(0o27),
        may_gain: false,
        writable: Some(vec!["/srv/render".into(), "/tmp".into()]),
    };
    assert_eq!(pool.rights, rights);
    assert_eq!(pool.shell, ["/bin/sh", "-ec"]);
    assert_eq!(pool.cwd.as_deref(), Some(Path::new("/srv/render")));
    assert_eq!(pool.env["LANG"], "de_DE.UTF-8");
    assert_eq!(pool.env["TOKEN"], "not-to-be-shown");
    assert_eq!(
        pool.env["PATH"],
        Pool::default_pool().env["PATH"],
        "variables are added one by one"
    );
}

#[test]
fn the_limits_and_the_output_of_a_file_reach_the_pool() {
    let pool = render();
    let limits = pool.limits;
    assert_eq!(limits.memory.map(|size| size.get()), Some(2 << 30));
    assert_eq!(limits.processes.map(u64::from), Some(256));
    assert_eq!(limits.open_files.map(u64::from), Some(1024));
    assert_eq!(limits.file_size.map(|size| size.get()), Some(10 << 30));
    assert_eq!(limits.cpu_time.map(|time| time.get()), Some(seconds(1800)));
    assert_eq!(
        pool.output,
        Output {
            max_bytes: 1 << 20,
            live: true
        }
    );
}

#[test]
fn the_rates_and_the_breaker_of_a_file_reach_the_pool() {
    let pool = render();
    let rate = |count: u32, per, burst: u32| Rate {
        count: count.try_into().unwrap(),
        per: seconds(per),
        burst: burst.try_into().unwrap(),
    };
    assert_eq!(pool.rate, Some(rate(100, 1, 20)));
    assert_eq!(pool.program_rates.of("/usr/bin/convert"), Some(rate(5, 60, 5)));
    let breaker = Breaker {
        failures: 3,
        delay: seconds(60),
        put_offs: 7,
    };
    assert_eq!(pool.breaker, breaker);
}

#[test]
fn the_retry_of_a_file_reaches_the_pool() {
    let expected = Retry {
        max_attempts: NonZeroU32::new(3).unwrap(),
        schedule: Schedule {
            initial: seconds(2),
            max: seconds(60),
            multiplier: 3.0,
        },
        statuses: Some(vec![Status::Failed, Status::Signaled]),
        exit_codes: Some(vec![75]),
        dead_letter_exit_codes: vec![3, 5],
    };
    assert_eq!(render().retry, expected);
}

#[test]
fn a_table_is_laid_over_the_default_key_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.toml");
    std::fs::write(&path, "retry.max_attempts = 7\n").unwrap();
    let retry = load(&path, &Overrides::default()).unwrap().pool.retry;
    assert_eq!(retry.max_attempts.get(), 7);
    assert_eq!(retry.schedule, Pool::default_pool().retry.schedule);
}

/// Loads a fixture and shows its values as lines, with the folder of the fixtures left out.
fn shown(name: &str, overrides: &Overrides) -> Vec<String> {
    let values = load(&fixture(name), overrides).unwrap().values;
    let line = |value: &Value| format!("{} = {} # {}", value.key, value.value, value.origin);
    values
        .iter()
        .map(|value| line(value).replace(&format!("{FIXTURES}/"), ""))
        .collect()
}

#[test]
fn values_tell_where_they_come_from() {
    let lines = shown(
        "unnamed.toml",
        &Overrides {
            slots: None,
            prefetch: Some(5),
        },
    );
    for line in [
        r#"pool = "default" # default"#,
        "slots = 2 # unnamed.toml",
        "prefetch = 5 # --prefetch",
        r#"shell = ["/bin/bash", "-c"] # default"#,
        r#"env.LANG = "C.UTF-8" # default"#,
        "retry.multiplier = 2.0 # default",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line} is not in {lines:#?}");
    }
    let absent = |line: &String| line.starts_with("cwd") || line.starts_with("limits");
    assert!(!lines.iter().any(absent), "{lines:#?}");
}

#[test]
fn a_flag_is_over_the_file_and_prefetch_follows_slots() {
    let lines = shown(
        "unnamed.toml",
        &Overrides {
            slots: Some(3),
            prefetch: None,
        },
    );
    assert_eq!(lines[1..3], ["slots = 3 # --slots", "prefetch = 3 # computed"]);
    let pool = load_default(&Overrides {
        slots: Some(70),
        prefetch: None,
    })
    .unwrap()
    .pool;
    assert_eq!((pool.slots, pool.prefetch), (70, 70));
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(load_default(&Overrides::default()).unwrap().pool.slots, cpus);
}

#[test]
fn values_of_the_environment_are_hidden() {
    let lines = shown("render.toml", &Overrides::default());
    assert!(
        lines.contains(&"env.TOKEN = (hidden) # render.toml".to_owned()),
        "{lines:#?}"
    );
    assert!(
        lines.contains(&"env.LANG = (hidden) # render.toml".to_owned()),
        "{lines:#?}"
    );
    let loaded = load(&fixture("render.toml"), &Overrides::default()).unwrap();
    let debug = format!("{loaded:?}");
    assert!(debug.contains("TOKEN") && !debug.contains("not-to-be-shown"), "{debug}");
}

#[test]
fn values_come_in_the_order_of_the_reference() {
    let values = load(&fixture("render.toml"), &Overrides::default()).unwrap().values;
    let shown: Vec<&str> = values
        .iter()
        .map(|value| &*value.key)
        .filter(|key| !key.starts_with("env.") && !key.starts_with("program_rates."))
        .collect();
    // Whom a machine knows is its own business, so the file names nobody; and a handler's pool has nothing to allow.
    let reference: Vec<&str> = KEYS
        .iter()
        .map(|key| key.path)
        .filter(|path| !["env.*", "allow.*", "program_rates.*", "user", "group"].contains(path))
        .collect();
    assert_eq!(shown, reference);
}

/// The defaults, key by key: what users rely on, and what the documentation says.
const DEFAULTS: [(&str, &str); 28] = [
    ("pool", r#""default""#),
    ("events", "false"),
    ("declare", r#""active""#),
    ("delivery_limit", "5"),
    ("max_job_bytes", r#""1MiB""#),
    ("stop_grace", r#""60s""#),
    ("timeout", r#""1h""#),
    ("max_timeout", r#""24h""#),
    ("term_signal", r#""TERM""#),
    ("kill_grace", r#""10s""#),
    ("warn_signal", r#""USR1""#),
    ("leftovers", r#""kill""#),
    ("no_new_privs", "true"),
    ("shell", r#"["/bin/bash", "-c"]"#),
    ("restricted", "false"),
    ("env.LANG", r#""C.UTF-8""#),
    (
        "env.PATH",
        r#""/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin""#,
    ),
    ("retry.max_attempts", "1"),
    ("retry.initial", r#""1s""#),
    ("retry.max", r#""5m""#),
    ("retry.multiplier", "2.0"),
    ("output.max_bytes", r#""64KiB""#),
    ("output.live", "false"),
    ("breaker.failures", "5"),
    ("breaker.delay", r#""30s""#),
    ("breaker.put_offs", "10"),
    ("slots", "4"),
    ("prefetch", "4"),
];

#[test]
fn the_defaults_are_the_documented_ones() {
    let loaded = load_default(&Overrides {
        slots: Some(4),
        prefetch: None,
    })
    .unwrap();
    let values = loaded.values.iter().map(|value| (&*value.key, &*value.value));
    assert_eq!(values.collect::<BTreeSet<_>>(), BTreeSet::from(DEFAULTS));
    assert_eq!(loaded.pool.limits, Limits::default());
    assert_eq!((loaded.pool.cwd, loaded.pool.handler), (None, None));
    assert_eq!((loaded.pool.warn_before, loaded.pool.rights), (None, Rights::default()));
    assert_eq!((loaded.pool.rate, loaded.pool.program_rates.of("true")), (None, None));
    assert_eq!((loaded.pool.retry.statuses, loaded.pool.retry.exit_codes), (None, None));
}

#[test]
fn the_defaults_are_those_of_the_file_loaded_as_any_other() {
    let from_file = load(Path::new("workers/default.toml"), &Overrides::default()).unwrap();
    assert!(from_file.pool == Pool::default_pool());
    assert!(from_file.values.iter().all(|value| value.origin != Origin::Default));
}

#[test]
fn every_pool_of_ours_loads_under_its_files_name() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("workers").unwrap() {
        let path = entry.unwrap().path();
        let pool = load(&path, &Overrides::default())
            .unwrap_or_else(|errors| panic!("{errors}"))
            .pool;
        assert_eq!(Some(&*pool.name), path.file_stem().and_then(|stem| stem.to_str()));
        names.push(pool.name.to_string());
    }
    names.sort();
    assert_eq!(names, ["batch", "default", "handler", "restricted", "shell"]);
}

/// A key in the reference, with the comment above it.
struct Entry {
    key: String,
    comment: Vec<&'static str>,
}

/// Reads the reference as a person does: a comment, then its key, which may be commented out.
fn entries() -> Vec<Entry> {
    let (mut entries, mut section, mut comment) = (Vec::new(), String::new(), Vec::new());
    for line in DEFAULT_POOL.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some(name) = key_of(line) {
            entries.push(Entry {
                key: format!("{section}{name}"),
                comment: std::mem::take(&mut comment),
            });
            continue;
        } else if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        comment.clear();
    }
    entries
}

/// Returns the key of `key = value` and of `# key = value`.
fn key_of(line: &'static str) -> Option<&'static str> {
    let (name, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    let is_key = name.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
    (is_key || name.starts_with('"')).then_some(name)
}

#[test]
fn the_reference_has_every_key_in_order_with_its_default_in_up_to_three_lines() {
    let entries = entries();
    let keys: Vec<&str> = entries.iter().map(|entry| &*entry.key).collect();
    let expected = KEYS.iter().flat_map(|key| match key.path {
        "env.*" => vec!["env.PATH", "env.LANG"],
        "allow.*" => vec![r#"allow."/usr/bin/convert""#],
        "program_rates.*" => vec![r#"program_rates."/usr/bin/convert""#],
        path => vec![path],
    });
    assert_eq!(keys, expected.collect::<Vec<_>>());
    for Entry { key, comment } in &entries {
        assert!((1..=3).contains(&comment.len()), "{key}: {comment:?}");
        assert!(comment.join(" ").contains("Default: "), "{key}: {comment:?}");
    }
}

#[test]
fn no_line_of_the_reference_is_too_long_to_read() {
    assert!(DEFAULT_POOL.lines().all(|line| line.chars().count() <= 120));
}
