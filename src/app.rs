//! Puts the parts together: the only place where concrete types are chosen.
//!
//! [`serve`] is `synthex worker`: pools of a RabbitMQ broker until somebody says stop. [`local`] is `synthex run`: the
//! same worker on the embedded broker. Both are one supervision tree; its children are started in the order in which
//! they are added and stopped in the reverse one, so signals are heard and metrics served to the end.

pub mod local;
mod outbox;
mod service_manager;
mod signals;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::config::Pool;
use crate::control::{Board, BoardPool, Control};
use crate::events::Publisher;
use crate::executor::SpawnerOptions;
pub use outbox::{OutboxChoice, OutboxOptions};
pub use service_manager::ServiceManagerOptions;

use crate::executor;
pub use crate::executor::spawner::{end_by, serve_soon};
pub use crate::executor::{CgroupChoice, CgroupSupport, Spawners, StartError as SpawnersError, landlock_abi};
use crate::flow::LockAccount;
use crate::flow::channel::Channels;
use crate::message::JobId;
use crate::metrics::{self, Health, Metrics, PoolInfo, Sources};
use crate::supervise::{self, Budget, Child, Restart, Shutdown, StopReport, Strategy, Supervisor, TaskAccounts};
pub use crate::traces::{Endpoint, Headers, TraceOptions};
use crate::traces::{Exporter, Scene};
use crate::transport::amqp::{Access, Addresses, Amqp, AmqpConfig};
use crate::transport::topology::{Declare, Names};
use crate::transport::{BrokerObserver, Transport, TransportError, memory};
use crate::worker::event::{Event, Observer, Observers};
use crate::worker::log::EventLog;
use crate::worker::orders::Orders;
use crate::worker::spool::SpoolError;
use crate::worker::trail::Tracer;
use crate::worker::{self, Audience, Circuits, Elsewhere, Ending, Holds, Identity, InHand, Ledgers, Watch, Worker};
use service_manager::ServiceManager;
pub use signals::Signals;

/// Restarts that are still a stumble; more in that time are a fall.
const RESTARTS: Budget = Budget {
    restarts: 10,
    within: Duration::from_secs(60),
};

/// Starts the helper processes of a worker, which is to be done before there is a runtime.
///
/// # Errors
/// When a process cannot be started, or a cgroup that was named cannot be used.
pub fn start_spawners(cgroup: CgroupChoice) -> Result<Spawners, SpawnersError> {
    Spawners::start(SpawnerOptions::service(cgroup))
}

/// What `synthex worker` needs to know.
pub struct ServeOptions {
    /// The pools to serve, at least one, each under its own name.
    pub pools: Vec<Pool>,
    /// Who starts commands.
    pub spawners: Spawners,
    /// How to be let in by the broker.
    pub access: Access,
    /// Its hosts and virtual host at the start.
    pub addresses: Addresses,
    /// What the names of exchanges and queues begin with.
    pub namespace: String,
    /// Where to serve metrics; `None` for nowhere.
    pub metrics_addr: Option<String>,
    /// Where results wait on disk while the broker is away.
    pub outbox: OutboxOptions,
    /// Who started the worker and wants to hear how it is; `None` for nobody.
    pub service_manager: Option<ServiceManagerOptions>,
    /// Where traces go; `None` for nowhere.
    pub traces: Option<TraceOptions>,
}

/// How a worker ended.
pub struct Ended {
    /// What the supervision tree says: tasks that are left, a child that was given up.
    pub report: StopReport,
    /// What was given back and why it stopped.
    pub ending: Ending,
}

/// Why a worker did not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The metrics could not be set up.
    #[error("set up metrics: {0}")]
    Metrics(#[from] metrics::MetricsError),
    /// Signals could not be caught.
    #[error("catch signals: {0}")]
    Signals(#[source] std::io::Error),
    /// The address for the metrics cannot be used.
    #[error("{0}")]
    Bind(#[source] std::io::Error),
    /// The directory that was named for the outbox cannot be used.
    #[error(transparent)]
    Outbox(#[from] SpoolError),
    /// The embedded broker refused its own topology, or a client could not use the broker.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Serves pools until a signal (or a hopeless error) ends it.
///
/// # Errors
/// [`StartError`], before any job was taken.
pub async fn serve(options: ServeOptions) -> Result<Ended, StartError> {
    let shutdown = Shutdown::new();
    let parts = Parts::new(
        &options.pools,
        &options.namespace,
        options.spawners,
        options.service_manager,
        Audience::default(),
    )?;
    let publisher = Publisher::new(
        parts.identity.id.clone(),
        parts.audience.clone(),
        options
            .pools
            .iter()
            .filter(|pool| pool.events)
            .map(|pool| pool.name.clone()),
        &parts.channels,
        Arc::new(parts.metrics.clone()),
    );
    let parts = parts
        .told_to(publisher.clone())
        .traced(options.traces, "rabbitmq", &options.namespace);
    let listener = parts.bind(options.metrics_addr.as_deref()).await?;
    let destination = outbox::Destination::new(&options.namespace, &options.addresses);
    let mut config = AmqpConfig::new(options.access);
    config.observer = broker_observer(parts.observer.clone());
    let transport = Amqp::new(config);
    let declare = declare(&options.pools);
    let mut worker = parts.worker(
        transport.clone(),
        &options.namespace,
        Orders::unread(Holds::default()),
        &shutdown,
    );
    worker.spool = outbox::open(options.outbox, &destination, &worker).await?;
    let control = Arc::new(Control::of(&worker, parts.board.clone(), declare, shutdown.clone()));
    let mut children = control.children();
    let state = move || control.state();
    children.push(publisher.child(transport.clone(), worker.names.clone(), declare, state));
    let report = parts
        .tree(&worker, children, options.pools, listener, &shutdown)
        .run(shutdown)
        .await;
    transport.close().await;
    if let Some(spool) = worker.spool {
        spool.close().await;
    }
    Ok(Ended {
        report,
        ending: worker.ending,
    })
}

/// What every worker has, whatever its transport.
struct Parts {
    signals: Signals,
    spawners: Spawners,
    service_manager: Option<Arc<ServiceManager>>,
    metrics: Metrics,
    health: Health,
    board: Board,
    observer: Arc<dyn Observer>,
    identity: Identity,
    audience: Audience,
    channels: Channels,
    tasks: TaskAccounts,
    traces: Option<(Arc<Exporter>, Tracer)>,
}

impl Parts {
    fn new(
        pools: &[Pool],
        namespace: &str,
        spawners: Spawners,
        service_manager: Option<ServiceManagerOptions>,
        audience: Audience,
    ) -> Result<Self, StartError> {
        let (channels, tasks) = (Channels::default(), TaskAccounts::default());
        let infos: Vec<PoolInfo> = pools.iter().map(info).collect();
        let metrics = Metrics::new(
            &infos,
            Sources {
                namespace: namespace.to_owned(),
                channels: channels.clone(),
                tasks: tasks.clone(),
                locks: locks(),
                spawners: spawners.account(),
            },
        )?;
        let health = Health::new(&infos);
        let board = Board::new(pools.iter().map(board_pool));
        let mut observers: Vec<Arc<dyn Observer>> = vec![
            Arc::new(metrics.clone()),
            Arc::new(health.clone()),
            Arc::new(board.clone()),
            Arc::new(EventLog),
        ];
        let service_manager = service_manager.and_then(|options| ServiceManager::find(options, health.clone()));
        // After what it reads, the health.
        observers.extend(service_manager.clone().map(|manager| manager as Arc<dyn Observer>));
        let observer = Arc::new(Observers(observers));
        Ok(Self {
            signals: Signals::new().map_err(StartError::Signals)?,
            spawners,
            service_manager,
            metrics,
            health,
            board,
            observer,
            identity: identity(),
            audience,
            channels,
            tasks,
            traces: None,
        })
    }

    /// With one more observer, after the others.
    fn told_to(self, observer: impl Observer) -> Self {
        let observers = vec![self.observer, Arc::new(observer)];
        Self {
            observer: Arc::new(Observers(observers)),
            ..self
        }
    }

    /// Has the traces of jobs sent, if they are to go somewhere.
    fn traced(mut self, options: Option<TraceOptions>, system: &'static str, namespace: &str) -> Self {
        self.traces = options.map(|options| {
            let scene = Scene {
                service: options.service.clone(),
                worker: self.identity.clone(),
                names: Names::new(namespace),
                system,
            };
            let (exporter, tracer) = Exporter::new(options, scene, &self.channels, self.observer.clone());
            (Arc::new(exporter), tracer)
        });
        self
    }

    async fn bind(&self, addr: Option<&str>) -> Result<Option<TcpListener>, StartError> {
        let Some(addr) = addr else { return Ok(None) };
        let listener = metrics::bind(addr).await.map_err(StartError::Bind)?;
        if let Ok(local) = listener.local_addr() {
            tracing::info!("metrics on http://{local}/metrics");
        }
        Ok(Some(listener))
    }

    fn worker<T: Transport>(&self, transport: T, namespace: &str, orders: Orders, shutdown: &Shutdown) -> Worker<T> {
        Worker {
            circuits: Circuits::new(&self.observer, Elsewhere::Workers),
            transport,
            names: Names::new(namespace),
            spawners: self.spawners.clone(),
            holds: orders.holds().clone(),
            orders,
            audience: self.audience.clone(),
            identity: self.identity.clone(),
            observer: self.observer.clone(),
            channels: self.channels.clone(),
            tasks: self.tasks.clone(),
            ending: Ending::new(shutdown.clone()),
            in_hand: InHand::default(),
            ledgers: Ledgers::default(),
            spool: None,
            watch: Watch::default(),
            tracer: self.traces.as_ref().map(|(_, tracer)| tracer.clone()),
        }
    }

    fn tree<T: Transport>(
        self,
        worker: &Worker<T>,
        control: Vec<Child>,
        pools: Vec<Pool>,
        listener: Option<TcpListener>,
        shutdown: &Shutdown,
    ) -> Supervisor {
        let observer = self.observer.clone();
        let mut tree = Supervisor::new("worker", Strategy::OneForOne, RESTARTS, self.tasks.clone())
            .on_event(move |event| observer.on(&Event::Supervised(event.clone())));
        tree = tree.child(signals::child(self.signals, shutdown.clone(), self.observer.clone()));
        if let Some(manager) = self.service_manager {
            tree = tree.child(service_manager::child(manager, shutdown.clone(), longest_stop(&pools)));
        }
        tree = tree.child(spawners_child(self.spawners));
        if let Some(listener) = listener {
            tree = tree.child(metrics_server(listener, self.metrics, self.health));
        }
        if let Some((exporter, _)) = self.traces {
            tree = tree.child(trace_exporter(exporter));
        }
        tree = control.into_iter().fold(tree, Supervisor::child);
        if let Some(replay) = worker.replay(declare(&pools)) {
            tree = tree.child(replay);
        }
        for pool in pools {
            for child in worker.children(&Arc::new(pool)) {
                tree = tree.child(child);
            }
        }
        tree
    }
}

fn spawners_child(spawners: Spawners) -> Child {
    Child::new("spawners", Restart::Permanent, move |shutdown| {
        let spawners = spawners.clone();
        async move {
            tokio::select! {
                () = spawners.run() => {}
                () = shutdown.draining() => {}
            }
            Ok(())
        }
    })
}

fn metrics_server(listener: TcpListener, metrics: Metrics, health: Health) -> Child {
    let listener = Arc::new(listener);
    Child::new("metrics_server", Restart::Permanent, move |shutdown| {
        let (listener, metrics, health) = (listener.clone(), metrics.clone(), health.clone());
        async move { Ok(metrics::serve(listener, metrics, health, shutdown).await?) }
    })
}

/// Every lock that many tasks go through.
fn locks() -> Vec<&'static LockAccount> {
    let shared = [&executor::LOCK, &memory::LOCK, &supervise::LOCK];
    worker::LOCKS.into_iter().chain(shared).collect()
}

fn trace_exporter(exporter: Arc<Exporter>) -> Child {
    Child::new("trace_exporter", Restart::Permanent, move |shutdown| {
        let exporter = exporter.clone();
        async move {
            exporter.run(&shutdown).await;
            Ok(())
        }
    })
}

/// The `stop_grace` of the pool that has the longest.
fn longest_stop(pools: &[Pool]) -> Duration {
    pools.iter().map(|pool| pool.stop_grace).max().unwrap_or_default()
}

fn info(pool: &Pool) -> PoolInfo {
    PoolInfo {
        name: pool.name.clone(),
        slots: pool.slots,
        prefetch: pool.prefetch,
    }
}

fn board_pool(pool: &Pool) -> BoardPool {
    BoardPool {
        name: pool.name.clone(),
        slots: pool.slots,
    }
}

/// Whether the worker may declare what is not one pool's: if one of its pools may.
fn declare(pools: &[Pool]) -> Declare {
    if pools.iter().any(|pool| pool.declare == Declare::Active) {
        Declare::Active
    } else {
        Declare::Passive
    }
}

/// The transport's events as events of the worker.
fn broker_observer(observer: Arc<dyn Observer>) -> BrokerObserver {
    Arc::new(move |event| observer.on(&Event::Broker(event)))
}

/// Host, process, and something that a restart under the same process number does not share.
fn identity() -> Identity {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let random = JobId::random().to_string();
    let tail = &random[random.len() - 6..];
    let id = format!("{}-{}-{tail}", host.replace('.', "-"), std::process::id());
    Identity { id, host }
}
