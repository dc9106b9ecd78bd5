//! A broker, a client on it that is not ours, and workers: what every test here begins with.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::broker::{Broker, Vhost};
use crate::support::cli::{Cli, Finished, Running, patient};
use crate::support::process::{Signal, alive_with_env, wait_until};

/// How long anything may take that has to come, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The subcommands that give up when the broker does not answer.
const CLIENTS: [&str; 14] = [
    "batch", "cancel", "dead", "doctor", "drain", "explain", "jobs", "logs", "pause", "pools", "resume", "submit",
    "top", "workers",
];

/// Names of a test's own on a broker, and a client to look at them.
pub struct Bench {
    pub url: String,
    pub namespace: String,
    pub rabbit: Rabbit,
    folder: TempDir,
}

/// A message as a foreign client got it.
pub struct Received {
    pub routing_key: String,
    pub properties: Value,
    pub headers: Value,
    pub body: Vec<u8>,
}

impl Bench {
    /// A namespace of its own on the node that all tests share.
    pub fn new() -> Self {
        let broker = block_on(Broker::shared());
        Self::at(broker.amqp_url(), format!("test-{}", uuid::Uuid::now_v7().simple()))
    }

    /// A virtual host of its own on that node, with the usual names.
    pub fn on_own_vhost() -> (Self, Broker, Vhost) {
        let broker = block_on(Broker::shared());
        let vhost = block_on(broker.vhost());
        (Self::at(vhost.url(), "synthex".to_owned()), broker, vhost)
    }

    fn at(url: String, namespace: String) -> Self {
        let rabbit = Rabbit::connect(&url);
        let folder = tempfile::tempdir().expect("the temporary folder can be written");
        Self {
            url,
            namespace,
            rabbit,
            folder,
        }
    }

    /// The name of an exchange or queue, without its namespace.
    pub fn named(&self, name: &str) -> String {
        format!("{}.{name}", self.namespace)
    }

    /// A path in a folder of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a pool's file and gives its path.
    pub fn pool(&self, text: &str) -> String {
        let name = text.split('"').nth(1).expect("the file begins with the pool's name");
        let path = self.path(&format!("{name}.toml"));
        fs::write(&path, text).expect("the folder is there");
        path.to_str().expect("a temporary path is text").to_owned()
    }

    /// The `synthex` of this build, told of the broker by its environment, and as patient as a test.
    pub fn synthex(&self, args: &[&str]) -> Cli {
        let is_client = matches!(args, ["config", "apply", ..]) || CLIENTS.contains(args.first().unwrap_or(&""));
        let args = if is_client { patient(args) } else { args.to_vec() };
        Cli::new(args)
            .env("SYNTHEX_AMQP_URL", &self.url)
            .env("SYNTHEX_NAMESPACE", &self.namespace)
    }

    /// A worker that has been started, and may not consume yet.
    pub fn start(&self, args: &[&str]) -> Running {
        let args = [&["worker", "--metrics-addr", "127.0.0.1:0"], args].concat();
        self.synthex(&args).spawn()
    }

    /// A worker of one pool that consumes.
    pub fn worker(&self, args: &[&str]) -> Worker {
        Worker::ready(self.start(args), 1)
    }

    /// Makes the queues for replies and for all results, so that none is missed from now on. Needs a worker, or its
    /// topology.
    pub fn listen(&self) {
        self.rabbit
            .call(json!({"do": "declare", "queue": self.named("my-replies")}));
        let all = self.named("my-results");
        self.rabbit.call(json!({"do": "declare", "queue": all}));
        self.rabbit
            .call(json!({"do": "bind", "queue": all, "exchange": self.named("results"), "key": "#"}));
    }

    /// Properties of a well-behaved producer, who wants an answer.
    pub fn properties(&self, id: &str) -> Value {
        json!({
            "content_type": "application/json",
            "message_id": id,
            "correlation_id": format!("about {id}"),
            "reply_to": self.named("my-replies"),
            "timestamp": jiff::Timestamp::now().as_second(),
            "delivery_mode": 2,
        })
    }

    /// Publishes a job as a well-behaved producer does.
    pub fn send(&self, pool: &str, id: &str, job: &Value) {
        self.send_bytes(pool, job.to_string().as_bytes(), &self.properties(id));
    }

    /// Publishes to the exchange of jobs.
    pub fn send_bytes(&self, pool: &str, body: &[u8], properties: &Value) {
        let taken = self.rabbit.publish(&self.named("jobs"), pool, body, properties);
        assert!(taken, "no queue takes a job for pool {pool}");
    }

    /// The next reply, which has to come.
    pub fn reply(&self) -> Received {
        self.rabbit.get(&self.named("my-replies"))
    }

    /// The next reply, if there is one.
    pub fn try_reply(&self) -> Option<Received> {
        self.rabbit
            .try_get(&self.named("my-replies"), Duration::from_millis(100))
    }

    /// The next of all results, which has to come.
    pub fn result(&self) -> Received {
        self.rabbit.get(&self.named("my-results"))
    }

    /// The next dead letter, which has to be there.
    pub fn dead_letter(&self) -> Received {
        self.rabbit.get(&self.named("dead"))
    }

    /// The next replies, by job id and attempt.
    pub fn replies(&self, count: usize) -> BTreeMap<(String, u64), Value> {
        let replies = (0..count).map(|_| self.reply().json());
        replies.map(|reply| (key(&reply), reply)).collect()
    }

    /// How many messages are ready in a queue that is there.
    pub fn ready(&self, queue: &str) -> u64 {
        self.rabbit.size(&self.named(queue)).expect("the queue is there").0
    }

    /// Waits until so many messages are ready in a queue.
    pub fn waits_for(&self, queue: &str, messages: u64) {
        let what = format!("{messages} messages ready in {queue}");
        wait_until(PATIENCE, &what, || self.ready(queue) == messages);
    }

    /// Checks that a queue holds nothing any more, neither ready nor with a consumer, now that its workers have ended.
    #[track_caller]
    pub fn is_drained(&self, queue: &str) {
        let size = || self.rabbit.size(&self.named(queue)).expect("the queue is there");
        // What a consumer has not acked is ready again once the broker knows that it is gone.
        wait_until(PATIENCE, "the broker sees that the worker is gone", || size().1 == 0);
        assert_eq!(size().0, 0, "messages left in {queue}");
    }
}

/// What tells results apart.
pub fn key(result: &Value) -> (String, u64) {
    let id = result["job_id"].as_str().expect("a result has a job's id").to_owned();
    (id, result["attempt"].as_u64().expect("a result has an attempt"))
}

impl Received {
    fn read(answer: &Value) -> Self {
        let text = |name: &str| answer[name].as_str().expect("the script gives it").to_owned();
        Self {
            routing_key: text("routing_key"),
            properties: answer["properties"].clone(),
            headers: answer["headers"].clone(),
            body: BASE64.decode(text("body")).expect("the script encodes it"),
        }
    }

    /// The body, which has to be JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// A property, empty if it is not there.
    pub fn property(&self, name: &str) -> &str {
        self.properties[name].as_str().unwrap_or_default()
    }

    /// A header that is a text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].as_str().unwrap_or_default()
    }
}

/// A foreign client that waits for requests. Ends with the test, which holds its stdin.
pub struct Rabbit {
    child: Child,
    pipes: RefCell<(ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

impl Rabbit {
    pub fn connect(url: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/producers/client_pika.py");
        let url = format!("{url}?socket_timeout=60&stack_timeout=60"); // pika's are 10 s and 15 s
        let mut child = Command::new(python())
            .arg(script)
            .args(["--url", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`tests/run` installs Python and pika");
        let stdin = child.stdin.take().expect("it is a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let pipes = RefCell::new((stdin, stdout));
        Self { child, pipes }
    }

    /// Has a request answered.
    #[track_caller]
    pub fn call(&self, request: Value) -> Value {
        let (stdin, stdout) = &mut *self.pipes.borrow_mut();
        writeln!(stdin, "{request}").expect("the client reads");
        let answer = stdout.next().unwrap_or_else(|| panic!("no answer to {request:.200}"));
        serde_json::from_str(&answer.expect("the client writes text")).expect("the client writes JSON")
    }

    /// Publishes; whether a queue has it.
    #[track_caller]
    pub fn publish(&self, exchange: &str, key: &str, body: &[u8], properties: &Value) -> bool {
        let body = BASE64.encode(body);
        let request =
            json!({"do": "publish", "exchange": exchange, "key": key, "body": body, "properties": properties});
        self.call(request).as_bool().expect("it says whether")
    }

    /// The next message, which has to come.
    #[track_caller]
    pub fn get(&self, queue: &str) -> Received {
        let came = self.try_get(queue, PATIENCE);
        came.unwrap_or_else(|| panic!("nothing came to {queue} within {PATIENCE:?}"))
    }

    /// The next message, if it comes within this time.
    pub fn try_get(&self, queue: &str, within: Duration) -> Option<Received> {
        let answer = self.call(json!({"do": "get", "queue": queue, "seconds": within.as_secs_f64()}));
        (!answer.is_null()).then(|| Received::read(&answer))
    }

    /// Asks by the broker's direct reply-to, and gives the answer.
    pub fn ask(&self, exchange: &str, key: &str, body: &[u8], properties: &Value) -> Received {
        let mut request = json!({"do": "ask", "exchange": exchange, "key": key, "seconds": PATIENCE.as_secs()});
        request["body"] = BASE64.encode(body).into();
        request["properties"] = properties.clone();
        let answer = self.call(request);
        assert!(!answer.is_null(), "no answer within {PATIENCE:?}");
        Received::read(&answer)
    }

    /// Messages ready and consumers, of a queue that is there.
    pub fn size(&self, queue: &str) -> Option<(u64, u64)> {
        let size = self.call(json!({"do": "size", "queue": queue}));
        Some((size["messages"].as_u64()?, size["consumers"].as_u64()?))
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A worker that consumes.
pub struct Worker {
    pub running: Running,
    address: String,
}

impl Worker {
    /// Waits until so many pools consume.
    pub fn ready(running: Running, pools: usize) -> Self {
        let line = running.wait_for_line(|line| line.contains("metrics on http://"));
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.expect("the line has the address").to_owned();
        // As text, or as JSON.
        let consuming = |line: &&str| line.contains("INFO consuming") || line.contains(r#""message":"consuming""#);
        wait_until(PATIENCE, "the worker consumes", || {
            assert!(running.is_running(), "the worker has ended:\n{}", running.stderr());
            running.stderr().lines().filter(consuming).count() >= pools
        });
        Self { running, address }
    }

    /// A worker that may have been killed by now: nobody will ask its HTTP server.
    pub fn late(running: Running) -> Self {
        let address = String::new();
        Self { running, address }
    }

    /// Where its HTTP server is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks its HTTP server.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("the worker serves metrics");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit is allowed");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers with text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer has a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("an HTTP answer has a status"), body.to_owned())
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        text
    }

    /// The value of a series, given as the page has it: `name{label="value"}`.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no series {series} in\n{text}"));
        value.parse().expect("a value is a number")
    }

    /// Waits until a series has a value.
    #[track_caller]
    pub fn metric_becomes(&self, series: &str, wanted: f64) {
        let what = format!("{series} becomes {wanted}");
        wait_until(PATIENCE, &what, || (self.metric(series) - wanted).abs() < 0.5);
    }

    /// Stops it in good order, and checks that nothing was cut.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.running.signal(Signal::TERM);
        self.running.wait().expect_code(0)
    }
}

/// A job that tells through a file that it runs, and ends when another file is there.
pub struct Gate {
    started: PathBuf,
    open: PathBuf,
    id: String,
}

impl Gate {
    pub fn new(bench: &Bench, id: &str) -> Self {
        Self {
            started: bench.path(&format!("{id}.started")),
            open: bench.path(&format!("{id}.open")),
            id: id.to_owned(),
        }
    }

    /// What the job does.
    pub fn job(&self) -> Value {
        let (started, open) = (self.started.display(), self.open.display());
        let script = format!(
            "echo $$ > {started}.new; mv {started}.new {started}; until [ -e {open} ]; do sleep 0.05; done; echo through"
        );
        json!({"script": script, "timeout": "10m"})
    }

    /// Waits until the job runs, and gives its process.
    pub fn started(&self) -> u32 {
        wait_until(PATIENCE, "the job tells that it runs", || self.started.exists());
        let pid = fs::read_to_string(&self.started).expect("it is there");
        pid.trim().parse().expect("the job wrote a number")
    }

    /// Forgets that it ran.
    pub fn reset(&self) {
        fs::remove_file(&self.started).expect("the job ran");
    }

    /// Lets the job end.
    pub fn open(&self) {
        fs::write(&self.open, "").expect("the folder is there");
    }
}

/// A job whose worker was killed may live on.
impl Drop for Gate {
    fn drop(&mut self) {
        for process in alive_with_env("SYNTHEX_JOB_ID", &self.id) {
            process.signal(Signal::KILL);
        }
    }
}

/// The fields of `wanted` as `found` has them: fields that nobody named may be anything.
#[track_caller]
pub fn assert_has(found: &Value, wanted: &Value) {
    let wanted = wanted.as_object().expect("the wanted fields are an object");
    let same: Map<String, Value> = wanted.keys().map(|name| (name.clone(), found[name].clone())).collect();
    assert_eq!(&same, wanted, "in {found:#}");
}

/// Whether `found` has the fields of `wanted`.
pub fn has(found: &Value, wanted: &Value) -> bool {
    let wanted = wanted.as_object().expect("the wanted fields are an object");
    wanted.iter().all(|(name, value)| found[name] == *value)
}

/// Asks again until the answer is as wanted, and gives it: who answers too late is not heard.
#[track_caller]
pub fn ask_until<T: Debug>(ask: impl Fn() -> T, is_wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if is_wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no other answer than {answer:#?}");
    }
}

/// Runs a future of the support modules, which wait on threads of their own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime of this thread").block_on(future)
}

/// The Python into which `tests/run` installs pika.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    target.expect("it is in the target folder").join("test-venv/bin/python")
}
