//! The outbox on disk: results that wait for a broker that is away, kept over the death of their worker.
//!
//! What [`post`](super::post) cannot get confirmed within a moment is written here before anything else can happen to
//! it, and let go once it is confirmed and its job acked. A worker that starts takes over what workers that are gone
//! have left, and [`replay`](super::replay) publishes it before anything of its own would go there.
//!
//! ```text
//! <dir>/<namespace>@<hosts>%2F<vhost>/     one folder a destination: no result goes to another broker by mistake
//!     <worker id>-0.outbox                 one file a worker, locked while it lives (flock)
//! ```
//!
//! - [`format`]: the bytes of a file, and reading one that is damaged.
//! - [`journal`]: one locked file.
//! - [`store`]: our file and those taken over.
//! - here: the same for tasks. The disk is used by one blocking call at a time, never on the runtime's threads; parcels
//!   that come meanwhile are written together by the next call, with one sync.
//!
//! It loses nothing and stops nothing: what cannot be written stays in memory, where it was, and that is said once and
//! counted; after a failure the disk is left alone for a while ([`circuits`]). A disk that hangs instead of
//! failing does hold up the jobs whose results are being written, at most prefetch of them. It does not shrink a file before
//! all in it is confirmed.

mod format;
mod journal;
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use super::circuits;
use super::event::{Event, Observer};
use super::parcel::Parcel;
use crate::flow::LockAccount;
use crate::flow::breaker::Breaker;
use store::Store;
pub(super) use store::{Entry, Left};

/// Who finds the store taken waits for a disk, and then has its parcel written by whoever goes first.
pub(super) static LOCK: LockAccount = LockAccount::new("outbox");

/// How often it is said that the outbox cannot be written: a full disk must not fill the log.
const REMIND: Duration = Duration::from_secs(600);

/// Why something could not be kept on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder cannot be made or used.
    #[error("use the outbox directory {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What happened.
        source: Arc<io::Error>,
    },
    /// A file cannot be written: the disk is full, or worse.
    #[error("write to the outbox {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: Arc<io::Error>,
    },
    /// The file is as long as it may be.
    #[error("write to the outbox {}: it holds as much as --outbox-max-bytes allows", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// What another worker left cannot be read.
    #[error("read the outbox {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A worker's outbox on disk. Clones share it.
#[derive(Clone)]
pub struct Spool(Arc<Shared>);

struct Shared {
    store: Arc<Mutex<Store>>,
    /// What workers that are gone have left, when this one started.
    left: Vec<Left>,
    /// What the next call to the store will write.
    pending: std::sync::Mutex<Vec<Pending>>,
    observer: Arc<dyn Observer>,
    /// Opens when it cannot be written.
    disk: Breaker,
    /// When it was last said that it cannot be written.
    told: std::sync::Mutex<Option<Instant>>,
}

/// A parcel to be written, and who waits for that; `None` when it could not be.
struct Pending {
    parcel: Parcel,
    answer: oneshot::Sender<Option<Entry>>,
}

/// A parcel that is on disk. Dropped without [`Kept::confirmed`], it stays there.
#[must_use = "it is sent again by the next worker unless it is confirmed"]
pub(super) struct Kept {
    spool: Spool,
    entry: Entry,
}

/// The folder below `dir` for what goes to one namespace of one virtual host of one broker.
///
/// The hosts are sorted, so that their order is no matter; with another list of hosts, it is another broker.
#[must_use]
pub fn folder(dir: &Path, namespace: &str, hosts: &str, vhost: &str) -> PathBuf {
    /// Longest name that is used as it is; file systems allow 255 bytes.
    const LONGEST: usize = 200;
    let mut hosts: Vec<&str> = hosts.split(',').collect();
    hosts.sort_unstable();
    let name = file_name(&format!("{namespace}@{}/{vhost}", hosts.join("+")));
    let name = match name.split_at_checked(LONGEST) {
        Some((head, rest)) if !rest.is_empty() => format!("{head}~{:08x}", crc32fast::hash(name.as_bytes())),
        _ => name,
    };
    dir.join(name)
}

/// A text as a file's name: whatever is not of ASCII's letters, digits and some marks is written as `%` and two digits.
fn file_name(text: &str) -> String {
    let mut name = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.@:+".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

impl Spool {
    /// Makes the outbox of the worker `id` in a folder that [`folder`] has named, of at most `max_bytes`, and takes over
    /// what workers that are gone have left there.
    ///
    /// # Errors
    /// When the folder cannot be made or written to.
    pub async fn open(
        folder: PathBuf,
        id: &str,
        max_bytes: u64,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, SpoolError> {
        let name = file_name(id);
        let open = move || {
            let store = Store::open(&folder, &name, max_bytes)?;
            let left = store.left();
            Ok((store, left))
        };
        let (store, left) = blocking(open).await?;
        let shared = Shared {
            store: Arc::new(Mutex::new(store)),
            left,
            pending: std::sync::Mutex::default(),
            disk: circuits::of_outbox(observer.clone()),
            observer,
            told: std::sync::Mutex::default(),
        };
        shared.tell(&*shared.store.lock().await);
        Ok(Self(Arc::new(shared)))
    }

    /// Writes a parcel to disk; `None` when that cannot be done: it is in memory alone then.
    ///
    /// # Cancel safety
    /// Not cancel safe: it may be written all the same, and is sent again by the next worker then.
    pub(super) async fn keep(&self, parcel: &Parcel) -> Option<Kept> {
        let (answer, answered) = oneshot::channel();
        let parcel = parcel.clone();
        self.pending().push(Pending { parcel, answer });
        self.with_store(Shared::write_pending).await;
        let entry = answered.await.ok().flatten()?;
        let spool = self.clone();
        Some(Kept { spool, entry })
    }

    /// What workers that are gone had left when this one started.
    pub(super) fn left(&self) -> &[Left] {
        &self.0.left
    }

    /// Reads what another worker left; `None` when it cannot be read, which is said, or is confirmed already.
    pub(super) async fn read(&self, entry: Entry) -> Option<Parcel> {
        self.with_store(move |shared, store| match store.read(entry) {
            Ok(parcel) => parcel,
            Err(error) => {
                shared.observer.on(&Event::OutboxFailed);
                tracing::warn!("failed to {error}; its job comes again");
                None
            }
        })
        .await
    }

    /// Lets a parcel go that is confirmed.
    pub(super) async fn confirm(&self, entry: Entry) {
        self.with_store(move |shared, store| {
            if let Err(error) = store.confirm(entry) {
                shared.failed(&error);
            }
            shared.tell(store);
        })
        .await;
    }

    /// Says what is left for the next worker, if anything is.
    pub async fn close(self) {
        let store = self.0.store.lock().await;
        let (results, bytes) = (store.records(), store.bytes());
        if results > 0 {
            tracing::warn!(results, bytes, "results wait in the outbox for the next worker");
        }
    }

    /// Uses the store on a thread that may block. The call is made to its end even if this future is dropped.
    async fn with_store<R: Send + 'static>(&self, work: impl FnOnce(&Shared, &mut Store) -> R + Send + 'static) -> R {
        let mut store = self.store().await;
        let shared = self.0.clone();
        blocking(move || work(&shared, &mut store)).await
    }

    async fn store(&self) -> OwnedMutexGuard<Store> {
        let store = self.0.store.clone();
        if let Ok(free) = store.clone().try_lock_owned() {
            return free;
        }
        let _wait = LOCK.wait();
        store.lock_owned().await
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Vec<Pending>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Lets it go: all of it was confirmed.
    pub(super) async fn confirmed(self) {
        self.spool.confirm(self.entry).await;
    }
}

impl Shared {
    /// Writes all that waits for it: nothing, if the call before has done so.
    fn write_pending(&self, store: &mut Store) {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if pending.is_empty() {
            return;
        }
        let Some(pass) = self.disk.try_pass() else {
            return pending.into_iter().for_each(|pending| self.skip(pending));
        };
        let (parcels, answers): (Vec<Parcel>, Vec<_>) = pending
            .into_iter()
            .map(|pending| (pending.parcel, pending.answer))
            .unzip();
        let written = store.append(&parcels);
        // One that is over the limit was not written, and says nothing of the disk.
        if written
            .iter()
            .any(|written| matches!(written, Err(SpoolError::Write { .. })))
        {
            pass.failed();
        } else if written.iter().any(Result::is_ok) {
            pass.succeeded();
        }
        for (written, answer) in written.into_iter().zip(answers) {
            if let Err(error) = &written {
                self.failed(error);
            }
            // Who does not wait any more was cut off: it stays for the next worker.
            let _ = answer.send(written.ok());
        }
        self.tell(store);
    }

    /// Writes nothing, as the disk could not be written just before.
    fn skip(&self, pending: Pending) {
        self.observer.on(&Event::OutboxFailed);
        let _ = pending.answer.send(None);
    }

    fn failed(&self, error: &SpoolError) {
        self.observer.on(&Event::OutboxFailed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= REMIND) {
            *told = Some(Instant::now());
            tracing::warn!(
                "failed to {error}; results wait in memory, where a crash of this worker would have their jobs run again: \
                 make room there, or name another directory with --outbox"
            );
        }
    }

    fn tell(&self, store: &Store) {
        self.observer.on(&Event::OutboxChanged {
            records: store.records(),
            bytes: store.bytes(),
        });
    }
}

/// Runs what blocks on a thread for it.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

#[cfg(test)]
mod tests;
