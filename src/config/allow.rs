//! The programs that a restricted pool runs, and with which arguments: decided from a job's own words first, then from
//! where its program is on this machine.
//!
//! A rule is a program, by its full path or by a glob, and the patterns of its arguments: each argument has to match one of
//! them as a whole. `*` and `?` of a glob stand for characters of one part of a path, never for a `/`.
//!
//! Nothing is searched for: what a job names has to be the full path, without `.` and `..`. A symbolic link that only a glob
//! covers is followed, and what it leads to has to be covered too; one that a rule names itself is the operator's own choice.
//!
//! Not here: what else such a job may not set, since it could make an honest program do something else ([`Pool`](super::Pool)).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use regex::Regex;

use crate::message::JobError;
use crate::message::units::quoted;

/// What belongs at a rule's name.
pub(super) const GLOB: &str = "the full path of a program, in which * and ? may stand for characters of one part";
/// What each argument's pattern has to be.
pub(super) const PATTERN: &str = "a regular expression for a whole argument";

/// Rules that a message names at most: it is for people.
const SHOWN: usize = 8;

/// The rules of a restricted pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    glob: String,
    program: Regex,
    arguments: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    whole: Regex,
}

/// What is wrong with a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// Its program.
    Glob,
    /// The pattern of this index, and why.
    Pattern(usize, String),
}

impl Allowed {
    /// Reads rules: the patterns of arguments by the program.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub(super) fn read(rules: &BTreeMap<String, Vec<String>>) -> Result<Self, Wrong> {
        let rule = |(glob, arguments): (&String, &Vec<String>)| Rule::read(glob, arguments);
        rules.iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// Judges a command by its words alone.
    ///
    /// # Errors
    ///
    /// When no rule allows it: names the word at fault, and what is allowed in its place.
    pub fn check(&self, program: &str, args: &[String]) -> Result<(), JobError> {
        if !is_full_path(program) {
            let expected = "expected the full path of a program that the pool allows, without . and ..";
            return Err(JobError::new(
                "command[0]",
                format!("{expected}, got {}", quoted(program)),
            ));
        }
        let judged = self.rules_for(program).map(|rule| (rule.refused(args), rule));
        // Of several rules the one that gets furthest is meant, and one that refuses nothing gets to the end.
        let (index, rule) = match judged.max_by_key(|(refused, _)| refused.unwrap_or(usize::MAX)) {
            None => {
                let expected = format!("expected a program that the pool allows ({})", self.shown());
                return Err(JobError::new(
                    "command[0]",
                    format!("{expected}, got {}", quoted(program)),
                ));
            }
            Some((None, _)) => return Ok(()),
            Some((Some(index), rule)) => (index, rule),
        };
        let message = format!("expected {}, got {}", rule.expected(), quoted(&args[index]));
        Err(JobError::new(format!("command[{}]", index + 1), message))
    }

    /// Judges where the program of a command that [`check`](Self::check) allows is on this machine, now. Looks at files.
    ///
    /// # Errors
    ///
    /// When only globs cover it, and it is a symbolic link out of them, or cannot be followed. A program that is not there
    /// is not at fault here.
    pub fn check_place(&self, program: &str, args: &[String]) -> Result<(), JobError> {
        let rules = || self.rules_for(program).filter(|rule| rule.refused(args).is_none());
        if rules().any(|rule| !rule.is_glob()) {
            return Ok(());
        }
        let refused = |what: String| {
            let remedy = "name the program itself in the pool's [allow]";
            Err(JobError::new(
                "command[0]",
                format!("{} {what}: {remedy}", quoted(program)),
            ))
        };
        match Path::new(program).canonicalize() {
            Ok(real) if rules().any(|rule| rule.holds(&real)) => Ok(()),
            Ok(real) => refused(format!(
                "is a symbolic link to {}, which the pool does not allow",
                quoted(&real.to_string_lossy())
            )),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => refused(format!("cannot be followed to where it is ({error})")),
        }
    }

    fn rules_for<'a>(&'a self, program: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.0.iter().filter(move |rule| rule.program.is_match(program))
    }

    fn shown(&self) -> String {
        let globs: Vec<&str> = self.0.iter().take(SHOWN).map(|rule| &*rule.glob).collect();
        let more = if self.0.len() > SHOWN { ", …" } else { "" };
        format!("{}{more}", globs.join(", "))
    }
}

impl Rule {
    fn read(glob: &str, arguments: &[String]) -> Result<Self, Wrong> {
        if !is_full_path(glob) || glob.contains("**") || glob.contains('\0') {
            return Err(Wrong::Glob);
        }
        let pattern = |(index, text): (usize, &String)| Pattern::read(text).map_err(|why| Wrong::Pattern(index, why));
        Ok(Self {
            glob: glob.to_owned(),
            program: program(glob),
            arguments: arguments.iter().enumerate().map(pattern).collect::<Result<_, _>>()?,
        })
    }

    fn is_glob(&self) -> bool {
        self.glob.contains(is_wild)
    }

    /// The index of the first argument that no pattern matches.
    fn refused(&self, args: &[String]) -> Option<usize> {
        let is_allowed = |argument: &String| self.arguments.iter().any(|pattern| pattern.whole.is_match(argument));
        args.iter().position(|argument| !is_allowed(argument))
    }

    fn expected(&self) -> String {
        if self.arguments.is_empty() {
            return format!("no argument for {}", self.glob);
        }
        let patterns = self.arguments.iter().take(SHOWN).map(|pattern| quoted(&pattern.text));
        let more = if self.arguments.len() > SHOWN { ", …" } else { "" };
        let patterns = patterns.collect::<Vec<_>>().join(", ");
        format!("an argument that the pool allows for {} ({patterns}{more})", self.glob)
    }

    /// Whether the glob covers a path without symbolic links. The folders that it names without `*` and `?` may be links.
    fn holds(&self, real: &Path) -> bool {
        let wild = self.glob.find(is_wild).unwrap_or(self.glob.len());
        let (folder, rest) = self.glob.split_at(self.glob[..wild].rfind('/').unwrap_or_default());
        let folder = if folder.is_empty() { "/" } else { folder };
        let (Ok(folder), Some(real)) = (Path::new(folder).canonicalize(), real.to_str()) else {
            return false;
        };
        let folder = folder.to_string_lossy();
        let inside = real.strip_prefix(folder.trim_end_matches('/'));
        inside.is_some_and(|inside| program(rest).is_match(inside))
    }
}

impl Pattern {
    fn read(text: &str) -> Result<Self, String> {
        // Alone first, or "a)|(b" would close the group that holds it to the whole argument.
        Regex::new(text)
            .and_then(|_| Regex::new(&format!(r"\A(?:{text})\z")))
            .map(|whole| Self {
                text: text.to_owned(),
                whole,
            })
            .map_err(|error| {
                let error = error.to_string();
                error
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned()
            })
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.glob == other.glob && self.arguments == other.arguments
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

pub(super) fn is_wild(c: char) -> bool {
    c == '*' || c == '?'
}

/// Makes the expression of the paths that a glob covers.
pub(super) fn program(glob: &str) -> Regex {
    let escaped = regex::escape(glob).replace(r"\*", "[^/]*").replace(r"\?", "[^/]");
    Regex::new(&format!(r"\A(?s:{escaped})\z")).expect("an escaped text is a valid expression")
}

fn is_full_path(path: &str) -> bool {
    let parts = path.strip_prefix('/').map(|rest| rest.split('/'));
    parts.is_some_and(|mut parts| parts.all(|part| !["", ".", ".."].contains(&part)))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(rules: &[(&str, &[&str])]) -> Result<Allowed, Wrong> {
        let owned = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect();
        Allowed::read(
            &rules
                .iter()
                .map(|(glob, patterns)| (glob.to_string(), owned(patterns)))
                .collect(),
        )
    }

    fn allowed() -> Allowed {
        read(&[
            ("/opt/tools/*", &[]),
            ("/opt/tools/render", &["--size", "[0-9]{1,4}", "|x"]),
            ("/usr/bin/v?", &["a|ab"]),
        ])
        .unwrap()
    }

    /// What is wrong with a command, as its producer reads it.
    fn verdict(allowed: &Allowed, command: &[&str]) -> String {
        let args: Vec<String> = command[1..].iter().map(ToString::to_string).collect();
        let checked = allowed.check(command[0], &args);
        checked.map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn a_command_that_a_rule_covers_is_fine() {
        for command in [
            &["/opt/tools/other"][..],
            &["/opt/tools/render"],
            &["/opt/tools/render", "--size", "1024", "", "x"],
            &["/usr/bin/vi", "ab"],
            &["/usr/bin/vä", "a"],
        ] {
            assert_eq!(verdict(&allowed(), command), "fine", "{command:?}");
        }
    }

    #[test]
    fn a_program_that_no_rule_covers_is_refused_with_those_that_are() {
        let expected =
            "command[0]: expected a program that the pool allows (/opt/tools/*, /opt/tools/render, /usr/bin/v?), got ";
        for program in [
            "/bin/sh",
            "/opt/tools",
            "/opt/tools/deep/er",
            "/opt/toolsx",
            "/usr/bin/v",
            "/usr/bin/vim",
            "/usr/bin/vi\n",
            "/x/opt/tools/render",
            "/OPT/tools/render",
        ] {
            assert_eq!(verdict(&allowed(), &[program]), format!("{expected}{program:?}"));
        }
    }

    #[test]
    fn nothing_is_searched_for_and_no_way_leads_around() {
        for program in [
            "render",
            "./render",
            "opt/tools/render",
            "~/render",
            "//opt/tools/render",
            "/opt//tools/render",
            "/opt/tools/./render",
            "/opt/tools/..",
            "/opt/tools/../../bin/sh",
            "/opt/tools/render/",
            "/opt/tools/",
            "/",
            " /opt/tools/render",
        ] {
            let verdict = verdict(&allowed(), &[program]);
            let expected = "command[0]: expected the full path of a program that the pool allows, without . and ..";
            assert_eq!(verdict, format!("{expected}, got {program:?}"));
        }
    }

    #[test]
    fn every_argument_has_to_match_a_pattern_of_one_rule_as_a_whole() {
        for (command, index) in [
            (&["/opt/tools/other", "--help"][..], 1),
            (&["/opt/tools/render", "--size", "10000"], 2),
            (&["/opt/tools/render", "--size=1"], 1),
            (&["/opt/tools/render", "x--size"], 1),
            (&["/opt/tools/render", "1", "2", "1\n"], 3),
            (&["/opt/tools/render", "\n1"], 1),
            (&["/usr/bin/vi", "aab"], 1),
            (&["/usr/bin/vi", ""], 1),
        ] {
            let verdict = verdict(&allowed(), command);
            assert!(
                verdict.starts_with(&format!("command[{index}]: expected ")),
                "{command:?}: {verdict}"
            );
        }
        assert_eq!(
            verdict(&allowed(), &["/opt/tools/other", "-x"]),
            r#"command[1]: expected no argument for /opt/tools/*, got "-x""#
        );
        assert_eq!(
            verdict(&allowed(), &["/usr/bin/vi", "c"]),
            r#"command[1]: expected an argument that the pool allows for /usr/bin/v? ("a|ab"), got "c""#
        );
    }

    #[test]
    fn no_pattern_gets_out_of_its_frame() {
        for text in ["(", "a)|(b", "a)|.*(?:b", "(?x) a # ", r"\", "*"] {
            assert!(
                matches!(read(&[("/bin/x", &["ok", text])]), Err(Wrong::Pattern(1, _))),
                "{text}"
            );
        }
        for text in ["(?m)^a$", "(?i)a", "a|b", "^a$"] {
            let allowed = read(&[("/bin/x", &[text])]).unwrap();
            assert_eq!(verdict(&allowed, &["/bin/x", "a"]), "fine", "{text}");
            assert_ne!(verdict(&allowed, &["/bin/x", "x\na\nx"]), "fine", "{text}");
            assert_ne!(verdict(&allowed, &["/bin/x", "ax"]), "fine", "{text}");
        }
        assert_eq!(
            read(&[("/bin/x", &["("])]),
            Err(Wrong::Pattern(0, "unclosed group".to_owned()))
        );
    }

    #[test]
    fn what_is_no_full_path_is_no_rule() {
        for glob in [
            "",
            "sh",
            "*",
            "/",
            "/bin/",
            "/bin/../x",
            "/bin/./x",
            "//bin/x",
            "/opt/**",
            "/a/**/b",
            "/a\0",
        ] {
            assert_eq!(read(&[(glob, &[])]), Err(Wrong::Glob), "{glob:?}");
        }
        let literal = read(&[("/opt/a.b[c]{d}(e)+", &[])]).unwrap();
        assert_eq!(verdict(&literal, &["/opt/a.b[c]{d}(e)+"]), "fine");
        assert_ne!(verdict(&literal, &["/opt/axbc"]), "fine");
    }

    #[test]
    fn a_link_out_of_a_glob_is_refused_and_one_that_is_named_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        for name in ["real", "outside"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        fs::write(root.join("real/tool"), "").unwrap();
        fs::write(root.join("outside/sh"), "").unwrap();
        symlink("tool", root.join("real/alias")).unwrap();
        symlink("../outside/sh", root.join("real/escape")).unwrap();
        symlink("real", root.join("tools")).unwrap();
        symlink("loop", root.join("real/loop")).unwrap();

        let by_glob = read(&[(&path("tools/*"), &[])]).unwrap();
        for name in ["tool", "alias", "missing"] {
            assert_eq!(
                by_glob.check_place(&path(&format!("tools/{name}")), &[]),
                Ok(()),
                "{name}"
            );
        }
        let error = by_glob.check_place(&path("tools/escape"), &[]).unwrap_err();
        assert_eq!(error.field, "command[0]");
        assert!(error.message.contains("is a symbolic link to "), "{error}");
        assert!(
            error.message.ends_with("name the program itself in the pool's [allow]"),
            "{error}"
        );
        let error = by_glob.check_place(&path("tools/loop"), &[]).unwrap_err();
        assert!(error.message.contains("cannot be followed"), "{error}");

        let by_name = read(&[(&path("tools/*"), &[]), (&path("tools/escape"), &["a"])]).unwrap();
        assert_eq!(by_name.check_place(&path("tools/escape"), &["a".to_owned()]), Ok(()));
        let both = read(&[(&path("tools/*"), &["b"]), (&path("tools/escape"), &["a"])]).unwrap();
        let other = both.check_place(&path("tools/escape"), &["b".to_owned()]);
        assert!(other.is_err(), "the rule that names it does not allow these arguments");
    }
}
