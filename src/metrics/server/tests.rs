//! The server over real sockets, with requests written by hand.

use std::net::{Shutdown as Direction, SocketAddr};
use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{PoolInfo, Sources};
use super::*;
use crate::supervise::{Outcome, SupervisorEvent, TaskAccounts, TaskEnd, TaskGroup};
use crate::worker::event::{Event, Observer};

/// A server that runs.
struct Server {
    addr: SocketAddr,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
    task: TaskGroup,
}

impl Server {
    async fn start() -> Self {
        Self::start_on(bind("127.0.0.1:0").await.unwrap())
    }

    fn start_on(listener: impl Borrow<TcpListener> + Send + 'static) -> Self {
        let pools = [PoolInfo {
            name: "web".into(),
            slots: 1,
            prefetch: 1,
        }];
        let tasks = TaskAccounts::default();
        let metrics = Metrics::new(
            &pools,
            Sources {
                tasks: tasks.clone(),
                ..Sources::default()
            },
        )
        .unwrap();
        let health = Health::new(&pools);
        let shutdown = Shutdown::new();
        let addr = listener.borrow().local_addr().unwrap();

        let mut task = TaskGroup::new(tasks);
        let serving = serve(listener, metrics.clone(), health.clone(), shutdown.clone());
        task.spawn("metrics", String::new(), async { Ok(serving.await?) });
        Self {
            addr,
            metrics,
            health,
            shutdown,
            task,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        let mut stream = self.connect().await;
        ask(&mut stream, method, path).await
    }

    async fn end(&mut self) -> TaskEnd {
        self.task.next_end().await.unwrap()
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn expect(&self, status: u16, body: &str) {
        assert_eq!((self.status, self.body.as_str()), (status, body));
    }
}

async fn ask(stream: &mut TcpStream, method: &str, path: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    answer(stream, method).await
}

/// Reads one answer and not a byte more, so that the next one can be read from the same connection.
async fn answer(stream: &mut TcpStream, method: &str) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap().into());
    }
    let head = head.to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = if method == "HEAD" {
        0
    } else {
        length.unwrap().parse().unwrap()
    };

    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    Answer {
        status,
        head,
        body: String::from_utf8(body).unwrap(),
    }
}

async fn assert_closed(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

fn consuming() -> Event {
    Event::Consuming { pool: "web".into() }
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let server = Server::start().await;
    let pool = "web".into();
    server.metrics.on(&Event::DeliveryTaken { pool });

    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    let kind = "content-type: text/plain; version=0.0.4\r\n";
    assert!(answer.head.contains(kind), "{}", answer.head);
    assert!(answer.body.contains("\nsynthex_unacked{pool=\"web\"} 1\n"));
}

#[tokio::test]
async fn it_is_alive_while_it_serves() {
    let server = Server::start().await;
    server.get("/healthz").await.expect(200, "alive\n");
}

#[tokio::test]
async fn it_is_ready_from_the_first_consumer_to_the_drain() {
    let server = Server::start().await;
    let not_yet = "pool web: does not consume yet\n";
    server.get("/readyz").await.expect(503, not_yet);
    server.health.on(&consuming());
    server.get("/readyz").await.expect(200, "ready\n");
    server.health.on(&Event::Draining);
    let draining = "draining: takes no more jobs\n";
    server.get("/readyz").await.expect(503, draining);
    // Still alive, and still to be scraped.
    assert_eq!(server.get("/healthz").await.status, 200);
    assert_eq!(server.get("/metrics").await.status, 200);
}

#[tokio::test]
async fn a_task_that_failed_is_seen_while_it_is_down_and_after() {
    let server = Server::start().await;
    server.health.on(&consuming());
    let child = "intake";
    let tell = |event| server.health.on(&Event::Supervised(event));
    tell(SupervisorEvent::Faulted {
        child,
        outcome: Outcome::Failed,
        error: "no port".into(),
    });
    let delay = Duration::from_millis(100);
    tell(SupervisorEvent::Restarting { child, delay });
    let down = "task intake: failed and is started again: no port\n";
    server.get("/readyz").await.expect(503, down);
    tell(SupervisorEvent::Started { child });
    let remark = "ready\ntask intake: restarts: 1, the last after: no port\n";
    server.get("/readyz").await.expect(200, remark);
}

#[tokio::test]
async fn elsewhere_there_is_nothing() {
    let server = Server::start().await;
    for path in ["/", "/metrics/", "/metricsx", "/favicon.ico"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    // A query changes nothing.
    assert_eq!(server.get("/healthz?verbose=1").await.status, 200);
}

#[tokio::test]
async fn only_reading_is_allowed() {
    let server = Server::start().await;
    let answer = server.ask("DELETE", "/metrics").await;
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get, head\r\n"));
    assert_eq!(server.ask("HEAD", "/healthz").await.status, 200);
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        ask(&mut stream, "GET", "/healthz").await.expect(200, "alive\n");
    }
}

#[tokio::test]
async fn what_is_not_http_harms_nobody() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(b"\x16\x03\x01 what\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "));
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = Server::start().await;
    let mut streams = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = server.connect().await;
        ask(&mut stream, "GET", "/healthz").await;
        streams.push(stream);
    }
    let mut late = server.connect().await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n";
    late.write_all(request).await.unwrap();
    // The others are served, this one is not.
    for stream in &mut streams {
        ask(stream, "GET", "/healthz").await;
    }
    let error = late.try_read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

    streams.pop();
    answer(&mut late, "GET").await.expect(200, "alive\n");
}

#[tokio::test]
async fn a_port_in_use_is_told_with_the_flag_to_change() {
    let taken = bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap().to_string();

    let error = bind(&addr).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    let text = error.to_string();
    assert!(text.starts_with(&format!("listen on {addr} for metrics: ")), "{text}");
    assert!(text.contains("--metrics-addr, or none"), "{text}");
}

#[tokio::test]
async fn told_to_drain_it_ends_and_frees_its_port() {
    let mut server = Server::start().await;
    let mut kept = server.connect().await;
    ask(&mut kept, "GET", "/healthz").await;
    let mut silent = server.connect().await;
    server.get("/healthz").await;

    server.shutdown.drain();
    assert_eq!(server.end().await.error, None);
    assert_closed(&mut kept).await;
    assert_closed(&mut silent).await;
    bind(&server.addr.to_string()).await.unwrap();
}

/// Sends the beginning of a request, and returns once the server has read it.
async fn begin_request(server: &Server) -> TcpStream {
    let mut stream = server.connect().await;
    stream.write_all(b"GET /metrics HT").await.unwrap();
    // The server hears of its sockets in the order in which they had news: when it has answered a second request on a
    // later connection, it has dealt with what came on this one.
    let mut later = server.connect().await;
    for _ in 0..2 {
        ask(&mut later, "GET", "/healthz").await;
    }
    stream
}

#[tokio::test]
async fn a_request_under_way_is_finished() {
    let mut server = Server::start().await;
    let mut stream = begin_request(&server).await;

    server.shutdown.drain();
    // Nobody else gets in any more once the server has seen the drain.
    while TcpStream::connect(server.addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(b"TP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let answer = answer(&mut stream, "GET").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("synthex_build_info"));
    assert_closed(&mut stream).await;
    assert_eq!(server.end().await.error, None);
}

#[tokio::test]
async fn a_request_that_never_ends_is_not_waited_for_for_ever() {
    let mut server = Server::start().await;
    let mut stream = begin_request(&server).await;

    tokio::time::pause();
    let drained = tokio::time::Instant::now();
    server.shutdown.drain();
    assert_eq!(server.end().await.error, None);
    assert!((GRACE..IDLE_LIMIT).contains(&drained.elapsed()));
    assert_closed(&mut stream).await;
}

#[tokio::test]
async fn an_abort_waits_for_nobody() {
    let mut server = Server::start().await;
    let mut stream = begin_request(&server).await;

    tokio::time::pause();
    let aborted = tokio::time::Instant::now();
    server.shutdown.abort();
    assert_eq!(server.end().await.error, None);
    assert!(aborted.elapsed() < GRACE);
    assert!(stream.read(&mut [0]).await.is_ok_and(|read| read == 0));
}

#[tokio::test]
async fn a_silent_peer_is_dropped() {
    let server = Server::start().await;
    let mut stream = begin_request(&server).await;

    tokio::time::pause();
    let silent = tokio::time::Instant::now();
    // The server may say that it has waited long enough.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(silent.elapsed() <= IDLE_LIMIT + GRACE);
}

#[tokio::test(start_paused = true)]
async fn a_busy_connection_does_not_live_for_ever() {
    const MINUTE: Duration = Duration::from_secs(60);
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let born = tokio::time::Instant::now();
    while born.elapsed() + MINUTE < CONNECTION_LIFE {
        sleep(MINUTE).await;
        assert_eq!(ask(&mut stream, "GET", "/healthz").await.status, 200);
    }
    assert_closed(&mut stream).await;
    assert!(born.elapsed() <= CONNECTION_LIFE + Duration::from_secs(1));
}

#[tokio::test]
async fn a_shared_listener_serves_again() {
    let listener = std::sync::Arc::new(bind("127.0.0.1:0").await.unwrap());
    for _ in 0..2 {
        let mut server = Server::start_on(listener.clone());
        assert_eq!(server.get("/healthz").await.status, 200);
        server.shutdown.drain();
        assert_eq!(server.end().await.error, None);
    }
}

#[tokio::test]
async fn a_broken_listener_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let socket: OwnedFd = listener.try_clone().unwrap().into();
    let mut server = Server::start_on(TcpListener::from_std(listener).unwrap());
    assert_eq!(server.get("/healthz").await.status, 200);

    let socket = std::net::TcpStream::from(socket);
    socket.shutdown(Direction::Both).unwrap();
    let error = server.end().await.error.unwrap();
    assert!(error.starts_with("accept connections for metrics: "), "{error}");
}
