//! Connections: which host, how long to wait, what a failure means.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties};

use super::address::host;
use super::{AmqpConfig, operation_error, reply, reply_code, words};
use crate::transport::TransportError;

/// Handshakes that may be abandoned: each one leaks a thread and two sockets in lapin, so at some point it is better
/// to end the process than to go on.
const ABANDONED_MAX: usize = 200;

/// Opens connections to the hosts of a list in turn.
pub(super) struct Connector {
    config: AmqpConfig,
    next: AtomicUsize,
    abandoned: AtomicUsize,
}

impl Connector {
    pub(super) fn new(config: AmqpConfig) -> Self {
        Self {
            config,
            next: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        }
    }

    /// All hosts, with their ports.
    pub(super) fn hosts(&self) -> Vec<String> {
        self.config.addresses.uris().iter().map(host).collect()
    }

    /// Connects to the first host that lets us in, beginning with the one after the last that failed.
    ///
    /// # Errors
    /// [`TransportError::LoginRefused`] as soon as one host says so, else what each of them said.
    ///
    /// # Cancel safety
    /// Cancel safe as far as lapin is: an abandoned handshake leaks a thread until its socket ends.
    pub(super) async fn connect(&self, purpose: &str) -> Result<Session, TransportError> {
        let mut reasons = Vec::new();
        let uris = self.config.addresses.uris();
        for _ in uris {
            match self.connect_next(purpose).await {
                Ok(session) => return Ok(session),
                Err(error @ TransportError::Unreachable { .. }) if uris.len() == 1 => return Err(error),
                Err(TransportError::Unreachable { host, reason }) => reasons.push(format!("{host}: {reason}")),
                Err(error) => return Err(error),
            }
            self.next.fetch_add(1, Ordering::Relaxed);
        }
        Err(TransportError::Unreachable {
            host: self.config.addresses.hosts(),
            reason: reasons.join("; "),
        })
    }

    async fn connect_next(&self, purpose: &str) -> Result<Session, TransportError> {
        if self.abandoned.load(Ordering::Relaxed) >= ABANDONED_MAX {
            return Err(TransportError::Exhausted {
                host: self.config.addresses.hosts(),
                reason: format!("{ABANDONED_MAX} handshakes were never answered, and each still holds a thread"),
            });
        }
        let uris = self.config.addresses.uris();
        let uri = uris[self.next.load(Ordering::Relaxed) % uris.len()].clone();
        let host = host(&uri);
        let name = format!("{} {purpose}", self.config.connection_name);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let attempt = Connection::connect_uri(uri, properties);
        match tokio::time::timeout(self.config.connect_timeout, attempt).await {
            Ok(Ok(connection)) => Ok(Session { connection, host }),
            Ok(Err(error)) => Err(login_error(host, &error)),
            Err(_) => {
                self.abandoned.fetch_add(1, Ordering::Relaxed);
                let waited = self.config.connect_timeout;
                Err(TransportError::Unreachable {
                    host,
                    reason: format!("no answer within {waited:?}"),
                })
            }
        }
    }
}

fn login_error(host: String, error: &lapin::Error) -> TransportError {
    let reason = words(error);
    match reply_code(error) {
        Some(reply::ACCESS_REFUSED | reply::NOT_ALLOWED) => TransportError::LoginRefused { host, reason },
        _ => TransportError::Unreachable { host, reason },
    }
}

/// One open connection. Dropping the last use of it closes it.
pub(super) struct Session {
    connection: Connection,
    host: String,
}

impl Session {
    /// Host and port, for messages.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Whether it is still open.
    pub(super) fn is_open(&self) -> bool {
        self.connection.status().connected()
    }

    /// A fresh channel.
    pub(super) async fn channel(&self) -> Result<Channel, TransportError> {
        self.connection
            .create_channel()
            .await
            .map_err(|error| operation_error("open a channel", &error))
    }

    /// Says goodbye and waits, at most a moment, for the answer.
    pub(super) async fn close(&self) {
        const GOODBYE: Duration = Duration::from_secs(1);
        let close = self.connection.close(200, "done".into());
        // An error or no answer both mean that there is nobody left to say goodbye to.
        let _ = tokio::time::timeout(GOODBYE, close).await;
    }
}
