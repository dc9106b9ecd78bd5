//! How fast a batch is submitted to a quorum queue, with confirms, beside a bare lapin loop that does nothing else.
//!
//! ```text
//! cargo bench --bench publish
//! ```
//!
//! Each round has every subject once, on a RabbitMQ node of its own, in queues that are new each time: `lapin` is one channel
//! that awaits 256 confirms at a time, and four such channels, with messages that are a body and nothing else, and with those
//! that a batch publishes: their properties say whose they are and where results go, and cost the broker as much as the
//! client. `batch` is what `synthex batch --detach` does, from the items to the journal. Shown are the medians, and the
//! medians of the ratios to the last yardstick within each round, which is to be at least 0.8.
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
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use synthex::batch::journal::{Header, Journal};
use synthex::batch::{Engine, Item, Name, Plan, Progress, Source, Table, Watcher};
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
            name: Name {
                origin: format!("jobs.jsonl:{}", self.0),
                ..Name::default()
            },
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
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        for (subject, rates) in rates.iter_mut().enumerate() {
            let names = Names::new(format!("bench-{round}-{subject}"));
            let amqp = Amqp::new(AmqpConfig::new(Addresses::parse(&url).unwrap()));
            amqp.declare(&Topology::new(&names, ["p"]), Declare::Active)
                .await
                .unwrap();
            let began = Instant::now();
            match subject {
                0 => bare(&url, &names, 1, |_| persistent()).await,
                1 => bare(&url, &names, 4, |_| persistent()).await,
                2 => bare(&url, &names, 4, of_batch).await,
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
    let names = [
        "lapin, 1 channel, bodies",
        "lapin, 4 channels, bodies",
        "lapin, 4 channels",
        "batch",
    ];
    for (name, of_subject) in names.iter().zip(&rates) {
        let ratios = of_subject
            .iter()
            .zip(&rates[2])
            .map(|(rate, yardstick)| rate / yardstick);
        let (rate, ratio) = (median(of_subject.clone()), median(ratios.collect()));
        println!("{name:<26} {rate:>8.0} jobs/s  {ratio:>5.2}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

/// What a job of a batch says of itself.
fn of_batch(number: usize) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    headers.insert("x-synthex-batch".into(), text("b"));
    headers.insert("x-synthex-submitted-at".into(), text("2026-11-26T07:00:00.000Z"));
    headers.insert("x-synthex-unique".into(), text(&format!("{number:032x}")));
    persistent()
        .with_content_type("application/json".into())
        .with_message_id(format!("b:{number}").into())
        .with_correlation_id(number.to_string().into())
        .with_reply_to("bench.batch.b".into())
        .with_timestamp(1_795_000_000)
        .with_headers(headers)
}

async fn bare(url: &str, names: &Names, channels: usize, properties: impl Fn(usize) -> BasicProperties) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let each = (0..channels).map(|_| async {
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        for _ in 0..JOBS / channels / WINDOW {
            window(&channel, names, WINDOW, &properties).await;
        }
        window(&channel, names, JOBS / channels % WINDOW, &properties).await;
        channel.close(200, "done".into()).await.unwrap(); // dropped, it would be closed while its connection is
    });
    join_all(each).await;
    connection.close(200, "done".into()).await.unwrap();
}

async fn window(channel: &Channel, names: &Names, count: usize, properties: impl Fn(usize) -> BasicProperties) {
    let mut confirms = Vec::with_capacity(count);
    for number in 0..count {
        let (exchange, key) = (names.jobs().as_str().into(), "p".into());
        let sent = channel.basic_publish(exchange, key, BasicPublishOptions::default(), BODY, properties(number));
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
