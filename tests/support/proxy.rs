//! A way between a client and a server on this machine, on which a test can have connections cut or go silent.
//!
//! Each TCP connection to the proxy's port becomes one to the server's, until either end closes it or the test does
//! something to all that are open at that moment; later ones are not concerned.

use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::net::sockopt::set_socket_linger;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A proxy. Dropping it cuts what is open.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// When a connection was of no use any more, from its end, or its silence, to the moment both sides knew.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub from: SystemTime,
    pub to: SystemTime,
}

struct Shared {
    server: u16,
    orders: watch::Sender<Order>,
    losses: Mutex<Vec<Loss>>,
}

/// What is done to the connections that are open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Pass on what comes.
    Pass,
    /// Reset both sides.
    Cut,
    /// Pass nothing on, and keep both sides open: neither learns that the other is out of reach.
    Silence,
    /// Reset both sides where nothing is passed on any more.
    CutSilent,
}

impl Proxy {
    /// Begins to take connections, for a server on this port of 127.0.0.1.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("some port is free");
        let port = listener.local_addr().expect("it listens").port();
        let shared = Arc::new(Shared {
            server,
            orders: watch::Sender::new(Order::Pass),
            losses: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self {
            port,
            shared,
            accepting,
        }
    }

    /// Where clients connect, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections are open, silent ones included.
    pub fn open(&self) -> usize {
        self.shared.orders.receiver_count()
    }

    /// Resets all open connections, silent ones too.
    pub fn cut(&self) {
        self.shared.orders.send_replace(Order::Cut);
    }

    /// Makes all open connections silent, until they are cut.
    pub fn silence(&self) {
        self.shared.orders.send_replace(Order::Silence);
    }

    /// Resets the silent connections.
    pub fn cut_silent(&self) {
        self.shared.orders.send_replace(Order::CutSilent);
    }

    /// The connections that have ended so far, for whatever reason.
    pub fn losses(&self) -> Vec<Loss> {
        self.shared.losses.lock().expect("no holder panics").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let orders = shared.orders.subscribe(); // those that come from now on
                tokio::spawn(connect(client, Arc::clone(&shared), orders));
            }
            // No descriptor is left, or the client has gone again.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn connect(client: TcpStream, shared: Arc<Shared>, orders: watch::Receiver<Order>) {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await;
    // A server that is not there refuses the client as well.
    let Ok(server) = server else { return reset(&client) };
    let (client, server, from) = pass(client, server, orders).await;
    reset(&client);
    reset(&server);
    let loss = Loss {
        from,
        to: SystemTime::now(),
    };
    shared.losses.lock().expect("no holder panics").push(loss);
}

/// Passes everything on until the end; says since when nothing was.
async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    mut orders: watch::Receiver<Order>,
) -> (TcpStream, TcpStream, SystemTime) {
    let silent = {
        let mut passing = pin!(copy_bidirectional(&mut client, &mut server));
        loop {
            tokio::select! {
                _ = &mut passing => break false,
                _ = orders.changed() => match *orders.borrow_and_update() {
                    Order::Cut => break false,
                    Order::Silence => break true,
                    Order::Pass | Order::CutSilent => {}
                },
            }
        }
    };
    let from = SystemTime::now();
    if silent {
        // An error says that the proxy is gone.
        let _ = orders
            .wait_for(|order| matches!(order, Order::Cut | Order::CutSilent))
            .await;
    }
    (client, server, from)
}

/// Has a connection end with a reset instead of a goodbye when it is closed.
fn reset(stream: &TcpStream) {
    // A stream that is closed already has no need of it.
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
}
