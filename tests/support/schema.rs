//! Holds what programs print against the schemas in the repository.

use std::fs;
use std::path::Path;

use boon::{Compiler, Schemas};
use serde_json::Value;

/// Whether the schema `what` describes a value, as this one of its kinds or any.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn assert_described(value: &Value, what: &str, kind: Option<&str>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{what}.v1.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(file).expect("it is there")).expect("it is JSON");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("urn:it", schema).expect("it is a schema");
    let at = kind.map_or_else(|| "urn:it".to_owned(), |kind| format!("urn:it#/$defs/{kind}"));
    let index = compiler
        .compile(&at, &mut schemas)
        .unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = schemas.validate(value, index) {
        panic!("{value:#}\n{error:#}");
    }
}
