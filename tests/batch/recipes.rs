//! The README's recipes, each run as it stands there. What they call that is not on every machine (ffmpeg, rsync, curl and
//! programs of the reader's own) is a script that tells how it was called; it is found in a `PATH` of the test's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::broker::{Broker, Vhost};
use crate::support::cli::{Cli, Finished, Running};

/// A recipe's heading, and who tries it.
type Cook = (&'static str, fn(&Kitchen));

/// Every recipe.
const RECIPES: [Cook; 6] = [
    ("Transcode a folder", transcode),
    ("A backup every night, tried again", backup),
    ("100,000 URLs", urls),
    ("From cron", cron),
    ("From a program in Python", python),
    ("In a script of GitHub Actions", actions),
];

/// The code of a recipe.
struct Recipe {
    heading: String,
    language: String,
    code: String,
}

/// All blocks of code of the chapter, each below its heading.
fn recipes() -> Vec<Recipe> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let chapter = readme.split_once("\n## Recipes\n").unwrap().1;
    let chapter = chapter.split_once("\n## ").unwrap().0;
    let (mut recipes, mut heading) = (Vec::new(), String::new());
    let mut lines = chapter.lines();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("### ") {
            heading = title.to_owned();
        } else if let Some(language) = line.strip_prefix("```") {
            let code: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            recipes.push(Recipe {
                heading: heading.clone(),
                language: language.to_owned(),
                code: code.join("\n"),
            });
        }
    }
    recipes
}

#[test]
fn every_recipe_has_a_test() {
    let found: Vec<String> = recipes().into_iter().map(|recipe| recipe.heading).collect();
    assert_eq!(
        found,
        RECIPES.map(|(heading, _)| heading),
        "one block of code below each heading, in this order"
    );
}

/// A folder in which recipes are run, and what they call.
struct Kitchen {
    folder: TempDir,
    recipe: Recipe,
}

impl Kitchen {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A program of this name, written in shell.
    fn program(&self, name: &str, script: &str) {
        let path = self.write(name, &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Ours and the stand-ins first.
    fn search(&self) -> String {
        let ours = Path::new(env!("CARGO_BIN_EXE_synthex")).parent().unwrap();
        format!("{}:{}:/usr/bin:/bin", self.path("bin").display(), ours.display())
    }

    fn cook(&self, program: &str, code: &str) -> Cli {
        let home = self.folder.path();
        let flag = if program == "sh" { "-eu" } else { "-I" };
        Cli::program(program, [flag, "-c", code])
            .env("PATH", self.search())
            .env("HOME", home)
            .current_dir(home)
    }

    /// Runs the recipe's shell script.
    fn run(&self, code: i32) -> Finished {
        assert_eq!(self.recipe.language, "sh");
        self.cook("sh", &self.recipe.code).run().expect_code(code)
    }
}

/// The kitchen of one recipe.
fn with(cook: fn(&Kitchen)) {
    let place = RECIPES
        .iter()
        .position(|(_, of)| std::ptr::fn_addr_eq(*of, cook))
        .unwrap();
    let recipe = recipes().into_iter().nth(place).unwrap();
    cook(&Kitchen {
        folder: tempfile::tempdir().unwrap(),
        recipe,
    });
}

/// A fleet of one worker, whose commands find the stand-ins and run in the kitchen.
struct Fleet {
    vhost: Vhost,
    _broker: Broker,
    _worker: Running,
}

impl Fleet {
    fn of(kitchen: &Kitchen) -> Self {
        let block_on = |future| tokio::runtime::Runtime::new().unwrap().block_on(future);
        let (broker, vhost) = block_on(async {
            let broker = Broker::shared().await;
            let vhost = broker.vhost().await;
            (broker, vhost)
        });
        let pool = format!(
            "cwd = {:?}\n[env]\nPATH = {:?}\n[retry]\ninitial = \"10ms\"\n",
            kitchen.folder.path(),
            kitchen.search()
        );
        let pool = kitchen.write("pool.toml", &pool);
        let worker = Cli::new(["worker", "--metrics-addr", "none", pool.to_str().unwrap()])
            .env("SYNTHEX_AMQP_URL", vhost.url())
            .spawn();
        worker.wait_for_line(|line| line.contains("INFO consuming"));
        Self {
            vhost,
            _broker: broker,
            _worker: worker,
        }
    }

    fn run(&self, kitchen: &Kitchen, code: i32) -> Finished {
        self.run_code(kitchen, &kitchen.recipe.code, code)
    }

    fn run_code(&self, kitchen: &Kitchen, text: &str, code: i32) -> Finished {
        let recipe = kitchen.cook("sh", text);
        recipe.env("SYNTHEX_AMQP_URL", self.vhost.url()).run().expect_code(code)
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_folder_is_transcoded() {
    with(transcode);
}

fn transcode(kitchen: &Kitchen) {
    kitchen.program(
        "bin/ffmpeg",
        r#"[ "$1 $2 $3 $4 $5" = "-nostdin -loglevel error -y -i" ] && cp "$6" "$7""#,
    );
    for name in ["a", "it's \"b\" $x", "two\nlines", "deep/er/c.d"] {
        kitchen.write(&format!("music/{name}.wav"), name);
    }
    kitchen.run(0);
    for name in ["a", "it's \"b\" $x", "two\nlines", "deep/er/c.d"] {
        assert_eq!(kitchen.read(&format!("music/{name}.mp3")), name);
    }
}

#[test]
fn a_backup_is_tried_again() {
    with(backup);
}

fn backup(kitchen: &Kitchen) {
    let fleet = Fleet::of(kitchen);
    // The database's is in the way the first time.
    kitchen.program(
        "bin/rsync",
        r#"case $3 in db1*) [ $SYNTHEX_ATTEMPT -gt 1 ] || exit 12;; esac; echo "$3 -> $4" >> done"#,
    );
    let done = fleet.run(kitchen, 0);
    assert_eq!(
        sorted(&kitchen.read("done")),
        [
            "db1:/var/lib/my data/ -> backup/db1/",
            "web1:/srv/site/ -> backup/web1/"
        ],
        "{done:#?}"
    );
    assert!(done.stderr.contains("2 jobs: 2 succeeded"), "{}", done.stderr);
}

#[test]
fn urls_are_checked() {
    with(urls);
}

fn urls(kitchen: &Kitchen) {
    let fleet = Fleet::of(kitchen);
    kitchen.program(
        "bin/curl",
        r#"for url; do :; done; case $url in *3*) echo "no $url" >&2; exit 22;; esac"#,
    );
    let list: String = (1..=50).map(|n| format!("https://example.org/{n}?a=b&c\n")).collect();
    kitchen.write("urls.txt", &list);
    let done = fleet.run(kitchen, 0);
    assert!(done.stdout.ends_with("some are not there\n"), "{done:#?}");
    let broken = kitchen.read("broken.txt");
    let lines = broken.lines().count();
    let broken: Vec<&str> = broken.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(broken.len(), 14, "{broken:?}");
    assert_eq!(kitchen.read("checks.jsonl").lines().count(), 50);
    assert_eq!(kitchen.read("checks.log").lines().count(), 51);
    // Again, it finds all done.
    fleet.run(kitchen, 0);
    assert_eq!(kitchen.read("checks.jsonl").lines().count(), 50);
    assert_eq!(kitchen.read("broken.txt").lines().count(), lines);
    // What was not there is, with one exception.
    kitchen.program(
        "bin/curl",
        r#"for url; do :; done; case $url in */3\?*) echo "no $url" >&2; exit 22;; esac"#,
    );
    let retry = kitchen.recipe.code.replacen("--results", "--retry-failed --results", 1);
    fleet.run_code(kitchen, &retry, 0);
    assert_eq!(kitchen.read("checks.jsonl").lines().count(), 64);
    assert_eq!(kitchen.read("broken.txt").trim(), "no https://example.org/3?a=b&c");
}

#[test]
fn cron_starts_it() {
    with(cron);
}

fn cron(kitchen: &Kitchen) {
    assert_eq!(kitchen.recipe.language, "crontab");
    kitchen.write(
        "nightly/jobs.jsonl",
        "{\"script\":\"echo hello\"}\n{\"script\":\"echo bad >&2; exit 3\"}\n",
    );
    let mut fields = kitchen.recipe.code.splitn(7, ' ').filter(|field| !field.is_empty());
    assert_eq!(fields.by_ref().take(5).collect::<Vec<_>>(), ["30", "2", "*", "*", "*"]);
    let command = fields.next().unwrap();
    assert!(!command.contains('%'), "cron takes % for the end of the line");
    let done = kitchen.cook("sh", command).run().expect_code(3);
    assert_eq!((&*done.stdout, &*done.stderr), ("", ""), "cron would send it by mail");
    assert_eq!(kitchen.read("nightly/nightly.out"), "hello\n");
    let told = kitchen.read("nightly/nightly.err");
    assert!(
        told.contains("bad\n") && told.contains("2 jobs: 1 succeeded, 1 failed"),
        "{told}"
    );
    assert_eq!(kitchen.read("nightly/nightly.log").lines().count(), 3);
}

#[test]
fn python_gets_the_results() {
    with(python);
}

fn python(kitchen: &Kitchen) {
    assert_eq!(kitchen.recipe.language, "python");
    kitchen.program("bin/render", "[ $1 != 2.html ] || exit 5");
    let done = kitchen.cook("python3", &kitchen.recipe.code).run().expect_code(3);
    assert_eq!(
        sorted(&done.stdout),
        ["page-1 succeeded 0", "page-2 failed 5", "page-3 succeeded 0"]
    );
}

#[test]
fn a_ci_script_says_what_failed() {
    with(actions);
}

fn actions(kitchen: &Kitchen) {
    kitchen.program("test.sh", "echo testing $1; [ $1 != cli ]");
    let done = kitchen.run(3);
    let errors: Vec<&str> = done
        .stdout
        .lines()
        .filter(|line| line.starts_with("::error::"))
        .collect();
    assert_eq!(errors.len(), 1, "{done:#?}");
    assert!(errors[0].ends_with(" failed: testing cli"), "{errors:?}");
    assert_eq!(fs::read_dir(kitchen.path("logs")).unwrap().count(), 6);
}
