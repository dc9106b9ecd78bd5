//! The JSON Schema of pool files, for editors and for tools that write them: TOML described as JSON.
//!
//! It comes from the types; defaults come from `workers/default.toml`.

use schemars::Schema;
use schemars::transform::transform_subschemas;
use serde_json::Value;
use toml::Table;

use super::keys::{ALLOW, ENV, PROGRAM_RATES};
use super::{DEFAULT_POOL, PoolFile};
use crate::message::schema::without_null;

/// What the types shared with jobs say of their defaults, which is no help in a pool file.
const OF_THE_POOL: &str = " Default: the pool's.";
const CHOICE_OF_THE_POOL: &str = "Default: the pool's; where";
const CHOICE: &str = "Default: where";

/// Returns the schema of a pool file.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(PoolFile);
    without_null(&mut schema); // TOML has none
    without_pool(&mut schema);
    let mut schema = schema.to_value();
    let defaults: Table = DEFAULT_POOL
        .parse()
        .expect("workers/default.toml is compiled in, and tested");
    for (name, value) in defaults {
        match value {
            toml::Value::Table(section) if ![ENV, ALLOW, PROGRAM_RATES].contains(&&*name) => {
                let properties = section_properties(&schema, &name);
                section
                    .into_iter()
                    .for_each(|(name, value)| set_default(&mut schema, &properties, &name, &value));
            }
            value => set_default(&mut schema, "/properties", &name, &value),
        }
    }
    schema
}

/// Takes the pool out of the descriptions as a source of defaults.
fn without_pool(schema: &mut Schema) {
    if let Some(Value::String(description)) = schema.get_mut("description") {
        let one_line = description.split_whitespace().collect::<Vec<_>>().join(" ");
        *description = one_line.replace(OF_THE_POOL, "").replace(CHOICE_OF_THE_POOL, CHOICE);
    }
    transform_subschemas(&mut without_pool, schema);
}

/// Finds where the schema describes the keys of a section, as a JSON pointer.
fn section_properties(schema: &Value, section: &str) -> String {
    let reference = schema["properties"][section]["$ref"].as_str();
    let definition = reference.and_then(|reference| reference.strip_prefix('#'));
    format!("{}/properties", definition.expect("a section has a type of its own"))
}

fn set_default(schema: &mut Value, properties: &str, name: &str, value: &toml::Value) {
    let property = schema.pointer_mut(&format!("{properties}/{name}"));
    let property = property.expect("every key of workers/default.toml is in the schema");
    property["default"] = serde_json::to_value(value).expect("a default is no date, which JSON has not");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::{env, fs};

    use super::*;
    use crate::config::keys::{KEYS, SECTIONS};

    fn names(properties: &Value) -> Vec<&String> {
        properties.as_object().unwrap().keys().collect()
    }

    /// Returns all keys of the schema, written as in [`KEYS`].
    fn keys(schema: &Value) -> BTreeSet<String> {
        let in_section = |section: &String| {
            let properties = schema.pointer(&section_properties(schema, section)).unwrap();
            names(properties)
                .into_iter()
                .map(|name| format!("{section}.{name}"))
                .collect()
        };
        let keys = names(&schema["properties"]).into_iter().flat_map(|name| match &**name {
            ENV | ALLOW | PROGRAM_RATES => vec![format!("{name}.*")],
            section if SECTIONS.contains(&section) => in_section(name),
            _ => vec![name.clone()],
        });
        keys.collect()
    }

    #[test]
    fn the_table_of_keys_is_that_of_the_schema() {
        let table = KEYS.iter().map(|key| key.path.to_owned()).collect();
        assert_eq!(keys(&schema()), table);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "how a developer asks for a new file is no configuration"
    )]
    fn the_schema_in_the_repository_is_the_one_of_the_types() {
        const PATH: &str = "schemas/pool.v1.json";
        let current = crate::message::schema::render(&schema());
        if env::var_os("SYNTHEX_BLESS").is_some() {
            fs::write(PATH, &current).unwrap();
        }
        let kept = fs::read_to_string(PATH).unwrap_or_default();
        assert!(kept == current, "{PATH} is out of date: SYNTHEX_BLESS=1 writes it anew");
    }

    #[test]
    fn the_schema_is_of_toml_and_shows_the_defaults() {
        let schema = schema();
        let text = schema.to_string();
        assert!(
            !text.contains("null") && !text.contains("Default: the pool's"),
            "{text}"
        );
        assert_eq!(schema["$id"], "urn:synthex:pool:v1");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["timeout"]["default"], "1h");
        assert_eq!(schema["properties"]["env"]["default"]["LANG"], "C.UTF-8");
        assert_eq!(
            schema["$defs"]["RetryPolicy"]["properties"]["max_attempts"]["default"],
            1
        );
    }

    /// Says whether a validator that is not the generator accepts a file.
    fn is_valid(text: &str) -> bool {
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("pool.json", schema()).unwrap();
        let mut schemas = boon::Schemas::new();
        let index = compiler.compile("pool.json", &mut schemas).unwrap();
        let file = serde_json::to_value(text.parse::<Table>().unwrap()).unwrap();
        schemas.validate(&file, index).is_ok()
    }

    #[test]
    fn the_schema_accepts_what_loads() {
        assert!(is_valid(DEFAULT_POOL));
        assert!(is_valid(
            &fs::read_to_string("tests/fixtures/pools/render.toml").unwrap()
        ));
        assert!(is_valid(""));
        assert!(is_valid(
            "restricted = true\ndead_letter_exit_codes = [3, 255]\nallow.'/opt/*' = []\nallow.'/bin/a' = ['b|c']"
        ));
        assert!(is_valid("user = 'render'\ngroup = '44'\numask = '0022'\nwritable = []"));
    }

    #[test]
    fn the_schema_refuses_what_does_not_load() {
        for text in [
            "pool = 'a.b'",
            "slots = 0",
            "slots = 10001",
            "prefetch = 65536",
            "handler = []",
            "shell = ['']",
            "dead_letter_exit_codes = [0]",
            "dead_letter_exit_codes = [256]",
            "restricted = 'yes'",
            "allow = ['/bin/echo']",
            "allow.echo = []",
            "allow.'/bin/echo' = 'x'",
            "declare = 'maybe'",
            "delivery_limit = 0",
            "timeout = 'soon'",
            "timeout = 30",
            "term_signal = 'FOO'",
            "warn_before = '0s'",
            "leftovers = 'spare'",
            "user = 1000",
            "group = ''",
            "umask = '999'",
            "umask = '1000'",
            "umask = 22",
            "no_new_privs = 'yes'",
            "writable = ['srv']",
            "writable = '/srv'",
            "cwd = 'srv'",
            "env = 'none'",
            "env.A = 1",
            "env.'A=B' = ''",
            "retry.multiplier = 0.5",
            "retry.exit_codes = [256]",
            "retry.statuses = ['slow']",
            "limits.memory = 512",
            "output.live = 'yes'",
            "output.colour = true",
            "time_out = '30s'",
        ] {
            assert!(!is_valid(text), "{text}");
        }
    }
}
