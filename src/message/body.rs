//! What a message holds: bytes, and beside them what they say, where this process has written them itself.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::JobResult;

/// The bytes of a message, cheap to clone.
///
/// A result that this process wrote stays with its bytes, so that who takes it in the same process, as `synthex run` does
/// by its embedded broker, need not read them. Bytes that came from anywhere else are read.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(from = "Bytes", into = "Bytes")]
pub struct Body {
    bytes: Bytes,
    result: Option<Arc<JobResult>>,
}

impl Body {
    /// Reads a result, unless it is known.
    ///
    /// # Errors
    ///
    /// Those of [`JobResult::decode`].
    pub fn result(&self) -> Result<Arc<JobResult>, serde_json::Error> {
        match &self.result {
            Some(result) => Ok(result.clone()),
            None => JobResult::decode(&self.bytes).map(Arc::new),
        }
    }
}

impl Deref for Body {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

/// A result as [`JobResult::encode`] writes it.
impl From<&Arc<JobResult>> for Body {
    fn from(result: &Arc<JobResult>) -> Self {
        Self {
            bytes: result.encode(),
            result: Some(result.clone()),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, result: None }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from(text).into()
    }
}

impl From<Body> for Bytes {
    fn from(body: Body) -> Self {
        body.bytes
    }
}

/// By the bytes alone.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

/// Shows the length only: there may be secrets in it, and `Debug` ends in logs.
impl fmt::Debug for Body {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} bytes", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result() -> Arc<JobResult> {
        let worker = json!({"id": "w", "host": "h", "pool": "p", "version": "0"});
        let stream = json!({"text": "", "encoding": "utf-8", "bytes": 0, "truncated_bytes": 0});
        let result = json!({
            "job_id": "a", "attempt": 1, "status": "succeeded", "final": true, "stdout": stream, "stderr": stream,
            "finished_at": "2026-01-31T12:00:00Z", "duration_ms": 1, "worker": worker,
        });
        Arc::new(serde_json::from_value(result).unwrap())
    }

    #[test]
    fn a_result_is_what_its_bytes_say_whether_they_are_read_or_not() {
        let body = Body::from(&result());
        let kept = body.result().unwrap();
        assert!(Arc::ptr_eq(&kept, &body.result().unwrap()), "it was read");
        let came: Body = serde_json::from_value(serde_json::to_value(&body).unwrap()).unwrap();
        assert_eq!(came, body);
        let read = came.result().unwrap();
        assert_eq!(read, kept);
        assert!(!Arc::ptr_eq(&read, &kept), "bytes that came are read");
    }

    #[test]
    fn what_is_no_result_is_an_error() {
        assert!(Body::from("{}").result().is_err());
        assert_eq!(format!("{:?}", Body::from("secret")), "6 bytes");
    }
}
