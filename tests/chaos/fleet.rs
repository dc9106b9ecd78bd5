//! Workers as processes, each with its own way to the broker.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::jobs::{LEDGER, WORKER};
use crate::support::cli::{Cli, Finished, Running};
use crate::support::process::{Process, Signal, alive_with_env, descendants, eventually};
use crate::support::proxy::{Loss, Proxy};
use crate::world::{MARK, PATIENCE, POOL, tell};

/// Commands at a time, and jobs in hand, of each worker.
pub const SLOTS: usize = 4;
const PREFETCH: usize = 8;

/// Seconds. A connection is given up after two of these in silence.
const HEARTBEAT: u64 = 3;

/// What makes either side certain that a silent connection is dead.
pub const SILENCE: Duration = Duration::from_secs(3 * HEARTBEAT);

/// Starts a program with a small disk of its own at a path, in a file system namespace that goes with it.
const WITH_DISK: &str = r#"mount -t tmpfs -o size=256k tmpfs "$1" && shift && exec "$@""#;

/// Workers of one pool.
pub struct Fleet {
    url: String,
    broker_port: u16,
    folder: PathBuf,
    mark: String,
    started: usize,
    /// Whether workers may have disks of their own.
    mounts: bool,
    pub workers: Vec<Worker>,
    /// What the account needs of those that have ended.
    past: Vec<Past>,
}

/// A worker that runs.
pub struct Worker {
    /// What its commands know it by; no other worker has it.
    pub name: String,
    pub running: Running,
    pub proxy: Proxy,
    /// Where it says how it is.
    metrics: String,
    /// The folder of a disk of its own, as it sees it.
    disk: Option<PathBuf>,
}

struct Past {
    name: String,
    losses: Vec<Loss>,
    printed: String,
}

impl Fleet {
    /// A fleet without workers, which will reach the broker of `url`, which listens on `broker_port`.
    pub fn new(url: String, broker_port: u16, folder: &Path, mark: &str) -> Self {
        Self {
            url,
            broker_port,
            folder: folder.to_owned(),
            mark: mark.to_owned(),
            started: 0,
            mounts: Cli::program("unshare", ["-m", "true"]).run().code == Some(0), // takes root
            workers: Vec::new(),
            past: Vec::new(),
        }
    }

    /// Where each start of a command is a line.
    pub fn ledger(&self) -> PathBuf {
        self.folder.join("ledger")
    }

    /// Starts one more worker, and waits until it takes jobs.
    pub async fn start_one(&mut self) -> Worker {
        self.started += 1;
        let name = format!("worker-{}", self.started);
        let proxy = Proxy::start(self.broker_port).await;
        let (from, to) = (format!(":{}/", self.broker_port), format!(":{}/", proxy.port()));
        let url = format!("{}?heartbeat={HEARTBEAT}", self.url.replace(&from, &to));
        let file = self.folder.join(format!("{name}.toml"));
        std::fs::write(&file, self.pool(&name)).unwrap();
        let disk = (self.mounts && self.started.is_multiple_of(2)).then(|| self.folder.join(format!("{name}.disk")));
        // The others share a folder, and so take over what one of them leaves.
        let outbox = disk.as_ref().unwrap_or(&self.folder).join("outbox");
        let running = launch(&file, disk.as_deref())
            .env("SYNTHEX_AMQP_URL", url)
            .env("SYNTHEX_OUTBOX", outbox)
            .limit(PATIENCE)
            .spawn();
        let line = running.wait_for_line(|line| line.contains("metrics on http://"));
        let (_, rest) = line.split_once("http://").unwrap();
        let worker = Worker {
            name,
            running,
            proxy,
            metrics: rest.split_once('/').unwrap().0.to_owned(),
            disk,
        };
        worker.ready().await;
        worker
    }

    /// Here no job is one that kills its workers, so none is to be given up for that; nor are programs missing by mistake.
    fn pool(&self, name: &str) -> String {
        let ledger = self.ledger();
        format!(
            "pool = \"{POOL}\"\nslots = {SLOTS}\nprefetch = {PREFETCH}\ndelivery_limit = 1000\nkill_grace = \"1s\"\n\
             breaker.failures = 1000000\n\
             [env]\n{MARK} = \"{mark}\"\n{WORKER} = \"{name}\"\n{LEDGER} = \"{ledger}\"\n",
            mark = self.mark,
            ledger = ledger.display(),
        )
    }

    /// Ends a worker, and puts another one into its place.
    pub async fn replace(&mut self, place: usize, signal: Signal) -> Finished {
        let finished = self.end_one(place, signal).await;
        self.put(place).await;
        finished
    }

    /// Ends a worker, whose place has to be filled again.
    pub async fn end_one(&mut self, place: usize, signal: Signal) -> Finished {
        let worker = self.workers.remove(place);
        self.end(worker, signal).await
    }

    /// Fills a place.
    pub async fn put(&mut self, place: usize) {
        let worker = self.start_one().await;
        self.workers.insert(place, worker);
    }

    /// Ends all, in good order.
    pub async fn stop(&mut self) {
        for worker in std::mem::take(&mut self.workers) {
            let finished = self.end(worker, Signal::TERM).await.expect_code(0);
            assert!(finished.stderr.contains("tasks left: none"), "{}", finished.stderr);
        }
    }

    /// Ends a worker, and waits until nothing is left of it, of its helpers, and of its commands.
    async fn end(&mut self, worker: Worker, signal: Signal) -> Finished {
        let Worker {
            name, running, proxy, ..
        } = worker;
        let below = descendants(running.pid());
        let from = SystemTime::now();
        running.signal(signal);
        tell(&format!("{name} gets {signal:?}"));
        let finished = tokio::task::spawn_blocking(|| running.wait()).await.expect("it ends");
        eventually(PATIENCE, &format!("nothing is left of {name}"), || {
            !below.iter().any(Process::is_alive) && alive_with_env(WORKER, &name).is_empty()
        })
        .await;
        tell(&format!("nothing is left of {name}"));
        let mut losses = proxy.losses();
        if signal == Signal::KILL {
            // The proxy may not know yet: it waits for the broker's side as well.
            let to = SystemTime::now();
            losses.push(Loss { from, to });
        }
        self.past.push(Past {
            name,
            losses,
            printed: finished.stderr.clone(),
        });
        finished
    }

    /// Waits until all take jobs.
    pub async fn ready(&self) {
        for worker in &self.workers {
            worker.ready().await;
        }
    }

    /// The connections that each worker ever lost.
    pub fn losses(&self) -> BTreeMap<String, Vec<Loss>> {
        let now = self
            .workers
            .iter()
            .map(|worker| (worker.name.clone(), worker.proxy.losses()));
        let past = self.past.iter().map(|past| (past.name.clone(), past.losses.clone()));
        past.chain(now).collect()
    }

    /// What all have printed, by name.
    pub fn printed(&self) -> Vec<(String, String)> {
        let now = self
            .workers
            .iter()
            .map(|worker| (worker.name.clone(), worker.running.stderr()));
        let past = self.past.iter().map(|past| (past.name.clone(), past.printed.clone()));
        past.chain(now).collect()
    }
}

/// A worker of this pool file, with a disk of its own at this path if one is given.
fn launch(pool: &Path, disk: Option<&Path>) -> Cli {
    let args = ["worker", pool.to_str().unwrap(), "--metrics-addr", "127.0.0.1:0"];
    let Some(disk) = disk else { return Cli::new(args) };
    std::fs::create_dir(disk).unwrap();
    let start = [
        "-m",
        "sh",
        "-c",
        WITH_DISK,
        "sh",
        disk.to_str().unwrap(),
        env!("CARGO_BIN_EXE_synthex"),
    ];
    Cli::program("unshare", [&start[..], &args].concat())
}

impl Worker {
    /// Fills its disk, if it has one of its own.
    pub fn fill_disk(&self) {
        let Some(path) = self.filler() else { return };
        let mut file = File::create(path).unwrap();
        let filled = std::iter::repeat_with(|| file.write_all(&[0; 4096])).find_map(Result::err);
        assert_eq!(filled.map(|error| error.kind()), Some(ErrorKind::StorageFull));
    }

    pub fn free_disk(&self) {
        self.filler()
            .into_iter()
            .for_each(|path| std::fs::remove_file(path).unwrap());
    }

    /// What fills its disk, through its own view of the file system.
    fn filler(&self) -> Option<PathBuf> {
        let disk = self.disk.as_ref()?.strip_prefix("/").unwrap();
        let root = PathBuf::from(format!("/proc/{}/root", self.running.pid()));
        Some(root.join(disk).join("full"))
    }

    /// Waits until it takes jobs.
    pub async fn ready(&self) {
        eventually(PATIENCE, &format!("{} takes jobs", self.name), || self.is_ready()).await;
    }

    pub fn is_ready(&self) -> bool {
        assert!(
            self.running.is_running(),
            "{} has ended: {}",
            self.name,
            self.running.stderr()
        );
        let ask = || {
            let mut stream = TcpStream::connect(&self.metrics)?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            Ok::<_, std::io::Error>(answer == *b"HTTP/1.1 200")
        };
        ask().unwrap_or(false)
    }
}

/// A test that fails half-way leaves what there is.
impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ledger = std::fs::read_to_string(self.ledger()).unwrap_or_default();
            keep(&self.printed(), &ledger);
        }
    }
}

/// Keeps what workers said and commands wrote, for who looks into a failure.
pub fn keep(printed: &[(String, String)], ledger: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    let _ = std::fs::remove_dir_all(&folder); // of an earlier failure
    let _ = std::fs::create_dir_all(&folder);
    for (name, printed) in printed {
        let _ = std::fs::write(folder.join(format!("{name}.log")), printed);
    }
    let _ = std::fs::write(folder.join("ledger"), ledger);
    println!(
        "what the workers said, and what was started, is in {}",
        folder.display()
    );
}
