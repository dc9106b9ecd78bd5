//! Sends what attempts went through to a receiver of traces, by OpenTelemetry's protocol (OTLP, `http/protobuf`).
//!
//! The worker writes [`Trail`]s down and puts them into a bounded channel; the [`Exporter`] takes them out, makes spans of
//! them (`otlp`) and posts these in batches (`endpoint`). Nothing waits for it: a receiver that is down or slow fills the
//! channel, and what is over it is dropped, counted, and mentioned once.
//!
//! Bounds: [`QUEUE`] trails in the channel, [`BATCH`] in a request, a deadline for each request, [`LAST_WORDS`] for what is
//! left once the worker has stopped.
//!
//! Not here: other signals (metrics are Prometheus' to fetch), other protocols of OTLP, TLS (see `endpoint`).

mod endpoint;
mod otlp;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::flow::channel::{Channels, Receiver, Sender};
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::supervise::Shutdown;
use crate::transport::topology::Names;
use crate::worker::Identity;
use crate::worker::event::{Event, Observer};
use crate::worker::trail::{Tracer, Trail};
use endpoint::{PostError, post};

pub use endpoint::{Endpoint, EndpointError, Headers};

/// Attempts that wait to be sent: some seconds of a busy worker. Each takes about half a kilobyte.
const QUEUE: usize = 4096;
/// Most attempts in a request, of at most eight spans each.
const BATCH: usize = 256;
/// How long an attempt may wait for others to go with it.
const LINGER: Duration = Duration::from_secs(1);
/// The first wait after a request that failed and may be tried again.
const RETRY_INITIAL: Duration = Duration::from_millis(500);
/// How long what is left may take once the worker has stopped.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What sending traces needs to know.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Where they go.
    pub endpoint: Endpoint,
    /// What is told there with each request.
    pub headers: Headers,
    /// How long a request may take.
    pub timeout: Duration,
    /// Of the jobs that bring no trace with them, the share that begins one that is recorded; from 0 to 1.
    pub ratio: f64,
    /// What this worker is called among services.
    pub service: String,
}

/// Who did what is in the traces.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The worker's name among services.
    pub service: String,
    /// Itself.
    pub worker: Identity,
    /// The names of its queues.
    pub names: Names,
    /// What kind of broker those are of.
    pub system: &'static str,
}

/// Takes trails and sends them.
pub struct Exporter {
    /// Held for as long as an exporter runs; one that is started again takes it over.
    trails: Mutex<Receiver<Trail>>,
    options: TraceOptions,
    scene: Scene,
    observer: Arc<dyn Observer>,
}

impl Exporter {
    /// Makes an exporter, and the tracer that feeds it.
    #[must_use]
    pub fn new(
        options: TraceOptions,
        scene: Scene,
        channels: &Channels,
        observer: Arc<dyn Observer>,
    ) -> (Self, Tracer) {
        let (sender, receiver): (Sender<Trail>, _) = channels.bounded("trails", QUEUE);
        let tracer = Tracer::new(sender, options.ratio, observer.clone());
        let exporter = Self {
            trails: Mutex::new(receiver),
            options,
            scene,
            observer,
        };
        (exporter, tracer)
    }

    /// Sends trails until told to drain, then what is left, within [`LAST_WORDS`].
    ///
    /// # Cancel safety
    /// Cancel safe, but what is being sent is lost, and not counted.
    pub async fn run(&self, shutdown: &Shutdown) {
        let mut trails = self.trails.lock().await;
        let mut batch = Vec::new();
        tokio::select! {
            () = self.send_all(&mut trails, &mut batch, shutdown) => {}
            () = time_is_up(shutdown) => {}
        }
        while let Ok(trail) = trails.try_recv() {
            batch.push(trail);
        }
        self.drop_spans(&mut batch);
    }

    async fn send_all(&self, trails: &mut Receiver<Trail>, batch: &mut Vec<Trail>, shutdown: &Shutdown) {
        let mut backoff = Backoff::new(RETRY_INITIAL, RECONNECT_MAX);
        let mut trouble = Trouble::default();
        while fill(batch, trails, shutdown).await {
            match self.send(batch).await {
                Ok(()) => {
                    trouble.is_over();
                    backoff.reset();
                }
                Err(error) => {
                    trouble.tell(&error);
                    if !error.is_transient() || shutdown.is_draining() {
                        self.drop_spans(batch);
                        continue;
                    }
                    tokio::select! {
                        () = sleep(backoff.next_delay()) => {}
                        () = shutdown.draining() => {}
                    }
                }
            }
        }
    }

    /// Sends a batch once, and empties it when it was taken.
    async fn send(&self, batch: &mut Vec<Trail>) -> Result<(), PostError> {
        let TraceOptions {
            endpoint,
            headers,
            timeout,
            ..
        } = &self.options;
        let body = otlp::request(&self.scene, batch);
        let answer = post(endpoint, headers, body, *timeout).await?;
        let rejected = otlp::rejected(&answer).unwrap_or_else(|error| {
            tracing::debug!("failed to read the answer of {endpoint}: {error}"); // it was a yes
            0
        });
        let count = spans(batch).saturating_sub(rejected);
        self.observer.on(&Event::SpansExported { count });
        if rejected > 0 {
            tracing::warn!(rejected, "{endpoint} took traces, but not all of their spans");
            self.observer.on(&Event::SpansDropped { count: rejected });
        }
        batch.clear();
        Ok(())
    }

    fn drop_spans(&self, batch: &mut Vec<Trail>) {
        let count = spans(batch);
        if count > 0 {
            self.observer.on(&Event::SpansDropped { count });
        }
        batch.clear();
    }
}

fn spans(batch: &[Trail]) -> usize {
    batch.iter().map(Trail::spans).sum()
}

/// Waits for a trail and a moment for others; whether there is something to send. At a drain it takes what is there.
async fn fill(batch: &mut Vec<Trail>, trails: &mut Receiver<Trail>, shutdown: &Shutdown) -> bool {
    if batch.is_empty() {
        tokio::select! {
            biased; // what is there goes before the end
            Some(trail) = trails.recv() => batch.push(trail),
            () = shutdown.draining() => return false,
        }
    }
    let mut linger = std::pin::pin!(sleep(LINGER));
    while batch.len() < BATCH {
        tokio::select! {
            biased;
            Some(trail) = trails.recv() => batch.push(trail),
            () = shutdown.draining() => break,
            () = &mut linger => break,
        }
    }
    true
}

async fn time_is_up(shutdown: &Shutdown) {
    let after_the_drain = async {
        shutdown.draining().await;
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = shutdown.aborting() => {}
        () = after_the_drain => {}
    }
}

/// Whether the receiver does not do what it is for, which is said once.
#[derive(Default)]
struct Trouble {
    is_told: bool,
}

impl Trouble {
    fn tell(&mut self, error: &PostError) {
        if self.is_told {
            tracing::debug!("failed to {error}");
        } else {
            tracing::warn!("failed to {error}; traces that are too many to wait are dropped, jobs go on");
        }
        self.is_told = true;
    }

    fn is_over(&mut self) {
        if self.is_told {
            tracing::info!("traces are taken again");
        }
        self.is_told = false;
    }
}

#[cfg(test)]
mod tests;
