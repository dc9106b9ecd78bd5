//! How fast a batch is submitted to a quorum queue, with confirms, beside a bare lapin loop that does nothing else.
//!
//! ```text
//! cargo bench --bench publish
//! ```
//!
//! Each round has every subject once, on a RabbitMQ node of its own, in queues that are new each time: `lapin` is one channel
//! that awaits 256 confirms at a time, and four such channels; `batch` is what `synthex batch --detach` does, from the items
//! to the journal. Shown are the medians, and the ratio to the faster yardstick, which is to be at least 0.8.
//!
//! Nothing fails here for being slow. It needs what `tests/run` installs.

#![allow(
    clippy::disallowed_methods, // the product's bans: spawning
    clippy::print_stderr,       // a node that fails shows its log
    clippy::print_stdout,       // a table is what this is for
    clippy::unwrap_used         // a bench that cannot go on should stop
)]

/// RabbitMQ nodes, as tests have them.
#[path = "../../tests/support"]
#[allow(dead_code, unused_imports)]
mod support {
    pub mod broker;
    pub mod process;
}

use std::io;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use synthex::batch::journal::{Header, Journal};
use synthex::batch::{Engine, Item, Plan, Progress, Source, Table, Watcher};
use synthex::message::WorkerInfo;
use synthex::supervise::Shutdown;
use synthex::transport::Transport;
use synthex::transport::amqp::{Addresses, Amqp, AmqpConfig};
use synthex::transport::topology::{Declare, Names, Topology};
use tokio_util::sync::CancellationToken;

use support::broker::Broker;

const JOBS: usize = 40_000;
const ROUNDS: usize = 5;
const WINDOW: usize = 256;
const BODY: &[u8] = br#"{"command":["convert","in.png","out.webp"],"timeout":"30s","labels":{"team":"blue"}}"#;

/// The same job again and again.
struct Jobs(u64);

impl Source for Jobs {
    async fn next(&mut self) -> io::Result<Option<Item>> {
        if self.0 == JOBS as u64 {
            return Ok(None);
        }
        self.0 += 1;
        Ok(Some(Item {
            seq: self.0,
            origin: format!("jobs.jsonl:{}", self.0),
            title: String::new(),
            job: Ok(Bytes::from_static(BODY)),
        }))
    }
}

struct Nobody;

impl Watcher for Nobody {
    fn on(&mut self, _: &Progress) {}
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let broker = Broker::start().await;
    let url = broker.amqp_url();
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for (subject, rates) in rates.iter_mut().enumerate() {
            let names = Names::new(format!("bench-{round}-{subject}"));
            let amqp = Amqp::new(AmqpConfig::new(Addresses::parse(&url).unwrap()));
            amqp.declare(&Topology::new(&names, ["p"]), Declare::Active)
                .await
                .unwrap();
            let began = Instant::now();
            match subject {
                0 => bare(&url, &names, 1).await,
                1 => bare(&url, &names, 4).await,
                _ => batch(&amqp, &names).await,
            }
            rates.push(JOBS as f64 / began.elapsed().as_secs_f64());
            let depth = amqp.queue_depth(&names.pool_queue("p")).await.unwrap();
            assert_eq!(
                depth.map(|depth| depth.messages as usize),
                Some(JOBS),
                "all have arrived"
            );
            amqp.remove_queue(&names.pool_queue("p")).await.unwrap();
            amqp.close().await;
        }
    }
    let medians = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    let yardstick = medians[0].max(medians[1]);
    for (name, rate) in ["lapin, 1 channel", "lapin, 4 channels", "batch"].iter().zip(medians) {
        println!("{name:<18} {rate:>8.0} jobs/s  {:>5.2}", rate / yardstick);
    }
}

async fn bare(url: &str, names: &Names, channels: usize) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let each = (0..channels).map(|_| async {
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        for _ in 0..JOBS / channels / WINDOW {
            window(&channel, names, WINDOW).await;
        }
        window(&channel, names, JOBS / channels % WINDOW).await;
    });
    join_all(each).await;
    connection.close(200, "done".into()).await.unwrap();
}

async fn window(channel: &Channel, names: &Names, count: usize) {
    let mut confirms = Vec::with_capacity(count);
    for _ in 0..count {
        let (exchange, key) = (names.jobs().as_str().into(), "p".into());
        let properties = BasicProperties::default().with_delivery_mode(2);
        let sent = channel.basic_publish(exchange, key, BasicPublishOptions::default(), BODY, properties);
        confirms.push(sent.await.unwrap());
    }
    for confirm in confirms {
        assert!(confirm.await.unwrap().is_ack());
    }
}

async fn batch(amqp: &Amqp, names: &Names) {
    let folder = tempfile::tempdir().unwrap();
    let here = WorkerInfo {
        id: "bench".to_owned(),
        host: "bench".to_owned(),
        pool: "p".to_owned(),
        version: "0".to_owned(),
    };
    let id = "b".parse().unwrap();
    let header = Header {
        batch: "b".parse().unwrap(),
        namespace: String::new(),
        pool: "p".to_owned(),
        version: "0".to_owned(),
    };
    let mut table = Table::default();
    let journal = Journal::open(&folder.path().join("r"), &header, &mut table).unwrap();
    let mut plan = Plan::new(amqp.clone(), names, "p", &id, here);
    plan.max_in_flight = usize::MAX;
    let mut nobody = Nobody;
    let mut engine = Engine::new(plan, Jobs(0), Vec::new(), &mut nobody, (table, Some(journal)), None);
    let outcome = engine.work(&Shutdown::new(), &CancellationToken::new()).await;
    let end = engine.end(outcome);
    assert!(end.error.is_none(), "{:?}", end.error);
}
