//! The processes and files of a node, and how tests find the one that they share. All of it blocks.

use std::{
    collections::hash_map::RandomState,
    fs::{self, File},
    hash::{BuildHasher, Hasher},
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::super::process::{Process, Signal, wait_until};

/// The server's own scripts; those in `/usr/sbin` change to another user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// Erlang's node name. Each node has an `epmd` of its own, so all may have the same.
const NODE: &str = "synthex@localhost";
/// Times what a start takes on a busy machine, several times over: 3 s alone, 30 beside tests with thousands of processes.
const START_LIMIT: Duration = Duration::from_secs(180);
/// A server takes 1-6 s to stop when asked, on a quiet machine.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// A killed process is gone at once, and its keeper a fifth of a second later, where there is a processor for them.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// How long an expression may take, in a node that takes connections already.
const EVAL_LIMIT: Duration = Duration::from_secs(90);
/// What the node does beside being a broker: it evaluates the expressions that come with the password, one at a time. Its
/// own tool does the same, but starts an Erlang machine for each. There is no blank in it, because a shell splits it.
const EVALUATOR: &str = r#"spawn(fun()->{ok,L}=gen_tcp:listen(PORT,[binary,{ip,{127,0,0,1}},{active,false},{packet,4},{reuseaddr,true}]),E=fun(T)->{ok,W,_}=erl_scan:string(unicode:characters_to_list(T)),{ok,X}=erl_parse:parse_exprs(W),{value,V,_}=erl_eval:exprs(X,[]),{ok,V}end,A=fun(S)->{ok,<<"PASSWORD",T/binary>>}=gen_tcp:recv(S,0,10000),gen_tcp:send(S,unicode:characters_to_binary(io_lib:format("~0tp",[catch(E(T))])))end,F=fun(F)->{ok,S}=gen_tcp:accept(L),catch(A(S)),gen_tcp:close(S),F(F)end,F(F)end)."#;

/// Lines of a node's log shown when its test fails.
const LOG_TAIL: usize = 20;

/// Runs a command for as long as its owner lives; `$1` is the owner, `$2` a log, `$3` a folder to remove with
/// the owner. Says the command's process number on stdout. `$!` is the command itself, as `setpriv` becomes what it runs.
const KEEPER: &str = r#"
owner=$1 log=$2 folder=$3
shift 3
setpriv --pdeathsig KILL -- "$@" </dev/null >>"$log" 2>&1 &
kept=$!
echo "$kept"
while kill -0 "$owner" && kill -0 "$kept"; do sleep 0.2; done 2>/dev/null
kill -KILL "$kept" 2>/dev/null
wait "$kept"
kill -0 "$owner" 2>/dev/null || rm -rf "$folder"
"#;

/// What all test processes know of a node.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Facts {
    /// Everything it stores.
    folder: PathBuf,
    /// Process number of who it lives for.
    owner: u32,
    pub(super) ports: Ports,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) vhost: String,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    /// By TLS, if it has a certificate.
    pub(super) amqps: u16,
    epmd: u16,
    /// Where its tools talk to it.
    tools: u16,
    /// Where it evaluates expressions.
    eval: u16,
    /// Where the plugins rabbitmq_management and rabbitmq_prometheus answer, if they are enabled.
    pub(super) management: u16,
    pub(super) metrics: u16,
}

/// What a node has besides the bare server.
#[derive(Clone, Default)]
pub struct Setup {
    /// The text of its file `enabled_plugins`.
    pub plugins: Option<String>,
    /// Lines of its `rabbitmq.conf`. What a private node needs comes after them, and wins.
    pub config: String,
    /// The folder of the certificates with which it listens for TLS as well.
    pub certificates: Option<PathBuf>,
}

/// A node: with its processes if this process started it, else without.
pub(super) struct Node {
    pub(super) facts: Facts,
    hold: Hold,
    server: Mutex<Option<Kept>>,
    epmd: Mutex<Option<Kept>>,
}

/// What a test has of a node.
pub(super) enum Hold {
    /// It is one of those that use it.
    Shared,
    /// It is its own.
    Own,
    /// It is its own until it gives it back, by ending: then the lock on this file goes.
    Lent(#[expect(dead_code, reason = "it is there to be dropped")] File),
}

/// A process, and the keeper that started it, if that is a child of ours.
struct Kept {
    process: Process,
    keeper: Option<Child>,
}

/// The file through which test processes find the shared node, or the one that is lent.
#[derive(Serialize, Deserialize)]
struct Shared {
    facts: Facts,
    server: Process,
    epmd: Process,
}

impl Facts {
    /// What the node's `rabbitmq.conf` needs, with these plugins: a server knows no key of a plugin that it does not run.
    fn config(&self, plugins: &str) -> String {
        let Self {
            user,
            password,
            vhost,
            ports,
            ..
        } = self;
        // A machine with a nearly full disk is no reason for a disk alarm here.
        let mut config = format!(
            "default_user = {user}\ndefault_pass = {password}\ndefault_vhost = {vhost}\n\
             disk_free_limit.absolute = 1MB\nlog.file = false\nlog.console = true\n"
        );
        for (plugin, port) in [("management", ports.management), ("prometheus", ports.metrics)] {
            if plugins.contains(plugin) {
                config += &format!("{plugin}.tcp.ip = 127.0.0.1\n{plugin}.tcp.port = {port}\n");
            }
        }
        config
    }
}

impl Node {
    /// Starts a node. Tries other ports if somebody took these between choice and use.
    pub(super) fn start(folder: &Path, owner: u32, hold: Hold, setup: &Setup) -> Self {
        let mut failures = String::new();
        let mut node = Self::prepare(folder.join(random_name()), owner, hold, setup);
        for _ in 0..3 {
            if let Some(certificates) = &setup.certificates {
                node.offer_tls(certificates);
            }
            let Err(why) = node.launch() else {
                return node;
            };
            node.end();
            failures.push_str(&why);
            if !why.contains("eaddrinuse") {
                break;
            }
            let hold = std::mem::replace(&mut node.hold, Hold::Shared); // which leaves the old one alone
            node = Self::prepare(folder.join(random_name()), owner, hold, setup);
        }
        panic!("{failures}");
    }

    /// Writes the files that a node reads at its start.
    fn prepare(folder: PathBuf, owner: u32, hold: Hold, setup: &Setup) -> Self {
        assert!(
            Path::new(SCRIPTS).is_dir(),
            "rabbitmq-server is not installed: `tests/run` installs it"
        );
        let name = random_name();
        let (user, password, vhost) = (format!("user-{name}"), random_name(), format!("synthex-{name}"));
        let facts = Facts {
            folder,
            owner,
            ports: free_ports(),
            user,
            password,
            vhost,
        };
        let write =
            |file: &str, text: String| fs::write(facts.folder.join(file), text).expect("the folder was just made");
        fs::create_dir_all(&facts.folder).expect("the target folder can be written");
        write("plugins", setup.plugins.clone().unwrap_or_else(|| "[].".into()));
        write(".erlang.cookie", random_name());
        let cookie = facts.folder.join(".erlang.cookie");
        fs::set_permissions(cookie, fs::Permissions::from_mode(0o400)).expect("the file is ours");
        let plugins = setup.plugins.as_deref().unwrap_or_default();
        write("rabbitmq.conf", setup.config.clone() + "\n" + &facts.config(plugins));
        Self {
            facts,
            hold,
            server: Mutex::default(),
            epmd: Mutex::default(),
        }
    }

    /// Has it listen for TLS with the certificates of a folder, and take a client's certificate for its user's name.
    fn offer_tls(&self, certificates: &Path) {
        let (folder, port, certificates) = (&self.facts.folder, self.facts.ports.amqps, certificates.display());
        let settings = format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {certificates}/ca.pem\n\
             ssl_options.certfile = {certificates}/broker.pem\n\
             ssl_options.keyfile = {certificates}/broker.key\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = false\n\
             ssl_cert_login_from = common_name\n\
             auth_mechanisms.1 = PLAIN\n\
             auth_mechanisms.2 = EXTERNAL\n"
        );
        let file = folder.join("rabbitmq.conf");
        let usual = fs::read_to_string(&file).expect("it was just written");
        fs::write(file, usual + &settings).expect("the folder was just made");
        fs::write(folder.join("plugins"), "[rabbitmq_auth_mechanism_ssl].").expect("the folder was just made");
    }

    /// Starts the node's processes that do not run, and waits until it takes connections.
    pub(super) fn launch(&self) -> Result<(), String> {
        let epmd_port = self.facts.ports.epmd.to_string();
        let mut epmd = lock(&self.epmd);
        if epmd.is_none() {
            *epmd = Some(self.keep(&["epmd", "-address", "127.0.0.1", "-port", &epmd_port]));
            wait_until(START_LIMIT, "epmd listens", || is_open(self.facts.ports.epmd));
        }
        let server = self.keep(&[&format!("{SCRIPTS}/rabbitmq-server"), "-noinput"]);
        let process = server.process.clone();
        *lock(&self.server) = Some(server);
        let (deadline, mut ready) = (Instant::now() + START_LIMIT, false);
        wait_until(START_LIMIT * 2, "a RabbitMQ node starts, or fails to", || {
            ready = speaks_amqp(self.facts.ports.amqp);
            ready || !process.is_alive() || Instant::now() > deadline
        });
        // Whoever answers on the port is the node only if the node lives.
        if ready && process.is_alive() {
            return Ok(());
        }
        let how = match process.is_alive() {
            true => format!("does not take connections after {} s", START_LIMIT.as_secs()),
            false => "ended while it started".to_owned(),
        };
        Err(format!("a RabbitMQ node {how}; its log:\n{}\n", self.log()))
    }

    /// Runs a command under a keeper.
    fn keep(&self, command: &[&str]) -> Kept {
        let folder = &self.facts.folder;
        let mut sh = self.with_environment("/bin/sh");
        sh.args(["-c", KEEPER, "keeper", &self.facts.owner.to_string()]);
        sh.args([folder.join("log"), folder.clone()]).args(command);
        // A group of its own: it outlives the test that started the shared node, and a Ctrl-C at the terminal.
        sh.process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut keeper = sh.spawn().expect("every Debian has /bin/sh");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("stdout is a pipe"))
            .read_line(&mut line)
            .expect("the keeper answers");
        let pid = line.trim().parse().expect("the keeper says a number");
        let process = Process::read(pid);
        let process = process.unwrap_or_else(|| panic!("{command:?} ended at once; its log:\n{}", self.log()));
        Kept {
            process,
            keeper: Some(keeper),
        }
    }

    /// A command that sees this node, and nothing of the system's.
    fn with_environment(&self, program: &str) -> Command {
        let (folder, ports) = (&self.facts.folder, self.facts.ports);
        let mut command = Command::new(program);
        command.current_dir(folder).env_clear().envs([
            ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"),
            ("LANG", "C.UTF-8"), // the tools complain about any other encoding
            ("ERL_EPMD_ADDRESS", "127.0.0.1"),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1"),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null"),
            ("RABBITMQ_NODENAME", NODE),
            // With it the start script becomes the server, so that the process number is the server's.
            ("RABBITMQ_ALLOW_INPUT", "1"),
            ("RABBITMQ_CTL_ERL_ARGS", "-start_epmd false"),
            // Its tools listen too. The range they have by default is too small for many at once.
            ("RABBITMQ_CTL_DIST_PORT_MIN", "33000"),
            ("RABBITMQ_CTL_DIST_PORT_MAX", "34999"),
        ]);
        command.envs([
            ("ERL_EPMD_PORT", ports.epmd.to_string()),
            ("RABBITMQ_NODE_PORT", ports.amqp.to_string()),
            ("RABBITMQ_DIST_PORT", ports.tools.to_string()),
        ]);
        let evaluator = EVALUATOR
            .replace("PORT", &ports.eval.to_string())
            .replace("PASSWORD", &self.facts.password);
        // Erlang starts a daemon if it finds no epmd. Two schedulers are plenty on any machine. A certificate that a test
        // has changed is shown from the next connection on. What expires in a delay queue before a starting node has the
        // queue behind it is tried again after this time, by default 3 minutes.
        let arguments = format!(
            "-start_epmd false +S 2:2 -ssl bypass_pem_cache true \
             -rabbit dead_letter_worker_publisher_confirm_timeout 5000 -eval {evaluator}"
        );
        command.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", arguments);
        command.env("HOME", folder).envs([
            ("RABBITMQ_MNESIA_BASE", folder.join("data")),
            ("RABBITMQ_LOG_BASE", folder.join("logs")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", folder.join("generated")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins")),
            ("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf")),
        ]);
        command
    }

    /// Evaluates an Erlang expression in the server, and returns its value as text.
    pub(super) fn eval(&self, expression: &str) -> String {
        let begun = Instant::now();
        // It listens a moment after the broker does.
        let answer = loop {
            match self.ask(expression) {
                Ok(answer) => break answer,
                Err(error) => assert!(
                    begun.elapsed() < EVAL_LIMIT,
                    "{expression}: {error}; the node's log:\n{}",
                    self.log()
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let value = answer.strip_prefix("{ok,").and_then(|rest| rest.strip_suffix('}'));
        value.unwrap_or_else(|| panic!("{expression}: {answer}")).to_owned()
    }

    fn ask(&self, expression: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.facts.ports.eval)))?;
        stream.set_read_timeout(Some(EVAL_LIMIT))?;
        let request = self.facts.password.clone() + expression;
        let length = u32::try_from(request.len()).expect("expressions are short");
        stream.write_all(&[&length.to_be_bytes(), request.as_bytes()].concat())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = answer
            .get(size_of::<u32>()..)
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    pub(super) fn ctl(&self, args: &[String]) -> String {
        let mut command = self.with_environment(&format!("{SCRIPTS}/rabbitmqctl"));
        let output = command
            .arg("--quiet")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("it is installed with the server");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "rabbitmqctl {args:?}: {}\n{stdout}{stderr}",
            output.status
        );
        stdout.trim_end().to_owned()
    }

    /// Asks the server to stop, and returns when it has.
    pub(super) fn stop(&self) {
        if let Some(kept) = lock(&self.server).take() {
            kept.process.signal(Signal::CONT); // a frozen one hears nothing
            kept.process.signal(Signal::TERM);
            wait_until(STOP_LIMIT, "a RabbitMQ node stops", || !kept.process.is_alive());
            kept.kill();
        }
    }

    /// Kills the server, and returns when it is gone.
    pub(super) fn kill(&self) {
        if let Some(kept) = lock(&self.server).take() {
            kept.kill();
        }
    }

    /// Kills all of it, and removes what it stored.
    fn end(&self) {
        self.kill();
        if let Some(kept) = lock(&self.epmd).take() {
            kept.kill();
        }
        let _ = fs::remove_dir_all(&self.facts.folder);
    }

    pub(super) fn signal(&self, signal: Signal) {
        let server = lock(&self.server);
        server
            .as_ref()
            .expect("the node was stopped or killed by this test")
            .process
            .signal(signal);
    }

    pub(super) fn assert_private(&self) {
        assert!(
            !matches!(self.hold, Hold::Shared),
            "other tests use this node too: a test that breaks one begins with Broker::start() or Broker::lent()"
        );
    }

    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.facts.folder.join("log")).unwrap_or_default()).into_owned()
    }

    pub(super) fn url(&self, user: &str, password: &str, vhost: &str) -> String {
        let [user, password, vhost] = [user, password, vhost].map(percent_encoded);
        format!("amqp://{user}:{password}@127.0.0.1:{}/{vhost}", self.facts.ports.amqp)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if matches!(self.hold, Hold::Shared) {
            return;
        }
        if matches!(self.hold, Hold::Lent(_)) && !std::thread::panicking() && self.give_back() {
            return;
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "the last of the broker's log:\n{}",
                lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
            );
        }
        self.end();
    }
}

impl Kept {
    fn kill(self) {
        self.process.signal(Signal::KILL);
        // The keeper sees it end, reaps it, and ends.
        if let Some(mut keeper) = self.keeper {
            let _ = keeper.wait();
        }
        wait_until(KILL_LIMIT, "a killed process is gone", || !self.process.is_alive());
    }
}

/// A test that fails while it holds a lock must still end its node.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds the node of this run, or starts it.
pub(super) fn shared() -> Node {
    let Ok(run) = std::env::var("NEXTEST_RUN_ID") else {
        return Node::start(&folder_of_nodes(), std::process::id(), Hold::Shared, &Setup::default());
    };
    let folder = folder_of_nodes();
    let _guard = locked(&folder.join("lock"));
    let file = folder.join(format!("{run}.json"));
    if let Some(Shared { facts, .. }) = read_live(&file) {
        return Node {
            facts,
            hold: Hold::Shared,
            server: Mutex::default(),
            epmd: Mutex::default(),
        };
    }
    forget_past_runs(&folder);
    let node = Node::start(
        &folder,
        std::os::unix::process::parent_id(),
        Hold::Shared,
        &Setup::default(),
    );
    node.write_down(&file);
    node
}

/// Starts a node that is this test's own.
pub(super) fn own(setup: &Setup) -> Node {
    Node::start(&folder_of_nodes(), std::process::id(), Hold::Own, setup)
}

/// Takes the node that tests of this run lend each other, or starts it. Waits until the test before has ended.
pub(super) fn lent() -> Node {
    let Ok(run) = std::env::var("NEXTEST_RUN_ID") else {
        return own(&Setup::default());
    };
    let folder = folder_of_nodes();
    let hold = Hold::Lent(locked(&folder.join("lent.lock")));
    let kept = |process| {
        let keeper = None;
        Mutex::new(Some(Kept { process, keeper }))
    };
    match read_live(&folder.join(format!("{run}.lent.json"))) {
        Some(Shared { facts, server, epmd }) => Node {
            facts,
            hold,
            server: kept(server),
            epmd: kept(epmd),
        },
        None => Node::start(&folder, std::os::unix::process::parent_id(), hold, &Setup::default()),
    }
}

impl Node {
    /// Leaves the node to the next test that borrows one, if it is as good as new; whether it is.
    fn give_back(&self) -> bool {
        let is_whole = || {
            speaks_amqp(self.facts.ports.amqp)
                && self
                    .ask("rabbit_alarm:get_alarms().")
                    .is_ok_and(|answer| answer == "{ok,[]}")
        };
        let Ok(run) = std::env::var("NEXTEST_RUN_ID") else {
            return false;
        };
        let file = folder_of_nodes().join(format!("{run}.lent.json"));
        let is_whole = lock(&self.server).is_some() && is_whole();
        if is_whole {
            self.write_down(&file);
        } else {
            let _ = fs::remove_file(file);
        }
        is_whole
    }

    /// Writes the file through which others find it.
    fn write_down(&self, file: &Path) {
        let process = |kept: &Mutex<Option<Kept>>| {
            let kept = lock(kept);
            kept.as_ref().expect("it runs").process.clone()
        };
        let shared = Shared {
            facts: self.facts.clone(),
            server: process(&self.server),
            epmd: process(&self.epmd),
        };
        fs::write(file, serde_json::to_vec(&shared).expect("it is plain data"))
            .expect("the target folder can be written");
    }
}

fn locked(file: &Path) -> File {
    let file = File::create(file).expect("the target folder can be written");
    file.lock().expect("files there can be locked");
    file
}

/// The node of which a file tells, if it lives.
fn read_live(file: &Path) -> Option<Shared> {
    let shared: Shared = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    shared.server.is_alive().then_some(shared)
}

/// Removes the files through which tests of past runs found their nodes.
fn forget_past_runs(folder: &Path) {
    let entries = fs::read_dir(folder).expect("it was just made");
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let shared = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Shared>(&text).ok());
        if shared.is_some_and(|shared| !shared.server.is_alive()) {
            let _ = fs::remove_file(path);
        }
    }
}

pub(super) fn folder_of_nodes() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("brokers");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

/// Chooses free ports below those that the kernel gives to clients (from 32768 on), so that nobody takes them while
/// the node is down between a kill and a restart.
fn free_ports() -> Ports {
    let first = 10_000 + u16::try_from(random() % 20_000).expect("it is below 20,000");
    let listen = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut free = (first..32_000).chain(10_000..first).filter(listen);
    let mut next = || free.next().expect("seven of 22,000 ports are free");
    Ports {
        amqp: next(),
        amqps: next(),
        epmd: next(),
        tools: next(),
        eval: next(),
        management: next(),
        metrics: next(),
    }
}

fn is_open(port: u16) -> bool {
    TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}

/// Sends the protocol header of AMQP 0-9-1; a server answers with a method frame, which begins with a 1.
fn speaks_amqp(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer == [1])
    };
    ask().unwrap_or(false)
}

/// std seeds each of these from the system's randomness.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

pub(super) fn random_name() -> String {
    format!("{:016x}", random())
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    text.bytes().map(encode).collect()
}
