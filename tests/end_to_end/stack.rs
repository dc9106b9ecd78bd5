//! The files of the whole stack, run: everything that Debian has a program for. The broker has the configuration,
//! plugins, users and rights that `compose.yaml` gives it, the worker its arguments, Prometheus its jobs.
//!
//! What differs is where things are: ports and paths of the containers are replaced by those of the test. Not
//! run here, for want of an engine: the images, and Grafana. What Prometheus sees of it is `watched.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::{Worker, ask_until, block_on};
use crate::compose::{read, root, words, yaml};
use crate::prometheus::get;
use crate::support::broker::{Broker, Setup};
use crate::support::cli::{Cli, Finished};

/// Where the broker's container has its definitions.
const DEFINITIONS: &str = "/etc/rabbitmq/definitions.d";

/// The broker of `compose.yaml`, and who may use it.
pub struct Stack {
    compose: Value,
    pub broker: Broker,
    folder: TempDir,
}

impl Stack {
    /// Makes secrets, starts the broker with them and declares what the service `topology` does.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder can be written");
        let secrets = folder.path().join("secrets");
        Cli::program(root("deploy/make-secrets"), [&secrets])
            .run()
            .expect_code(0);
        let compose = yaml("compose.yaml");
        let definitions = folder.path().join("definitions.d");
        lay_definitions(&compose["services"]["rabbitmq"], &secrets, &definitions);
        let config = read("deploy/rabbitmq/synthex.conf");
        assert!(config.contains(DEFINITIONS));
        let setup = Setup {
            plugins: Some(read("deploy/rabbitmq/enabled_plugins")),
            config: config.replace(DEFINITIONS, definitions.to_str().expect("a temporary path is text")),
            ..Setup::default()
        };
        let broker = block_on(Broker::start_with(setup));
        Self {
            compose,
            broker,
            folder,
        }
    }

    fn password(&self, role: &str) -> String {
        let file = self.folder.path().join(format!("secrets/{role}.password"));
        fs::read_to_string(file)
            .expect("make-secrets made it")
            .trim()
            .to_owned()
    }

    /// The address that a role has in a file of `deploy/secrets`, but for host and port, as a file.
    pub fn address(&self, file: &str) -> PathBuf {
        let url = fs::read_to_string(self.folder.path().join("secrets").join(file)).expect("make-secrets made it");
        let (login, rest) = url.split_once('@').expect("it has a password");
        let (host, vhost) = rest.split_once('/').expect("it has a virtual host");
        let wanted = if file.contains(".local.") {
            "127.0.0.1"
        } else {
            "rabbitmq"
        };
        assert_eq!(host, format!("{wanted}:5672"));
        let moved = self.folder.path().join(file);
        let url = format!("{login}@127.0.0.1:{}/{vhost}", self.broker.port());
        fs::write(&moved, url).expect("the folder is there");
        moved
    }

    /// A service's text with our paths in the place of its container's.
    fn moved(&self, word: &str) -> String {
        let secret = |name: &str| {
            self.address(name)
                .to_str()
                .expect("a temporary path is text")
                .to_owned()
        };
        word.replace("/run/secrets/worker_url", &secret("worker.url"))
            .replace("/run/secrets/operator_url", &secret("operator.url"))
            .replace("/etc/synthex/pools", "deploy/pools")
            .replace("$$", "$")
    }

    /// The command of a service of our image; one with an entrypoint of its own is a shell that looks for `synthex`.
    fn service(&self, name: &str, args: Option<&[&str]>) -> Cli {
        let service = &self.compose["services"][name];
        let args = args.map_or_else(|| words(&service["command"]), <[&str]>::to_vec);
        let args = args.iter().map(|word| self.moved(word));
        if service["entrypoint"].is_null() {
            return Cli::new(args);
        }
        let entrypoint: Vec<String> = words(&service["entrypoint"])
            .iter()
            .map(|word| self.moved(word))
            .collect();
        let own = PathBuf::from(env!("CARGO_BIN_EXE_synthex"));
        let folder = own.parent().expect("a program is in a folder").display();
        Cli::program(&entrypoint[0], entrypoint[1..].iter().cloned().chain(args))
            .env("PATH", format!("{folder}:/usr/bin:/bin"))
    }

    pub fn declare(&self) {
        self.service("topology", None).run().expect_code(0);
    }

    /// The worker, with its metrics on a port that is free.
    pub fn worker(&self) -> Worker {
        let running = self.service("worker", None).env("SYNTHEX_METRICS_ADDR", "127.0.0.1:0");
        Worker::ready(running.spawn(), 1)
    }

    /// A client with the address that a role has in this file.
    fn run_as(&self, address: &str, args: &[&str]) -> Finished {
        let url = fs::read_to_string(self.address(address)).expect("it was just written");
        Cli::new(args).env("SYNTHEX_AMQP_URL", url.trim()).run()
    }

    /// Submits a script and waits for its end.
    pub fn submit(&self, args: &[&str], script: &str) -> Finished {
        let all = [&["submit", "--wait"], args, &["--", "sh", "-c", script]].concat();
        self.run_as("producer.local.url", &all)
    }
}

/// Puts the files that the broker's container sees where the test's broker sees them.
fn lay_definitions(rabbitmq: &Value, secrets: &Path, definitions: &Path) {
    fs::create_dir_all(definitions).expect("the folder can be written");
    let lay = |source: PathBuf, target: &str| {
        let name = target
            .strip_prefix(DEFINITIONS)
            .map(|name| name.trim_start_matches('/'));
        let to = definitions.join(name.expect("it is read from there"));
        fs::copy(source, to).expect("both are there");
    };
    let secret = &rabbitmq["secrets"][0];
    lay(
        secrets.join("users.json"),
        secret["target"].as_str().expect("it has a place"),
    );
    let mount = words(&rabbitmq["volumes"])
        .into_iter()
        .find(|volume| volume.contains(DEFINITIONS));
    let mut parts = mount.expect("they are mounted").split(':');
    let source = parts.next().expect("it has a source");
    lay(root(source), parts.next().expect("it has a target"));
}

#[test]
fn private_broker_each_role_may_do_its_work_and_no_more() {
    let stack = Stack::start();
    each_role_may_do_its_work(&stack);
    no_role_may_do_more(&stack);
}

fn each_role_may_do_its_work(stack: &Stack) {
    let users = block_on(stack.broker.ctl(&["list_users", "--formatter", "json"]));
    let users: Value = serde_json::from_str(&users).expect("it is JSON");
    let mut users: Vec<_> = users
        .as_array()
        .expect("a list")
        .iter()
        .map(|user| (&user["user"], &user["tags"]))
        .collect();
    users.sort_by_key(|(name, _)| name.to_string());
    let (none, monitoring, management) = (json!([]), json!(["monitoring"]), json!(["management"]));
    assert_eq!(
        users,
        [
            (&json!("monitoring"), &monitoring),
            (&json!("operator"), &management),
            (&json!("producer"), &none),
            (&json!("worker"), &none),
        ],
        "these and no guest"
    );
    stack.declare();
    let worker = stack.worker();
    let port = worker.address().rsplit_once(':').expect("it has a port").1.to_owned();
    let probe = || Cli::program(root("deploy/ready"), [&port]).run();
    probe().expect_code(0);

    // A retry goes through a delay queue, a job with a bad end to the dead letters.
    let retried = stack.submit(&["--max-attempts", "2"], "[ $SYNTHEX_ATTEMPT = 2 ] && echo again");
    assert_eq!(retried.expect_code(0).stdout, "again\n");
    stack
        .submit(&["--id", "bad", "--max-attempts", "2"], "exit 3")
        .expect_code(3);

    let operate = |args: &[&str]| stack.service("synthex", Some(args)).run().expect_code(0).stdout;
    assert_eq!(
        operate(&["submit", "--wait", "--", "echo", "from a container"]),
        "from a container\n"
    );
    ask_until(|| operate(&["workers"]), |told| told.contains("default"));
    operate(&["pause", "default"]);
    operate(&["resume", "default"]);
    operate(&["cancel", "nobody"]);
    assert!(operate(&["dead", "list"]).contains("bad"));
    operate(&["dead", "retry", "bad"]);

    let produce = |args: &[&str]| stack.run_as("producer.local.url", args).expect_code(0).stdout;
    let batch = produce(&["batch", "--detach", "--range", "1-3", "--", "true"]);
    produce(&["batch", "wait", batch.trim()]);
    assert_eq!(produce(&["batch", "results", batch.trim()]).lines().count(), 3);
    produce(&["batch", "--range", "1-3", "--", "true"]);
    operate(&["batch", "cancel", batch.trim()]);

    let log = worker.running.stderr();
    assert!(
        !log.contains("refused") && !log.contains("ERROR"),
        "a right is missing:\n{log}"
    );
    worker.stop();
    let gone = probe();
    assert_eq!(gone.code, Some(1), "a worker that is gone is not ready: {gone:?}");
}

fn no_role_may_do_more(stack: &Stack) {
    let pool = "deploy/pools/default.toml";
    let serve: &[&str] = &["worker", "--metrics-addr", "none", pool];
    let submit: &[&str] = &["submit", "--", "true"];
    let refused = [
        // Who may not declare, take jobs, give them, look at dead letters, or give orders.
        ("worker.url", &["config", "apply", pool][..]),
        ("worker.url", submit),
        ("worker.url", &["dead", "list"]),
        ("worker.url", &["pause", "default"]),
        ("producer.local.url", &["config", "apply", pool]),
        ("producer.local.url", serve),
        ("producer.local.url", &["dead", "list"]),
        ("producer.local.url", &["pause", "default"]),
        ("producer.local.url", &["workers"]),
    ];
    for (address, args) in refused {
        let told = stack.run_as(address, args).expect_code(78).stderr;
        assert!(
            told.contains("refused") || told.contains("REFUSED"),
            "{address} {args:?}: {told}"
        );
    }
    let api = format!("127.0.0.1:{}", stack.broker.management_port());
    let asked = |role: &str, path: &str| get(&api, path, Some((role, &stack.password(role)))).0;
    assert_eq!(asked("monitoring", "/api/nodes"), 200);
    assert_eq!(asked("monitoring", "/api/queues/synthex"), 200);
    assert_eq!(asked("monitoring", "/api/definitions"), 401, "with the hashes of all");
    assert_eq!(asked("operator", "/api/queues/synthex"), 200);
    assert_eq!(asked("operator", "/api/definitions"), 401);
    for role in ["worker", "producer"] {
        assert_eq!(asked(role, "/api/overview"), 401, "{role}");
    }
    assert_eq!(get(&api, "/api/overview", Some(("guest", "guest"))).0, 401);
    let login = format!("amqp://monitoring:{}", stack.password("monitoring"));
    let url = format!("{login}@127.0.0.1:{}/synthex", stack.broker.port());
    let looks = Cli::new(submit).env("SYNTHEX_AMQP_URL", url).run().expect_code(78);
    assert!(
        looks.stderr.contains("REFUSED"),
        "who looks gives no jobs: {}",
        looks.stderr
    );
}
