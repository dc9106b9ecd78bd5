//! The JSON Schemas of the messages, generated from their types.
//!
//! `schemas/*.json` are these, written down; a test compares them. They are of draft 2020-12, and
//! their keys are sorted, so that a change of a type shows as a small change of the file.

use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::batch::AnyOfBatches;
use super::control::AnyMessage;
use super::event::Event;
use super::job::Job;
use super::result::JobResult;

/// Returns the JSON Schema of a job, for those who publish one.
pub fn job() -> Value {
    of::<Job>(SchemaSettings::draft2020_12().for_deserialize())
}

/// Returns the JSON Schema of a result, for those who read one.
pub fn result() -> Value {
    of::<JobResult>(SchemaSettings::draft2020_12().for_serialize())
}

/// Returns the JSON Schema of what operators tell workers and of their replies, for tools of one's own.
pub fn control() -> Value {
    of::<AnyMessage>(SchemaSettings::draft2020_12().for_deserialize())
}

/// Returns the JSON Schema of what a program prints.
pub fn printed<T: JsonSchema>() -> Value {
    of::<T>(SchemaSettings::draft2020_12().for_serialize())
}

/// Returns the JSON Schema of what workers publish of themselves, for those who read it.
pub fn event() -> Value {
    of::<Event>(SchemaSettings::draft2020_12().for_serialize())
}

/// Returns the JSON Schema of what is said of batches, for who follows them and for who reads their results.
pub fn batch() -> Value {
    of::<AnyOfBatches>(SchemaSettings::draft2020_12().for_serialize())
}

fn of<T: JsonSchema>(settings: SchemaSettings) -> Value {
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Writes a schema as the files have it: indented, keys sorted, with a line's end at the end.
pub fn render(schema: &Value) -> String {
    let mut schema = schema.clone();
    schema.sort_all_objects();
    format!("{schema:#}\n")
}

/// Takes null out of what a schema allows: for what is left out rather than null when it has no value.
pub fn without_null(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut() {
        drop_null(object);
    }
    transform_subschemas(&mut without_null, schema);
}

/// Makes the schema of `T` of that of `Option<T>`.
fn drop_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = &types[..] {
            object["type"] = only.clone();
        }
    }
    let Some(Value::Array(choices)) = object.get_mut("anyOf") else {
        return;
    };
    choices.retain(|choice| choice["type"] != "null");
    if let [Value::Object(only)] = &choices[..] {
        let only = only.clone();
        object.remove("anyOf");
        object.extend(only);
    }
}
