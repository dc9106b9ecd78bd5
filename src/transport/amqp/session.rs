//! Connections: which host, how long to wait, what a failure means.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{Instant, timeout_at};

use super::access::Way;
use super::address::{host, is_external};
use super::tls::Tls;
use super::{AmqpConfig, greeting, operation_error, reply, reply_code, socket, words};
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

    /// The version of the broker, of the first host that says it.
    pub(super) async fn version(&self) -> Option<String> {
        let way = self.config.access.load().await.ok()?;
        for uri in way.addresses.uris() {
            if let Some(version) = greeting::version(uri, way.tls.as_deref()).await {
                return Some(version);
            }
        }
        None
    }

    /// Connects to the first host that lets us in, beginning with the one after the last that failed.
    ///
    /// # Errors
    /// [`TransportError::LoginRefused`] as soon as one host says so, else what each of them said:
    /// [`TransportError::Tls`] when all that is wrong is that.
    ///
    /// # Cancel safety
    /// Cancel safe as far as lapin is: an abandoned handshake leaks a thread until its socket ends.
    pub(super) async fn connect(&self, purpose: &str) -> Result<Session, TransportError> {
        let way = self.config.access.load().await?;
        let mut reasons = Vec::new();
        let mut may_pass = false;
        let uris = way.addresses.uris();
        for _ in uris {
            match self.connect_next(&way, purpose).await {
                Ok(session) => return Ok(session),
                Err(error @ (TransportError::Unreachable { .. } | TransportError::Tls { .. })) if uris.len() == 1 => {
                    return Err(error);
                }
                Err(TransportError::Unreachable { host, reason }) => {
                    may_pass = true;
                    reasons.push(format!("{host}: {reason}"));
                }
                Err(TransportError::Tls { host, reason }) => reasons.push(format!("{host}: {reason}")),
                Err(error) => return Err(error),
            }
            self.next.fetch_add(1, Ordering::Relaxed);
        }
        let (host, reason) = (way.addresses.hosts(), reasons.join("; "));
        Err(if may_pass {
            TransportError::Unreachable { host, reason }
        } else {
            TransportError::Tls { host, reason }
        })
    }

    async fn connect_next(&self, way: &Way, purpose: &str) -> Result<Session, TransportError> {
        if self.abandoned.load(Ordering::Relaxed) >= ABANDONED_MAX {
            return Err(TransportError::Exhausted {
                host: way.addresses.hosts(),
                reason: format!("{ABANDONED_MAX} handshakes were never answered, and each still holds a thread"),
            });
        }
        let uris = way.addresses.uris();
        let uri = &uris[self.next.load(Ordering::Relaxed) % uris.len()];
        let (host, tls) = (host(uri), way.tls.as_deref());
        let limit = self.config.connect_timeout;
        let deadline = Instant::now() + limit;
        let silent = || TransportError::Unreachable {
            host: host.clone(),
            reason: format!("no answer within {limit:?}"),
        };
        let opened = timeout_at(deadline, socket::open(uri, tls)).await;
        let socket = opened.unwrap_or_else(|_| Err(silent()))?;
        let name = format!("{} {purpose}", self.config.connection_name);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let attempt = socket::log_in(socket, uri.clone(), properties);
        match timeout_at(deadline, attempt).await {
            Ok(Ok(connection)) => Ok(Session { connection, host }),
            Ok(Err(error)) if is_external(uri) => Err(external_error(login_error(host, tls, &error))),
            Ok(Err(error)) => Err(login_error(host, tls, &error)),
            Err(_) => {
                self.abandoned.fetch_add(1, Ordering::Relaxed);
                Err(silent())
            }
        }
    }
}

fn login_error(host: String, tls: Option<&Tls>, error: &lapin::Error) -> TransportError {
    let reason = words(error);
    match (reply_code(error), error.kind(), tls) {
        (Some(reply::ACCESS_REFUSED | reply::NOT_ALLOWED), ..) => TransportError::LoginRefused { host, reason },
        (None, lapin::ErrorKind::IOError(error), Some(tls)) => tls.failure(&host, error),
        _ => TransportError::Unreachable { host, reason },
    }
}

/// The same error, for who named no user. A broker that does not know the mechanism waits some seconds and hangs up.
fn external_error(error: TransportError) -> TransportError {
    match error {
        TransportError::LoginRefused { host, reason } => TransportError::LoginRefused {
            host,
            reason: format!(
                "{reason} (auth_mechanism=external: the user is the one that the client certificate names)"
            ),
        },
        TransportError::Unreachable { host, reason } => TransportError::Unreachable {
            host,
            reason: format!(
                "{reason} (auth_mechanism=external: the broker has to have the plugin rabbitmq_auth_mechanism_ssl and \
                 EXTERNAL among its auth_mechanisms)"
            ),
        },
        other => other,
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

    /// Whether the broker takes nothing that is published on it for now: it is short of memory or disk.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
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
