use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::message::{SpanId, TraceContext, TraceId};
use crate::worker::trail::Phase;

/// Counts spans.
#[derive(Default)]
struct Counted {
    exported: AtomicUsize,
    dropped: AtomicUsize,
}

impl Observer for Counted {
    fn on(&self, event: &Event) {
        match event {
            Event::SpansExported { count } => self.exported.fetch_add(*count, Ordering::Relaxed),
            Event::SpansDropped { count } => self.dropped.fetch_add(*count, Ordering::Relaxed),
            other => panic!("{other:?}"),
        };
    }
}

impl Counted {
    fn both(&self) -> (usize, usize) {
        (
            self.exported.load(Ordering::Relaxed),
            self.dropped.load(Ordering::Relaxed),
        )
    }
}

struct Setting {
    exporter: Exporter,
    trails: Sender<Trail>,
    counted: Arc<Counted>,
    shutdown: Shutdown,
}

impl Setting {
    fn new(address: &str, timeout: Duration) -> Self {
        let (trails, receiver) = Channels::default().bounded("trails", QUEUE);
        let counted = Arc::new(Counted::default());
        let options = TraceOptions {
            endpoint: Endpoint::parse(&format!("http://{address}")).unwrap(),
            headers: Headers::parse("authorization=hush").unwrap(),
            timeout,
            ratio: 1.0,
            service: "s".to_owned(),
        };
        let scene = Scene {
            service: "s".to_owned(),
            worker: Identity {
                id: "w".to_owned(),
                host: "h".to_owned(),
            },
            names: Names::new("n"),
            system: "test",
        };
        let exporter = Exporter {
            trails: Mutex::new(receiver),
            options,
            scene,
            observer: counted.clone(),
        };
        Self {
            exporter,
            trails,
            counted,
            shutdown: Shutdown::new(),
        }
    }

    /// Leaves so many trails of two spans each.
    fn leave(&self, count: usize) {
        for _ in 0..count {
            let now = Timestamp::now();
            let trail = Trail {
                parent: None,
                context: TraceContext::begin(TraceId::random(), SpanId::random(), true),
                pool: "p".into(),
                job_id: "j".parse().unwrap(),
                attempt: 1,
                began: now,
                ended: now,
                phases: vec![(Phase::Receive, now, now)],
                ending: None,
            };
            self.trails.try_send(trail).unwrap();
        }
    }

    /// Stops at once, with so many trails left; the spans that were sent, and those that were dropped.
    async fn stop_with(&self, count: usize) -> (usize, usize) {
        self.leave(count);
        self.shutdown.drain();
        self.exporter.run(&self.shutdown).await;
        self.counted.both()
    }
}

/// A receiver's socket, and its address.
async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Takes one request, and gives its head.
async fn request(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        while bytes.len() < end + 4 + length {
            stream.read_buf(&mut bytes).await.unwrap();
        }
        return (stream, head);
    }
}

async fn answer(mut stream: TcpStream, status: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
}

const MINUTE: Duration = Duration::from_secs(60);

/// Lets something happen while the clock stands still, so that no bound is met, however busy the machine.
async fn timeless<F: Future>(what: F) -> F::Output {
    tokio::time::pause();
    let never = async {
        loop {
            tokio::task::yield_now().await; // a paused clock only advances while there is nothing to do
        }
    };
    tokio::select! {
        output = what => output,
        () = never => unreachable!("it never ends"),
    }
}

#[tokio::test]
async fn what_is_left_is_sent_when_the_worker_stops() {
    let (listener, address) = listen().await;
    let setting = Setting::new(&address, MINUTE);
    let receiver = async {
        let (stream, head) = request(&listener).await;
        answer(stream, "200 OK", b"").await;
        head.to_lowercase()
    };
    let (counts, head) = timeless(async { tokio::join!(setting.stop_with(3), receiver) }).await;
    assert_eq!(counts, (6, 0));
    for line in [
        "post /v1/traces http/1.1",
        "content-type: application/x-protobuf",
        "authorization: hush",
    ] {
        assert!(head.lines().any(|found| found == line), "no {line:?} in {head}");
    }
    assert!(head.contains(&format!("host: {address}")), "{head}");
}

#[tokio::test]
async fn spans_that_the_receiver_rejects_are_counted_as_lost() {
    let (listener, address) = listen().await;
    let setting = Setting::new(&address, MINUTE);
    let receiver = async {
        let (stream, _) = request(&listener).await;
        // ExportTraceServiceResponse { partial_success { rejected_spans: 2 } }
        answer(stream, "200 OK", &[0x0a, 2, 8, 2]).await;
    };
    let (counts, ()) = timeless(async { tokio::join!(setting.stop_with(3), receiver) }).await;
    assert_eq!(counts, (4, 2));
}

#[tokio::test]
async fn a_batch_is_sent_again_after_an_answer_that_is_none_for_good() {
    let (listener, address) = listen().await;
    let setting = Setting::new(&address, MINUTE);
    setting.leave(BATCH); // a full one does not linger
    let receiver = async {
        for status in ["503 Service Unavailable", "200 OK"] {
            let (stream, _) = request(&listener).await;
            answer(stream, status, b"").await;
        }
        setting.shutdown.drain();
    };
    let ((), ()) = tokio::join!(setting.exporter.run(&setting.shutdown), receiver);
    assert_eq!(setting.counted.both(), (2 * BATCH, 0));
}

#[tokio::test]
async fn a_batch_that_is_refused_is_dropped_and_the_next_one_sent() {
    let (listener, address) = listen().await;
    let setting = Setting::new(&address, MINUTE);
    let receiver = async {
        for status in ["400 Bad Request", "200 OK"] {
            let (stream, _) = request(&listener).await;
            answer(stream, status, b"no").await;
        }
    };
    let (counts, ()) = timeless(async { tokio::join!(setting.stop_with(BATCH + 1), receiver) }).await;
    assert_eq!(counts, (2, 2 * BATCH));
}

#[tokio::test]
async fn a_receiver_that_never_answers_holds_no_stop_up() {
    let (listener, address) = listen().await;
    let setting = Setting::new(&address, Duration::from_millis(20));
    assert_eq!(setting.stop_with(BATCH + 1).await, (0, 2 * (BATCH + 1)));
    drop(listener);
}

#[tokio::test]
async fn a_receiver_that_is_not_there_costs_the_spans_alone() {
    let (listener, address) = listen().await;
    drop(listener);
    let setting = Setting::new(&address, MINUTE);
    assert_eq!(setting.stop_with(1).await, (0, 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_has_a_deadline() {
    let (_listener, address) = listen().await;
    let setting = Setting::new(&address, MINUTE);
    let start = tokio::time::Instant::now();
    assert_eq!(setting.stop_with(1).await, (0, 2));
    assert_eq!(start.elapsed().as_secs(), LAST_WORDS.as_secs());
    setting.shutdown.abort();
    assert_eq!(setting.stop_with(1).await, (0, 4), "and none at an abort");
    assert_eq!(start.elapsed().as_secs(), LAST_WORDS.as_secs());
}
