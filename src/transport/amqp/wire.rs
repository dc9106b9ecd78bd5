//! Our envelope and AMQP's properties, one into the other.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

use super::short;
use crate::message::{Envelope, HeaderValue, Properties};
use crate::transport::TransportError;

/// AMQP's `delivery_mode` of a message that survives a broker restart.
const PERSISTENT: u8 = 2;

/// The properties of a message on its way out.
///
/// # Errors
/// When one of them is longer than AMQP's 255 bytes.
pub(super) fn properties(properties: &Properties) -> Result<BasicProperties, TransportError> {
    type Setter = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<String>, Setter); 8] = [
        (&properties.content_type, BasicProperties::with_content_type),
        (&properties.content_encoding, BasicProperties::with_content_encoding),
        (&properties.app_id, BasicProperties::with_app_id),
        (&properties.message_id, BasicProperties::with_message_id),
        (&properties.correlation_id, BasicProperties::with_correlation_id),
        (&properties.reply_to, BasicProperties::with_reply_to),
        (&properties.kind, BasicProperties::with_type),
        (&properties.user_id, BasicProperties::with_user_id),
    ];
    let mut wire = BasicProperties::default().with_delivery_mode(PERSISTENT);
    for (value, set) in texts {
        if let Some(value) = value {
            wire = set(wire, short(value)?);
        }
    }
    if let Some(priority) = properties.priority {
        wire = wire.with_priority(priority);
    }
    if let Some(timestamp) = properties.timestamp {
        wire = wire.with_timestamp(timestamp);
    }
    Ok(wire.with_headers(table(&properties.headers)?))
}

/// A message that came in.
pub(super) fn envelope(properties: BasicProperties, body: Vec<u8>) -> Envelope {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let headers = properties.headers().as_ref().map_or_else(BTreeMap::new, map);
    Envelope {
        body: body.into(),
        properties: Properties {
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            app_id: text(properties.app_id()),
            message_id: text(properties.message_id()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            kind: text(properties.kind()),
            user_id: text(properties.user_id()),
            priority: *properties.priority(),
            timestamp: *properties.timestamp(),
            headers,
        },
    }
}

fn table(headers: &BTreeMap<String, HeaderValue>) -> Result<FieldTable, TransportError> {
    let mut table = FieldTable::default();
    for (name, header) in headers {
        if let Some(header) = value(header)? {
            table.insert(short(name)?, header);
        }
    }
    Ok(table)
}

fn value(header: &HeaderValue) -> Result<Option<AMQPValue>, TransportError> {
    Ok(Some(match header {
        HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
        HeaderValue::Int(number) => AMQPValue::LongLongInt(*number),
        HeaderValue::Bool(flag) => AMQPValue::Boolean(*flag),
        HeaderValue::Float(number) => AMQPValue::Double(*number),
        HeaderValue::List(items) => {
            let mut list = FieldArray::default();
            for item in items {
                if let Some(item) = value(item)? {
                    list.push(item);
                }
            }
            AMQPValue::FieldArray(list)
        }
        HeaderValue::Table(headers) => AMQPValue::FieldTable(table(headers)?),
        HeaderValue::Other => return Ok(None), // of a kind nobody here reads
    }))
}

fn map(table: &FieldTable) -> BTreeMap<String, HeaderValue> {
    let entry = |(name, value): (&ShortString, &AMQPValue)| (name.to_string(), header(value));
    table.inner().iter().map(entry).collect()
}

fn header(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::LongString(text) => HeaderValue::Text(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => HeaderValue::Text(text.to_string()),
        AMQPValue::Boolean(flag) => HeaderValue::Bool(*flag),
        AMQPValue::Double(number) => HeaderValue::Float(*number),
        AMQPValue::Float(number) => HeaderValue::Float(f64::from(*number)),
        AMQPValue::ShortShortInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::ShortUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongUInt(number) => HeaderValue::Int(i64::from(*number)),
        AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
        AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).map_or(HeaderValue::Other, HeaderValue::Int),
        AMQPValue::FieldArray(items) => HeaderValue::List(items.as_slice().iter().map(header).collect()),
        AMQPValue::FieldTable(fields) => HeaderValue::Table(map(fields)),
        _ => HeaderValue::Other,
    }
}
