//! A connection to a host before anything is said in AMQP, by TLS or without.
//!
//! It is opened here and handed to lapin when it is ready: lapin's own way would take only the certificates that it
//! likes, says little about what is wrong with one, and leaks a thread when it is given up half-way. Above TLS stands a
//! [`screen`](super::screen).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::address::host;
use super::screen::Screened;
use super::tls::Tls;
use crate::transport::TransportError;

/// Bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) type Socket = Box<dyn Duplex>;

/// What lapin gets of it.
type HandedSocket = Compat<Screened<Socket>>;

/// Connects to the host of `uri`.
///
/// # Cancel safety
/// Cancel safe: a connection that is not there yet is dropped.
pub(super) async fn open(uri: &AMQPUri, tls: Option<&Tls>) -> Result<Socket, TransportError> {
    let stream = connect(uri).await.map_err(|error| TransportError::Unreachable {
        host: host(uri),
        reason: error.to_string(),
    })?;
    match tls {
        Some(tls) => Ok(Box::new(
            tls.shake_hands(&uri.authority.host, &host(uri), stream).await?,
        )),
        None => Ok(Box::new(stream)),
    }
}

async fn connect(uri: &AMQPUri) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await?;
    // Acknowledgements are small, and what waits for them is not to wait for more of them.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Logs in over a connection that is open.
///
/// # Cancel safety
/// Given up, it leaks a thread and the socket until the other end closes.
pub(super) async fn log_in(
    socket: Socket,
    uri: AMQPUri,
    properties: ConnectionProperties,
) -> Result<Connection, lapin::Error> {
    let socket = Mutex::new(Some(Screened::new(socket).compat()));
    // Asked for more than once only by lapin's recovery, which is off.
    let hand_over = async move |_, _| {
        let socket = socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        socket
            .map(AsyncTcpStream::Plain)
            .ok_or_else(|| nothing_to_connect().into())
    };
    let tokio = Tokio::current();
    let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), HandedOver(tokio)));
    Connection::connector(uri, runtime, hand_over, properties).await
}

/// Tokio's clock, for sockets that are open before they are asked for.
#[derive(Clone, Debug)]
struct HandedOver(Tokio);

impl Reactor for HandedOver {
    type TcpStream = HandedSocket;
    type Sleep = <Tokio as Reactor>::Sleep;

    #[expect(refining_impl_trait, reason = "there is no socket of any type")]
    fn register<H: io::Read + io::Write + Send + 'static>(&self, _: H) -> io::Result<HandedSocket> {
        Err(nothing_to_connect())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<HandedSocket>> + Send + 'static {
        std::future::ready(Err(nothing_to_connect()))
    }
}

fn nothing_to_connect() -> io::Error {
    io::Error::other("the connection was handed over before")
}
