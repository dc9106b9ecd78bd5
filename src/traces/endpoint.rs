//! Where the receiver of traces is, and how it is asked: one POST on a connection of its own, by HTTP/1.1.
//!
//! A connection a request costs next to nothing on the machine or network that a receiver is in, and there is none that
//! could have died since. No TLS: a collector beside the worker has it, and the patience for receivers far away.

use std::fmt;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What is added to the address that one receiver has for all signals.
const PATH: &str = "/v1/traces";
const PROTOBUF: &str = "application/x-protobuf";
/// Most bytes of an answer: it says little more than yes.
const ANSWER_MAX: usize = 64 * 1024;

/// A receiver's address: `http://host:port`, with a path before `/v1/traces` if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port, as they are said to it.
    authority: String,
    host: String,
    port: u16,
    path: String,
}

/// Headers for the receiver, such as those that let us in.
#[derive(Clone, Default)]
pub struct Headers(HeaderMap);

/// Why there is nowhere to send traces to. Never repeats a value, which may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No address of a receiver.
    #[error("expected the address of a receiver such as http://127.0.0.1:4318, {0}")]
    Address(&'static str),
    /// No list of headers.
    #[error("expected headers as name=value,name=value, percent-encoded; the {0}. of them is none")]
    Header(usize),
}

impl Endpoint {
    /// Reads an address.
    ///
    /// # Errors
    /// [`EndpointError::Address`] for anything but an `http://` address without a user and a query.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let uri: Uri = text.parse().map_err(|_| EndpointError::Address("and this is none"))?;
        let authority = uri
            .authority()
            .ok_or(EndpointError::Address("with http:// and a host"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(EndpointError::Address(
                    "without TLS: let a collector on this machine or network pass the traces on by https",
                ));
            }
            _ => return Err(EndpointError::Address("with http://")),
        }
        if authority.as_str().contains('@') {
            return Err(EndpointError::Address(
                "without user and password: those go into --otlp-headers",
            ));
        }
        if uri.query().is_some() {
            return Err(EndpointError::Address("without a query"));
        }
        Ok(Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            path: format!("{}{PATH}", uri.path().trim_end_matches('/')),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}{}", self.authority, self.path)
    }
}

impl Headers {
    /// Reads `name=value,name=value`, the values percent-encoded, as OpenTelemetry has it.
    ///
    /// # Errors
    /// [`EndpointError::Header`], with the place of what is none.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let mut headers = HeaderMap::new();
        let items = text.split(',').enumerate().filter(|(_, item)| !item.trim().is_empty());
        for (at, item) in items {
            let (name, value) = header(item).ok_or(EndpointError::Header(at + 1))?;
            headers.insert(name, value);
        }
        Ok(Self(headers))
    }
}

fn header(item: &str) -> Option<(HeaderName, HeaderValue)> {
    // A form's pair is percent-encoded too, but has other plans for these.
    let pair = item.trim().replace('+', "%2B").replace('&', "%26");
    let (name, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
    let name = name.trim().parse::<HeaderName>().ok().filter(|_| item.contains('='))?;
    let mut value = HeaderValue::from_str(value.trim_matches(' ')).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// Shows the names alone.
impl fmt::Debug for Headers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.0.keys()).finish()
    }
}

/// Why a request came to nothing; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("reach {0}: {1}")]
    Unreachable(Endpoint, #[source] io::Error),
    #[error("talk to {0}: {1}")]
    Broken(Endpoint, String),
    #[error("have an answer from {0} within {1:?}")]
    Slow(Endpoint, Duration),
    #[error("have traces taken by {0}: it answers {1}")]
    Refused(Endpoint, StatusCode),
}

impl PostError {
    /// Whether the same request may succeed later. Of answers, OTLP says which do not mean the request itself.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(..) | Self::Broken(..) | Self::Slow(..) => true,
            Self::Refused(_, status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

/// Sends a body and gives the answer's.
///
/// # Cancel safety
/// Dropped, the connection is closed; the receiver may have taken the body.
pub(super) async fn post(to: &Endpoint, headers: &Headers, body: Vec<u8>, limit: Duration) -> Result<Bytes, PostError> {
    let posted = timeout(limit, post_unbounded(to, headers, body)).await;
    posted.unwrap_or_else(|_| Err(PostError::Slow(to.clone(), limit)))
}

async fn post_unbounded(to: &Endpoint, headers: &Headers, body: Vec<u8>) -> Result<Bytes, PostError> {
    let broken = |error: &dyn fmt::Display| PostError::Broken(to.clone(), error.to_string());
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await;
    let stream = stream.map_err(|error| PostError::Unreachable(to.clone(), error))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
    let mut request = Request::post(&to.path)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| broken(&error))?;
    *request.headers_mut() = headers.0.clone();
    request.headers_mut().extend([
        (HOST, HeaderValue::from_str(&to.authority).expect("it is part of a URI")),
        (CONTENT_TYPE, HeaderValue::from_static(PROTOBUF)),
        (CONNECTION, HeaderValue::from_static("close")),
    ]);
    let answer = async move {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        if !answer.status().is_success() {
            return Err(PostError::Refused(to.clone(), answer.status()));
        }
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        Ok(body.map_err(|error| broken(&error))?.to_bytes())
    };
    // The answer says what there is to say of the connection.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_a_port_and_a_path_before_ours() {
        for (text, host, port, shown) in [
            (
                "http://localhost:4318",
                "localhost",
                4318,
                "http://localhost:4318/v1/traces",
            ),
            ("http://collector/", "collector", 80, "http://collector/v1/traces"),
            (
                "http://[::1]:4318/otlp/",
                "::1",
                4318,
                "http://[::1]:4318/otlp/v1/traces",
            ),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port));
            assert_eq!(endpoint.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_of_a_receiver_is_refused_and_not_repeated() {
        for text in [
            "",
            "localhost:4318",
            "/v1/traces",
            "grpc://localhost:4317",
            "https://localhost:4318",
            "http://user:hush@localhost",
            "http://localhost?token=hush",
            "http://hush hush",
        ] {
            let error = Endpoint::parse(text).unwrap_err().to_string();
            assert!(
                error.contains("such as http://127.0.0.1:4318, ") && !error.contains("hush"),
                "{error}"
            );
        }
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let headers = Headers::parse("authorization=Basic%20aHVzaA+/==, x-tenant = blue&red ,").unwrap();
        let value = |name: &str| headers.0[name].to_str().unwrap();
        assert_eq!(
            (value("authorization"), value("x-tenant")),
            ("Basic aHVzaA+/==", "blue&red")
        );
        assert!(!format!("{headers:?}").contains("Basic"), "{headers:?}");
        for (bad, at) in [("hush", 1), ("a=b,bad name=hush", 2), ("a=%0Ahush", 1), ("=hush", 1)] {
            assert_eq!(Headers::parse(bad).unwrap_err(), EndpointError::Header(at), "{bad}");
        }
        assert!(Headers::parse("").unwrap().0.is_empty());
    }
}
