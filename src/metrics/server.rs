//! The HTTP server: `/metrics`, `/healthz` and `/readyz`, over HTTP/1.1.
//!
//! [`serve`] polls its connections itself instead of spawning a task for each, so it leaves nothing behind however it
//! ends. That is enough because a page is text that is ready in milliseconds.
//!
//! Bounds: [`MAX_CONNECTIONS`] at once (more wait in the listener's backlog); a peer that does not ask is dropped
//! after [`IDLE_LIMIT`], one that does not let go after [`CONNECTION_LIFE`].
//!
//! No TLS and no login: bind it to an address that only the monitoring can reach.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::{Health, Metrics};
use crate::supervise::Shutdown;

/// Most connections at once: a few Prometheus servers and probes, with room to spare.
const MAX_CONNECTIONS: usize = 64;

/// How long a peer may take to ask, or to ask again: longer than the usual scrape interval of a minute.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// After this time a peer has to connect again, so one that never reads its answer is gone too.
const CONNECTION_LIFE: Duration = Duration::from_secs(3_600);

/// How long a request that is under way may take once the connection has to end.
const GRACE: Duration = Duration::from_secs(5);

/// How long to wait when there is no connection to be had, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The text format of Prometheus.
const METRICS_TYPE: &str = "text/plain; version=0.0.4";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// Listens on `addr`, a host and a port.
///
/// # Errors
/// When the address is taken or is none of this machine's; the text names it and the flag to change it.
pub async fn bind(addr: &str) -> io::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| {
        let error = match error.kind() {
            io::ErrorKind::InvalidInput => io::Error::new(error.kind(), "expected HOST:PORT"),
            _ => error,
        };
        let text = format!("listen on {addr} for metrics: {error}; give another address with --metrics-addr, or none");
        io::Error::new(error.kind(), text)
    })
}

/// Serves the pages until it is told to drain; then lets requests that are under way finish, within bounds.
///
/// It has to outlive the worker's own drain, or nobody could watch that: give it a `shutdown` of its own. The listener
/// may be shared, so that a server that is started again finds it; one that is not shared is closed at the drain, and
/// new connections are refused.
///
/// # Errors
/// When the listener is broken.
///
/// # Cancel safety
/// Cancel safe: dropped, it closes its connections and leaves nothing behind.
pub async fn serve(
    listener: impl Borrow<TcpListener>,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
) -> io::Result<()> {
    let pages = Pages { metrics, health };
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = shutdown.draining() => break,
            Some(()) = connections.next() => {}
            stream = accept(listener.borrow()), if connections.len() < MAX_CONNECTIONS => {
                connections.push(converse(stream?, &pages, &shutdown));
            }
        }
    }
    // Nobody may wait for an answer that nobody gives.
    drop(listener);
    tokio::select! {
        () = shutdown.aborting() => {}
        () = connections.collect() => {}
    }
    Ok(())
}

/// Takes the next connection. Waits when there is none to be had; fails only when there never will be.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return Ok(stream),
            // accept(2): EINVAL is a socket that does not listen. All else passes: no file descriptor is free, or
            // the peer has gone again.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let text = format!("accept connections for metrics: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection for metrics, will try again");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one connection.
async fn converse(stream: TcpStream, pages: &Pages, shutdown: &Shutdown) {
    let answer = |request: Request<Incoming>| {
        let page = pages.answer(request.method(), request.uri().path());
        ready(Ok::<_, Infallible>(page))
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = pin!(connection);

    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = timeout(CONNECTION_LIFE, shutdown.draining()) => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.ok()
        }
    };
    // The peer's business, mostly: it went away, or it does not talk HTTP.
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "connection for metrics ended early");
    }
}

/// What there is to see.
struct Pages {
    metrics: Metrics,
    health: Health,
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return not_allowed();
        }
        match path {
            "/metrics" => page(StatusCode::OK, METRICS_TYPE, self.metrics.render()),
            "/healthz" => page(StatusCode::OK, TEXT_TYPE, "alive\n".into()),
            "/readyz" => self.readiness(),
            _ => {
                let text = "not found; there are /metrics, /healthz and /readyz\n";
                page(StatusCode::NOT_FOUND, TEXT_TYPE, text.into())
            }
        }
    }

    fn readiness(&self) -> Response<String> {
        let obstacles = self.health.obstacles();
        if obstacles.is_empty() {
            let text = [vec!["ready".into()], self.health.remarks()].concat().join("\n") + "\n";
            return page(StatusCode::OK, TEXT_TYPE, text);
        }
        let text = obstacles.join("\n") + "\n";
        page(StatusCode::SERVICE_UNAVAILABLE, TEXT_TYPE, text)
    }
}

fn not_allowed() -> Response<String> {
    let text = "only GET and HEAD are allowed\n";
    let mut response = page(StatusCode::METHOD_NOT_ALLOWED, TEXT_TYPE, text.into());
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn page(status: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests;
