//! Bounds and pressure: what keeps a fast part from drowning a slow one.
//!
//! - [`channel`]: the only queues between tasks. Each is bounded, and keeps accounts of what went
//!   in, what came out, and how long senders waited for room.
//! - [`lock`]: mutexes that tell how long they were waited for.
//! - [`rate`]: how often something may start.
//! - [`breaker`]: after failures in a row, nobody tries for a while; then one does, for all.
//! - [`retry`]: how long to wait before trying again, always with jitter and always with a ceiling.
//!
//! Nothing here knows a job, a broker or a process: the module imports nobody.

pub mod breaker;
pub mod channel;
pub mod lock;
pub mod rate;
pub mod retry;

pub use channel::{ChannelStats, Channels, Receiver, SendError, Sender, TryRecvError, TrySendError};
pub use lock::{Lock, LockAccount, LockStats};
pub use retry::{Backoff, RECONNECT_MAX, Schedule};
