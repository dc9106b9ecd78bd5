//! Tells systemd, or whoever else started the worker and speaks its protocol (`sd_notify(3)`), how the worker is.
//!
//! - `READY=1` once every pool takes jobs, or takes none because an operator paused it: a start that waits for its broker
//!   is still a start;
//! - `STATUS=`: the pools that it serves, or what keeps it from serving them;
//! - `STOPPING=1` when it drains, whoever asked for that, with the time that this may take: no other limit has to agree
//!   with the pools' `stop_grace` (`EXTEND_TIMEOUT_USEC=`);
//! - `WATCHDOG=1`, twice in the time of its watchdog. A task of the tree sends it, on the runtime that serves jobs, and
//!   looks at what observers know first: it stays out when the runtime no longer runs tasks, or observers hang. A broker
//!   that is away is no reason to be killed.
//!
//! Nothing fails because nobody listens.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::metrics::Health;
use crate::supervise::{Child, Restart, Shutdown, TaskError};
use crate::worker::event::{Event, Observer};

/// What a stop may take beyond the pools' `stop_grace`: killing what still runs, giving it back, the goodbye to the
/// broker. A worker that takes longer hangs.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// How often it is tried again to tell what could not be told, without a watchdog.
const AGAIN: Duration = Duration::from_secs(10);

/// How the worker was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceManagerOptions {
    /// Where the service manager listens: a path, or the name of an abstract socket after `@`.
    pub socket: OsString,
    /// After which silence the worker is taken for dead.
    pub watchdog: Option<Duration>,
}

/// The service manager, and what it was told.
pub(super) struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    health: Health,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    ready: bool,
    stopping: bool,
    status: String,
}

impl ServiceManager {
    /// Finds the service manager. `None`, with a warning, when its address is none we know.
    pub(super) fn find(options: ServiceManagerOptions, health: Health) -> Option<Arc<Self>> {
        let open = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?; // an observer must not wait
            io::Result::Ok((socket, address(&options.socket)?))
        };
        let warn = |error: &io::Error| {
            let socket = options.socket.display();
            tracing::warn!(
                "failed to use NOTIFY_SOCKET {socket}: {error}; the service manager will not know of this start"
            );
        };
        let (socket, address) = open().inspect_err(warn).ok()?;
        Some(Arc::new(Self {
            socket,
            address,
            watchdog: options.watchdog,
            health,
            told: Mutex::default(),
        }))
    }

    /// Tells what has changed since it was told last.
    fn tell(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (obstacles, ready) = (self.health.obstacles(), told.ready || self.health.has_started());
        let status = match obstacles.as_slice() {
            [] => "takes jobs".to_owned(),
            obstacles => obstacles.join("; "),
        };
        if told.stopping || (told.ready == ready && told.status == status) {
            return;
        }
        let readiness = if ready && !told.ready { "READY=1\n" } else { "" };
        if self.send(&format!("{readiness}STATUS={status}")) {
            (told.ready, told.status) = (ready, status);
        }
    }

    /// Tells that the worker stops, which takes at most `within`.
    fn tell_stop(&self, within: Duration) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let microseconds = (within + STOP_MARGIN).as_micros();
        told.stopping = told.stopping
            || self.send(&format!(
                "STOPPING=1\nSTATUS=takes no more jobs, finishes those that run\nEXTEND_TIMEOUT_USEC={microseconds}"
            ));
    }

    /// Whether it was sent.
    fn send(&self, state: &str) -> bool {
        let sent = self.socket.send_to_addr(state.as_bytes(), &self.address);
        sent.inspect_err(|error| tracing::warn!("failed to tell the service manager {state:?}: {error}"))
            .is_ok()
    }
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(socket),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "neither an absolute path nor an abstract name",
        )),
    }
}

impl Observer for ServiceManager {
    fn on(&self, event: &Event) {
        if let Event::Consuming { .. } | Event::ConsumerLost { .. } | Event::ConsumerHeld { .. } = event {
            self.tell();
        }
    }
}

/// The task that tells of the stop, and that the worker lives. It ends after all that it speaks for.
pub(super) fn child(manager: Arc<ServiceManager>, everything: Shutdown, longest_stop: Duration) -> Child {
    Child::new("service_manager", Restart::Permanent, move |own| {
        run(manager.clone(), everything.clone(), longest_stop, own)
    })
}

async fn run(
    manager: Arc<ServiceManager>,
    everything: Shutdown,
    longest_stop: Duration,
    own: Shutdown,
) -> Result<(), TaskError> {
    let mut beats = beats(manager.watchdog);
    let mut draining = false;
    loop {
        tokio::select! {
            () = own.draining() => return Ok(()),
            () = everything.draining(), if !draining => draining = true,
            _ = beats.tick() => {}
        }
        if draining {
            manager.tell_stop(longest_stop);
        } else {
            manager.tell();
        }
        if manager.watchdog.is_some() {
            manager.send("WATCHDOG=1");
        }
    }
}

/// Twice in the time of the watchdog, as `sd_watchdog_enabled(3)` asks.
fn beats(watchdog: Option<Duration>) -> Interval {
    let mut beats = interval(watchdog.map_or(AGAIN, |watchdog| watchdog / 2));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::PoolInfo;
    use crate::worker::HoldReason;

    /// A service manager that listens, and a worker of one pool that tells it.
    fn listening() -> (UnixDatagram, Arc<ServiceManager>) {
        // An abstract name is gone with its socket.
        let name = format!("@synthex-test-{}", uuid::Uuid::now_v7());
        let ours = UnixDatagram::bind_addr(&address(OsStr::new(&name)).unwrap()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let health = Health::new(&[PoolInfo {
            name: "web".into(),
            slots: 1,
            prefetch: 1,
        }]);
        let options = ServiceManagerOptions {
            socket: name.into(),
            watchdog: None,
        };
        (ours, ServiceManager::find(options, health).unwrap())
    }

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// As the worker tells its observers.
    fn happens(manager: &ServiceManager, event: &Event) {
        manager.health.on(event);
        manager.on(event);
    }

    fn held() -> Event {
        let (pool, reason) = ("web".into(), HoldReason::Paused);
        Event::ConsumerHeld { pool, reason }
    }

    #[test]
    fn a_pool_that_is_paused_has_started_and_says_so() {
        let (socket, manager) = listening();
        happens(&manager, &held());
        let told = "READY=1\nSTATUS=pool web: takes no jobs for now: paused";
        assert_eq!(heard(&socket).as_deref(), Some(told));
        happens(&manager, &held());
        assert_eq!(heard(&socket), None, "there is nothing new");
        happens(&manager, &Event::Consuming { pool: "web".into() });
        assert_eq!(heard(&socket).as_deref(), Some("STATUS=takes jobs"));
    }

    #[test]
    fn nothing_is_told_after_the_stop() {
        let (socket, manager) = listening();
        manager.tell_stop(Duration::from_secs(60));
        let stop = heard(&socket).unwrap();
        assert!(
            stop.starts_with("STOPPING=1\n") && stop.ends_with("EXTEND_TIMEOUT_USEC=90000000"),
            "{stop}"
        );
        happens(&manager, &Event::Consuming { pool: "web".into() });
        manager.tell_stop(Duration::from_secs(60));
        assert_eq!(heard(&socket), None);
    }

    #[test]
    fn what_could_not_be_told_is_told_later() {
        let (socket, manager) = listening();
        while manager.send("STATUS=full") {}
        happens(&manager, &Event::Consuming { pool: "web".into() });
        while let Some(told) = heard(&socket) {
            assert_eq!(told, "STATUS=full");
        }
        manager.tell();
        assert_eq!(heard(&socket).as_deref(), Some("READY=1\nSTATUS=takes jobs"));
    }

    #[test]
    fn an_address_of_another_kind_is_no_reason_to_fail() {
        let options = ServiceManagerOptions {
            socket: "vsock:2:1234".into(),
            watchdog: None,
        };
        assert!(ServiceManager::find(options, Health::new(&[])).is_none());
    }
}
