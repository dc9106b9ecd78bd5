//! `synthex worker` on a RabbitMQ node of its own.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use synthex::message::{Envelope, Properties};
use synthex::transport::amqp::{Addresses, Amqp, AmqpConfig};
use synthex::transport::topology::{Declare, Names, Topology};
use synthex::transport::{Publication, PublishError, Routing, Transport};

use crate::processes::Cpu;
use crate::rate::{Sample, Subject};
use crate::statistics::{number, percentile};
use crate::support::broker::Broker;
use crate::yardsticks::Program;

/// Commands that run at once.
const SLOTS: [usize; 2] = [4, 16];

/// Jobs in hand at once, so that no slot waits for a broker to answer.
const PREFETCH: usize = 256;

/// The pool that is compiled in.
const POOL: &str = "default";

/// Publishes under way at once.
const PUBLISHERS: usize = 256;

/// How often a worker is asked how far it is. Each time takes it, and whoever looks for its helpers, a few milliseconds.
const LOOK: Duration = Duration::from_millis(100);

/// Pools of the worker whose metrics are read.
const POOLS: usize = 50;

/// How often they are read.
const SCRAPES: usize = 200;

/// How long it may take for all.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node, until it is dropped.
pub struct Node(Rc<Broker>);

impl Node {
    pub fn start() -> Self {
        Self(Rc::new(block_on(Broker::start())))
    }

    pub fn subjects(&self, program: &Program, binaries: &[(&'static str, PathBuf)]) -> Vec<Subject> {
        let mut subjects = Vec::new();
        for (name, binary) in binaries {
            subjects.extend(SLOTS.map(|slots| {
                let (broker, program, binary) = (self.0.clone(), program.clone(), binary.clone());
                Subject {
                    name: format!("{name} worker, RabbitMQ, {slots} slots"),
                    is_yardstick: false,
                    run: Box::new(move || {
                        let url = broker.amqp_url();
                        let body = json!({"command": [program.path]}).to_string();
                        block_on(publish(&url, &[POOL.to_owned()], &body, program.jobs));
                        let slots = ["--slots".to_owned(), slots.to_string()];
                        let room = ["--prefetch".to_owned(), PREFETCH.to_string()];
                        Worker::start(&binary, &url, slots.into_iter().chain(room)).measure(program.jobs)
                    }),
                }
            }));
        }
        subjects
    }

    /// What it takes to read the metrics of a worker of many pools, each of which has finished a job.
    pub fn scrapes(&self, binaries: &[(&'static str, PathBuf)]) {
        let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
        let pools: Vec<String> = (0..POOLS).map(|number| format!("pool-{number}")).collect();
        let files = pools.iter().map(|pool| {
            let path = folder.path().join(format!("{pool}.toml"));
            std::fs::write(&path, format!("pool = \"{pool}\"\nslots = 1\n")).expect("the folder is ours");
            path.into_os_string()
                .into_string()
                .expect("the folder has a plain name")
        });
        let files: Vec<String> = files.collect();
        println!("\nms a scrape of a worker of {POOLS} pools, the way to it and back included");
        println!("{:<46} {:>7} {:>9} {:>9} {:>9}", "", "bytes", "p50", "p99", "most");
        for (name, binary) in binaries {
            let url = self.0.amqp_url();
            let worker = Worker::start(binary, &url, files.clone());
            block_on(publish(&url, &pools, &json!({"command": ["true"]}).to_string(), POOLS));
            let start = Instant::now();
            while worker.metrics().matches("status=\"succeeded\"} 1\n").count() < POOLS {
                assert!(start.elapsed() < PATIENCE, "not all pools finished a job");
                sleep(LOOK);
            }
            let mut bytes = 0;
            let scrape = |_| {
                let start = Instant::now();
                bytes = worker.metrics().len();
                start.elapsed().as_secs_f64() * 1e3
            };
            let times: Vec<f64> = (0..SCRAPES).map(scrape).collect();
            println!(
                "{name:<46} {bytes:>7} {:>9.2} {:>9.2} {:>9.2}",
                percentile(&times, 0.5),
                percentile(&times, 0.99),
                percentile(&times, 1.0),
            );
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime of this thread").block_on(future)
}

/// Puts so many jobs into the queues of pools, by turns.
async fn publish(url: &str, pools: &[String], body: &str, count: usize) {
    let names = Names::new("synthex");
    let addresses = Addresses::parse(url).expect("the node's own address");
    let broker = Amqp::new(AmqpConfig::new(addresses));
    let declared = broker
        .declare(
            &Topology::new(&names, pools.iter().map(String::as_str)),
            Declare::Active,
        )
        .await;
    declared.expect("the node is well");
    let body = Bytes::from(body.to_owned());
    let job = |number: usize| Publication {
        exchange: names.jobs(),
        routing_key: pools[number % pools.len()].clone(),
        routing: Routing::Mandatory,
        envelope: Envelope {
            body: body.clone().into(),
            properties: Properties {
                content_type: Some("application/json".into()),
                message_id: Some(format!("bench-{number}")),
                ..Properties::default()
            },
        }
        .into(),
    };
    let start = Instant::now();
    let publish = async |number| {
        // A queue that was just declared may have no leader yet.
        while let Err(error) = broker.publish(&job(number)).await {
            let is_passing = matches!(error, PublishError::Refused { .. }) && start.elapsed() < PATIENCE;
            assert!(is_passing, "{error}");
            tokio::time::sleep(LOOK).await;
        }
    };
    futures_util::stream::iter(0..count)
        .map(publish)
        .buffer_unordered(PUBLISHERS)
        .collect::<()>()
        .await;
    broker.close().await;
}

/// A `synthex worker`.
struct Worker {
    child: Child,
    address: String,
}

/// How far a worker was at a moment.
struct Look {
    at: Instant,
    finished: usize,
    cpu: Cpu,
}

impl Worker {
    fn start(binary: &Path, url: &str, args: impl IntoIterator<Item = String>) -> Self {
        let mut command = Command::new(binary);
        command
            .args(["worker", "--metrics-addr", "127.0.0.1:0"])
            .args(args)
            .env("SYNTHEX_AMQP_URL", url)
            .env("SYNTHEX_OUTBOX", "none")
            .current_dir("/") // where there is no pool file
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary is there");
        let mut lines = BufReader::new(child.stderr.take().expect("it is a pipe")).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains("metrics on http://")));
        let line = line.expect("it tells where its metrics are");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.expect("the line has the address").to_owned();
        thread::spawn(move || lines.for_each(drop)); // it must not wait for room in the pipe
        Self { child, address }
    }

    /// Waits until so many jobs have succeeded. Counts from the first look at which some had to the last at which some
    /// had not, so that neither its start nor its last result is in it.
    fn measure(self, jobs: usize) -> Sample {
        let start = Instant::now();
        let mut looks = vec![self.look()];
        while looks.last().is_some_and(|look| look.finished < jobs) {
            assert!(
                start.elapsed() < PATIENCE,
                "{} jobs after {PATIENCE:?}",
                looks[looks.len() - 1].finished
            );
            sleep(LOOK);
            looks.push(self.look());
        }
        let first = looks.iter().find(|look| look.finished > 0).expect("all are finished");
        let last = looks.iter().rfind(|look| look.finished < jobs);
        let last = last
            .filter(|look| look.finished > first.finished)
            .unwrap_or(&looks[looks.len() - 1]);
        let counted = last.finished - first.finished;
        assert!(counted > 0, "{} jobs took less than {LOOK:?}", number(jobs));
        Sample::new(counted, last.at - first.at, last.cpu.since(first.cpu))
    }

    fn look(&self) -> Look {
        const SERIES: &str = r#"synthex_jobs_finished_total{pool="default",status="succeeded"} "#;
        let page = self.metrics();
        let value = page.lines().find_map(|line| line.strip_prefix(SERIES));
        Look {
            at: Instant::now(),
            finished: value.and_then(|value| value.parse().ok()).unwrap_or_default(),
            cpu: Cpu::of(self.child.id()),
        }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it serves metrics");
        let request = b"GET /metrics HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n";
        stream.write_all(request).expect("it reads");
        let mut page = String::new();
        stream.read_to_string(&mut page).expect("it answers with text");
        page
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
