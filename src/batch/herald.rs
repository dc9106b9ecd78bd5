//! What a submitter says of its batch to those who are elsewhere.

use std::collections::BTreeMap;

use super::BatchId;
use crate::message::envelope::JSON;
use crate::message::{BatchEvent, BatchRecord, Envelope, JobId, Properties, Status};
use crate::transport::topology::Names;
use crate::transport::{Publication, Routing};

/// Who speaks, and of which batch.
#[derive(Clone, Debug)]
pub struct Herald {
    /// The namespace.
    pub names: Names,
    /// The batch.
    pub batch: BatchId,
    /// The pool of its jobs.
    pub pool: String,
    /// Who submits it, for people.
    pub by: String,
}

impl Herald {
    /// The message that says so. The log has to take it.
    #[must_use]
    pub fn say(&self, event: BatchEvent, total: Option<u64>, finished: BTreeMap<Status, u64>) -> Publication {
        let record = BatchRecord {
            batch: self.batch.to_string(),
            event,
            pool: self.pool.clone(),
            at: crate::message::now(),
            by: Some(self.by.clone()),
            total,
            finished,
        };
        Publication {
            exchange: self.names.batches(),
            routing_key: String::new(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: record.encode().into(),
                properties: Properties {
                    content_type: Some(JSON.to_owned()),
                    message_id: Some(JobId::random().to_string()),
                    timestamp: u64::try_from(record.at.as_second()).ok(),
                    ..Properties::default()
                },
            }
            .into(),
        }
    }
}
