//! What these tests share: a folder for jobs, gates that hold commands up, and the schema of results.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, process};

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cli::{Cli, Finished};
use crate::support::process::{alive_with_env, wait_until};

/// How long outside state may take to be as it should: far more than it needs on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The variable by which a test finds the processes that it caused.
const MARK: &str = "SYNTHEX_TEST_MARK";

/// A folder of one test, gone with it.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path of a file, as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file, and returns its path as an argument.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.arg(name)
    }

    /// Writes a file with one job a line.
    pub fn jobs(&self, name: &str, jobs: &[Value]) -> String {
        let lines: Vec<String> = jobs.iter().map(|job| format!("{job}\n")).collect();
        self.file(name, lines.concat())
    }

    /// A shell script that says it is up, then waits until the test [opens](Self::open) its gate.
    pub fn gated(&self, name: &str, then: &str) -> String {
        let (up, go) = (self.arg(&format!("{name}.up")), self.arg(&format!("{name}.go")));
        format!("touch {up}; until [ -e {go} ]; do sleep 0.02; done; {then}")
    }

    /// Waits until a gated script, or anything else that touches `NAME.up`, runs.
    pub fn wait_until_up(&self, name: &str) {
        let up = self.path(&format!("{name}.up"));
        wait_until(LIMIT, "the command runs", || up.exists());
    }

    pub fn open(&self, name: &str) {
        self.file(&format!("{name}.go"), "");
    }

    /// The name that [`marked`](Self::marked) gives to what this test starts.
    fn mark(&self) -> String {
        format!("{}-{}", process::id(), self.folder.path().display())
    }

    /// Marks a program and all that it will start.
    pub fn marked(&self, cli: Cli) -> Cli {
        cli.env(MARK, self.mark())
    }

    /// Fails unless everything marked ends without being told to, be it by a helper process that is the last to go.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left = || alive_with_env(MARK, &self.mark());
        wait_until(LIMIT, "no process is left behind", || left().is_empty());
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `synthex run` with these arguments, on one slot, so that jobs run in their order.
pub fn run(args: &[&str]) -> Cli {
    Cli::new(["run", "--slots", "1"].iter().chain(args))
}

/// Runs one job, given as a line on stdin, and returns its only result.
#[track_caller]
pub fn result_of(line: impl Into<Vec<u8>>) -> Value {
    let finished = run(&["--json", "-"]).stdin(line).run();
    assert_eq!(finished.stderr, "", "with --json, results say it all");
    only(results(&finished))
}

/// What becomes of a job that has to be up within so many seconds: more are given until it has said something, as on a
/// busy machine it may have to wait for a processor.
#[track_caller]
pub fn once_up(result_within: impl Fn(u64) -> Value) -> Value {
    let mut tries = [1, 10, 40].into_iter().map(result_within).peekable();
    loop {
        let result = tries.next().expect("the last one is returned");
        if result["stdout"]["bytes"] != 0 || tries.peek().is_none() {
            return result;
        }
    }
}

/// Parses the results on stdout, and holds each against the schema.
#[track_caller]
pub fn results(finished: &Finished) -> Vec<Value> {
    let results = finished.json_lines();
    let schema = ResultSchema::new();
    for result in &results {
        schema.check(result);
    }
    results
}

#[track_caller]
pub fn only(results: Vec<Value>) -> Value {
    let [result] = <[Value; 1]>::try_from(results).expect("exactly one result");
    result
}

/// The schema that `synthex schema result` prints, in a validator that is not ours.
struct ResultSchema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl ResultSchema {
    fn new() -> Self {
        let printed = Cli::new(["schema", "result"]).run().expect_code(0);
        let schema: Value = serde_json::from_str(&printed.stdout).unwrap();
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("urn:result", schema).unwrap();
        let index = compiler.compile("urn:result", &mut schemas).unwrap();
        let schema = Self { schemas, index };
        assert!(
            !schema.accepts(&json!({"job_id": "a"})),
            "a validator that accepts all proves nothing"
        );
        schema
    }

    fn accepts(&self, value: &Value) -> bool {
        self.schemas.validate(value, self.index).is_ok()
    }

    #[track_caller]
    fn check(&self, value: &Value) {
        if let Err(error) = self.schemas.validate(value, self.index) {
            panic!("not a result by the schema: {value}\n{error:#}");
        }
    }
}
