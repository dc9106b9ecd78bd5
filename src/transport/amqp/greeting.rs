//! What a broker says of itself before anybody has logged in.
//!
//! The client library keeps the greeting (`connection.start`, AMQP 0-9-1 section 1.4.2.1) to itself, and the broker's
//! version is in it. So it is asked for once, on a connection of its own that ends there.

use std::time::Duration;

use lapin::uri::AMQPUri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::socket;
use super::tls::Tls;

/// How long the greeting may take.
const LIMIT: Duration = Duration::from_secs(3);

/// What a client says first.
const HEADER: &[u8] = b"AMQP\0\0\x09\x01";

/// Most bytes of a greeting that are read: RabbitMQ's has about 500.
const MOST: usize = 8 * 1024;

/// The server property that holds the version: its name as a short string, and the type of its value.
const VERSION: &[u8] = b"\x07versionS";

/// The version of the broker at one host; `None` if it does not say.
pub(super) async fn version(uri: &AMQPUri, tls: Option<&Tls>) -> Option<String> {
    tokio::time::timeout(LIMIT, ask(uri, tls)).await.ok()?
}

async fn ask(uri: &AMQPUri, tls: Option<&Tls>) -> Option<String> {
    let mut stream = socket::open(uri, tls).await.ok()?;
    stream.write_all(HEADER).await.ok()?;
    stream.flush().await.ok()?;
    let mut greeting = Vec::with_capacity(1024);
    while greeting.len() < MOST && stream.read_buf(&mut greeting).await.ok()? > 0 {
        if let Some(version) = read(&greeting) {
            return Some(version);
        }
    }
    None
}

/// Finds the version in what has come of a greeting.
fn read(greeting: &[u8]) -> Option<String> {
    let at = greeting.windows(VERSION.len()).position(|window| window == VERSION)?;
    let rest = &greeting[at + VERSION.len()..];
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    String::from_utf8(rest.get(..length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_once_all_of_it_is_there() {
        let greeting = b"\x01\0\0\0\0\x01\xf2\0\x0a\0\x0a\0\x09\0\0\x01\xcd\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8rest";
        assert_eq!(read(greeting).as_deref(), Some("3.10.8"));
        for end in 0..greeting.len() - 4 {
            assert_eq!(read(&greeting[..end]), None, "cut at {end}");
        }
        assert_eq!(read(b"\x07versionS\xff\xff\xff\xffx"), None);
        assert_eq!(read(b"HTTP/1.1 400 Bad Request"), None);
    }
}
