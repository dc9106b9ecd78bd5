//! A namespace of a broker, a worker on it, and batches given to it.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use synthex::transport::{QueueDepth, Transport};
use tempfile::TempDir;

use crate::support::broker::{Broker, transport};
use crate::support::cli::{Cli, Running, patient};
use crate::support::process::wait_until;

/// How long anything may take that has to come, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Fleet {
    url: String,
    pub namespace: String,
    pub folder: TempDir,
}

impl Fleet {
    /// A namespace of its own on the node that all tests share.
    pub fn new() -> Self {
        Self::at(block_on(Broker::shared()).amqp_url())
    }

    pub fn at(url: String) -> Self {
        Self {
            url,
            namespace: format!("test-{}", uuid::Uuid::now_v7().simple()),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `synthex` in this folder, told of the broker by its environment.
    pub fn synthex(&self, args: &[&str]) -> Cli {
        Cli::new(args)
            .env("SYNTHEX_AMQP_URL", &self.url)
            .env("SYNTHEX_NAMESPACE", &self.namespace)
            .current_dir(self.folder.path())
    }

    pub fn batch(&self, args: &[&str]) -> Cli {
        self.synthex(&patient(&[&["batch"], args].concat()))
    }

    /// A worker of the default pool that consumes.
    pub fn worker(&self, slots: usize) -> Running {
        let file = self.path("pool.toml");
        let text = format!(
            "pool = \"default\"\nslots = {slots}\nprefetch = {}\nkill_grace = \"1s\"\n",
            slots * 4
        );
        fs::write(&file, text).unwrap();
        let worker = self.synthex(&["worker", "--metrics-addr", "none", "pool.toml"]).spawn();
        worker.wait_for_line(|line| line.contains("INFO consuming"));
        worker
    }

    /// Declares the pool's queue, which nobody serves.
    pub fn declare(&self) {
        let worker = self.worker(1);
        worker.signal(crate::support::process::Signal::TERM);
        worker.wait().expect_code(0);
    }

    pub fn queue(&self, name: &str) -> Option<QueueDepth> {
        let (url, name) = (self.url.clone(), format!("{}.{name}", self.namespace));
        block_on(async move {
            let broker = transport(&url, PATIENCE);
            let depth = broker.queue_depth(&name).await.unwrap();
            broker.close().await;
            depth
        })
    }

    pub fn waits_for(&self, queue: &str, messages: u32) {
        let what = format!("{messages} messages in {queue}");
        wait_until(PATIENCE, &what, || {
            self.queue(queue).is_some_and(|depth| depth.messages == messages)
        });
    }

    /// The batch of a results file.
    pub fn id(&self, results: &str) -> String {
        let text = self.read(&format!("{results}.batch"));
        let header: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        header["batch"].as_str().unwrap().to_owned()
    }

    /// How often each item's command was started, by what it writes into `runs`.
    pub fn runs(&self) -> BTreeMap<u64, u32> {
        let mut runs = BTreeMap::new();
        for line in self.read("runs").lines() {
            *runs.entry(line.parse().unwrap()).or_default() += 1;
        }
        runs
    }
}

/// The lines of a results file, all of which have to be whole, by item and submission.
pub fn results(text: &str) -> BTreeMap<(u64, u64), Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line: {text}");
    let mut results = BTreeMap::new();
    for line in text.lines() {
        let result: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let number = |name: &str| result["item"][name].as_u64().unwrap();
        assert_eq!(result["final"], true);
        let before = results.insert((number("seq"), number("submission")), result.clone());
        assert!(before.is_none(), "twice: {line}");
    }
    results
}

pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}
