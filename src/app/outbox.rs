//! Where a worker's results wait on disk while its broker is away.

use std::path::{Path, PathBuf};

use crate::message::ByteSize;
use crate::transport::amqp::Addresses;
use crate::worker::Worker;
use crate::worker::spool::{self, Spool, SpoolError};

/// Whether and where there is an outbox on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxChoice {
    /// Results wait in memory alone.
    None,
    /// In the usual place; if that cannot be used, in memory alone.
    Usual(PathBuf),
    /// Where the operator wants it; if that cannot be used, there is no worker.
    Named(PathBuf),
}

/// What an outbox on disk needs to know.
#[derive(Clone, Debug)]
pub struct OutboxOptions {
    /// Whether and where.
    pub choice: OutboxChoice,
    /// Most bytes of its files, those of workers that are gone included.
    pub max_bytes: ByteSize,
}

/// Where the results go.
pub(super) struct Destination {
    namespace: String,
    hosts: String,
    vhost: String,
}

impl Destination {
    pub(super) fn new(namespace: &str, addresses: &Addresses) -> Self {
        Self {
            namespace: namespace.to_owned(),
            hosts: addresses.hosts(),
            vhost: addresses.vhost().to_owned(),
        }
    }
}

/// Opens the outbox of `worker`, if it is to have one.
pub(super) async fn open<T>(
    options: OutboxOptions,
    to: &Destination,
    worker: &Worker<T>,
) -> Result<Option<Spool>, SpoolError> {
    let open = async |dir: &Path| {
        let folder = spool::folder(dir, &to.namespace, &to.hosts, &to.vhost);
        let observer = worker.observer.clone();
        Spool::open(folder, &worker.identity.id, options.max_bytes.get(), observer).await
    };
    match &options.choice {
        OutboxChoice::None => Ok(None),
        OutboxChoice::Named(dir) => open(dir).await.map(Some),
        OutboxChoice::Usual(dir) => Ok(open(dir).await.inspect_err(tell_without).ok()),
    }
}

fn tell_without(error: &SpoolError) {
    tracing::warn!(
        "failed to {error}; while the broker is away, results wait in memory: name a directory with --outbox, or none"
    );
}
