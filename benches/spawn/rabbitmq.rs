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
use synthex::transport::{Publication, Routing, Transport};

use crate::processes::Cpu;
use crate::rate::{Sample, Subject};
use crate::service::PREFETCH;
use crate::statistics::number;
use crate::support::broker::Broker;
use crate::yardsticks::Program;

/// Commands that run at once.
const SLOTS: [usize; 2] = [4, 16];

/// The pool that is compiled in.
const POOL: &str = "default";

/// Publishes under way at once.
const PUBLISHERS: usize = 256;

/// How often a worker is asked how far it is. Each time takes it, and whoever looks for its helpers, a few milliseconds.
const LOOK: Duration = Duration::from_millis(100);

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
                        block_on(publish(&url, &program));
                        Worker::start(&binary, &url, slots).measure(program.jobs)
                    }),
                }
            }));
        }
        subjects
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime of this thread").block_on(future)
}

/// Puts a program's jobs into the pool's queue.
async fn publish(url: &str, program: &Program) {
    let names = Names::new("synthex");
    let addresses = Addresses::parse(url).expect("the node's own address");
    let broker = Amqp::new(AmqpConfig::new(addresses));
    let declared = broker.declare(&Topology::new(&names, [POOL]), Declare::Active).await;
    declared.expect("the node is well");
    let body = Bytes::from(json!({"command": [program.path]}).to_string());
    let job = |number: usize| Publication {
        exchange: names.jobs(),
        routing_key: POOL.into(),
        routing: Routing::Mandatory,
        envelope: Envelope {
            body: body.clone(),
            properties: Properties {
                content_type: Some("application/json".into()),
                message_id: Some(format!("bench-{number}")),
                ..Properties::default()
            },
        },
    };
    let publish = async |number| {
        let published = broker.publish(&job(number)).await;
        published.expect("the node is well");
    };
    futures_util::stream::iter(0..program.jobs)
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
    fn start(binary: &Path, url: &str, slots: usize) -> Self {
        let mut command = Command::new(binary);
        command
            .args(["worker", "--metrics-addr", "127.0.0.1:0"])
            .args(["--slots", &slots.to_string(), "--prefetch", &PREFETCH.to_string()])
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
