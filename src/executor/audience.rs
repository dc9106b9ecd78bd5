//! Who may want to hear what a command writes, while it runs.
//!
//! A run is started without anybody who listens, or with: it asks whether somebody came ([`Listeners`]), tells him what was
//! kept so far, and hands what it reads from then on to an [`Ear`]. As long as nobody comes, a read is what it is without
//! all this, and no more.

use std::future;
use std::sync::Arc;

use crate::message::Stream;

/// Hears what a command writes.
pub trait Ear: Send + Sync {
    /// Takes the next bytes of a stream, of which `offset` were written before; whether it goes on to listen. Called on a
    /// hot path: must not block.
    fn hear(&self, stream: Stream, offset: u64, bytes: &[u8]) -> bool;
}

/// Those who may come to listen to one run.
pub trait Listeners: Send {
    /// Whether somebody is there now, or may be.
    fn are_there(&self) -> bool;

    /// Waits until somebody comes who was not told yet what was written so far.
    ///
    /// # Cancel safety
    /// Must be cancel safe.
    fn come(&mut self) -> impl Future<Output = ()> + Send;

    /// Tells those who came what is kept of stdout and stderr; who is to hear what comes, if anybody stays for it.
    fn begin(&mut self, so_far: [SoFar<'_>; 2]) -> Option<Arc<dyn Ear>>;
}

/// What is kept of a stream that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoFar<'a> {
    /// Its first bytes.
    pub head: &'a [u8],
    /// Its last bytes after those, in two parts.
    pub tail: [&'a [u8]; 2],
    /// All its bytes.
    pub total: u64,
}

/// A run that nobody listens to.
pub struct Nobody;

impl Listeners for Nobody {
    fn are_there(&self) -> bool {
        false
    }

    async fn come(&mut self) {
        future::pending::<()>().await;
    }

    fn begin(&mut self, _: [SoFar<'_>; 2]) -> Option<Arc<dyn Ear>> {
        None
    }
}
