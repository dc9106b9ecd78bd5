//! `schemas/asyncapi.yaml` is the contract with programs of other languages: it is valid AsyncAPI, and says of exchanges,
//! queues and headers what the code does, all of it and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use boon::{Compiler, Schemas};
use serde_json::{Map, Value, json};
use synthex::message::Properties;
use synthex::transport::topology::{Argument, Names, Topology};

const FILE: &str = "schemas/asyncapi.yaml";
/// What a pool is called in the contract's names and keys.
const POOL: &str = "{pool}";

/// The same of a batch.
const BATCH: &str = "{batch}";

fn contract() -> Value {
    let text = fs::read_to_string(FILE).expect("it is there");
    serde_saphyr::from_str(&text).expect("it is YAML")
}

fn read(path: &str) -> Value {
    let text = fs::read_to_string(path).expect("it is there");
    serde_json::from_str(&text).expect("it is JSON")
}

/// Says why a value is not what a schema asks for, if it is not.
fn flaw(schema: Value, pointer: &str, value: &Value) -> Option<String> {
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("urn:schema", schema).expect("it is a schema");
    let index = compiler.compile(&format!("urn:schema#{pointer}"), &mut schemas);
    let index = index.unwrap_or_else(|error| panic!("{error:#}"));
    schemas.validate(value, index).err().map(|error| format!("{error:#}"))
}

/// Everything in a value, and the value itself.
fn all(value: &Value) -> Vec<&Value> {
    let inner: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    std::iter::once(value).chain(inner.into_iter().flat_map(all)).collect()
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[test]
fn it_is_a_valid_asyncapi_document() {
    let schema = || read("tests/fixtures/asyncapi/3.0.0.json");
    assert_eq!(flaw(schema(), "", &contract()), None);
    let mut broken = contract();
    broken["channels"]["jobs"]["bindings"]["amqp"]["is"] = "exchange".into();
    assert!(flaw(schema(), "", &broken).is_some(), "the check checks");
}

#[test]
fn every_reference_leads_somewhere() {
    let contract = contract();
    let mut files = BTreeSet::new();
    for reference in all(&contract).iter().filter_map(|value| value.get("$ref")?.as_str()) {
        let (file, pointer) = reference.split_once('#').unwrap_or((reference, ""));
        let target = match file.strip_prefix("./") {
            None => contract.clone(),
            Some(file) => read(&format!("schemas/{file}")),
        };
        assert!(target.pointer(pointer).is_some(), "{reference}");
        files.insert(file.to_owned());
    }
    let schemas = [
        "",
        "./batch.v1.json",
        "./control.v1.json",
        "./event.v1.json",
        "./job.v1.json",
        "./result.v1.json",
    ];
    assert_eq!(files, schemas.map(str::to_owned).into());
}

#[test]
fn every_example_is_what_its_schema_asks_for() {
    for (name, message) in fields(&contract()["components"]["messages"]) {
        let Some(schema) = message["payload"]["schema"]["$ref"].as_str() else {
            assert!(["anything", "deadLetter"].contains(&&**name), "{name} is of any format");
            continue;
        };
        let (file, pointer) = schema.split_once('#').unwrap_or((schema, ""));
        let examples = message["examples"].as_array().expect("a message has examples");
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            let schema = read(&format!("schemas/{}", file.trim_start_matches("./")));
            assert_eq!(flaw(schema, pointer, &example["payload"]), None, "{name}: {example}");
        }
    }
}

/// The names that a name stands for: one for each value of its parameters that are listed.
fn spelled_out(name: &str, channels: &Value) -> Vec<String> {
    let tiers = channels["delayQueue"]["parameters"]["tier"]["enum"].as_array();
    let tiers = tiers.expect("the tiers are listed").iter().map(text);
    let names: BTreeSet<String> = tiers.map(|tier| name.replace("{tier}", tier)).collect();
    names.into_iter().collect()
}

/// What the contract says of the broker: exchanges, queues with their arguments, and bindings, each by name.
type Things = BTreeMap<String, Value>;

/// A time to live is another for each tier, and said by the tier's name.
const TIERED: &str = "x-message-ttl";

fn of_contract() -> (Things, Things, BTreeSet<String>) {
    let channels = contract()["channels"].clone();
    let (mut exchanges, mut queues, mut bindings) = (Things::new(), Things::new(), BTreeSet::new());
    for amqp in fields(&channels).filter_map(|(_, channel)| channel["bindings"].get("amqp")) {
        if let Some(exchange) = amqp.get("exchange") {
            assert_eq!(exchange["durable"], true, "{exchange}");
            let what = json!({"type": exchange["type"], "alternate": exchange["x-arguments"]["alternate-exchange"]});
            for name in spelled_out(text(&exchange["name"]), &channels) {
                let before = exchanges.insert(name.clone(), what.clone());
                assert!(
                    before.is_none_or(|before| before == what),
                    "{name} is described in two ways"
                );
            }
        }
        let Some(queue) = amqp.get("queue") else { continue };
        assert_eq!(queue["durable"], true, "{queue}");
        for name in spelled_out(text(&queue["name"]), &channels) {
            let tier = name.strip_prefix("synthex.delay.").unwrap_or_default();
            for binding in queue["x-bindings"].as_array().expect("a queue has bindings") {
                let exchange = text(&binding["exchange"]).replace("{tier}", tier);
                bindings.insert(format!("{exchange} -> {name}, {:?}", text(&binding["key"])));
            }
            queues.insert(name, queue["x-arguments"].clone());
        }
    }
    (exchanges, queues, bindings)
}

fn of_code() -> (Things, Things, BTreeSet<String>) {
    let names = Names::new("synthex");
    let mut topology = Topology::new(&names, [POOL]);
    let results = Topology::batch(&names, BATCH).queues;
    topology
        .queues
        .extend(results.into_iter().filter(|queue| queue.name.ends_with(BATCH)));
    let exchanges = topology.exchanges.iter().map(|exchange| {
        let what = json!({"type": exchange.kind.as_str(), "alternate": exchange.alternate});
        (exchange.name.clone(), what)
    });
    let queues = topology.queues.iter().map(|queue| {
        let arguments = queue.arguments().into_iter().filter(|(name, _)| *name != TIERED);
        let arguments: Map<String, Value> = arguments.map(|(name, value)| (name.to_owned(), plain(value))).collect();
        (queue.name.clone(), arguments.into())
    });
    let bindings = topology
        .bindings
        .iter()
        .map(|binding| format!("{} -> {}, {:?}", binding.exchange, binding.queue, binding.routing_key));
    (exchanges.collect(), queues.collect(), bindings.collect())
}

fn plain(argument: Argument) -> Value {
    match argument {
        Argument::Text(text) => text.into(),
        Argument::Integer(number) => number.into(),
    }
}

#[test]
fn exchanges_queues_and_bindings_are_those_of_the_code() {
    let (written, made) = (of_contract(), of_code());
    assert_eq!(written.0, made.0, "exchanges");
    assert_eq!(written.1, made.1, "queues");
    assert_eq!(written.2, made.2, "bindings");
}

#[test]
fn headers_are_those_of_the_code() {
    let source = fs::read_to_string("src/message/envelope.rs").expect("it is there");
    let made: BTreeSet<&str> = source
        .lines()
        .filter(|line| line.trim_start().starts_with("pub const "))
        .filter_map(|line| line.split('"').nth(1))
        .filter(|name| name.starts_with("x-synthex-") || name.starts_with("trace"))
        .filter(|name| *name != "x-synthex-")
        .collect();
    assert!(made.len() > 10, "{made:?}");
    let contract = contract();
    let messages = fields(&contract["components"]["messages"]);
    let headers = messages.flat_map(|(_, message)| fields(&message["headers"]["properties"]));
    let written: BTreeSet<&str> = headers.map(|(name, _)| &**name).collect();
    assert_eq!(written, made);
}

#[test]
fn properties_are_those_of_amqp_that_the_code_reads_or_writes() {
    let known = serde_json::to_value(Properties::default()).expect("they are plain");
    let known = fields(&known).map(|(name, _)| if name == "kind" { "type" } else { &**name });
    let known: BTreeSet<&str> = known
        .filter(|name| *name != "headers")
        .chain(["delivery_mode"])
        .collect();
    let contract = contract();
    let messages = fields(&contract["components"]["messages"]);
    let properties = messages.flat_map(|(_, message)| fields(&message["x-properties"]));
    let written: BTreeSet<&str> = properties.map(|(name, _)| &**name).collect();
    assert_eq!(written, known);
}

#[test]
fn the_words_in_routing_keys_are_those_of_the_code() {
    let listed =
        |channel: &str, parameter: &str| contract()["channels"][channel]["parameters"][parameter]["enum"].clone();
    let statuses = synthex::message::Status::ALL.map(|status| status.as_str());
    assert_eq!(listed("results", "status"), json!(statuses));
    let orders = read("schemas/control.v1.json")["$defs"]["Order"]["oneOf"].clone();
    let orders: Vec<Value> = orders
        .as_array()
        .expect("there are several")
        .iter()
        .map(|order| order["properties"]["order"]["const"].clone())
        .collect();
    assert_eq!(listed("orders", "order"), Value::from(orders));
    let events = read("schemas/event.v1.json")["oneOf"].clone();
    let events = events.as_array().expect("there are several").iter();
    let events: Vec<String> = events
        .map(|event| text(&event["properties"]["event"]["const"]).to_owned())
        .collect();
    let words = |about: &str| -> BTreeSet<String> {
        let of = events.iter().filter_map(|event| event.strip_prefix(about));
        of.map(str::to_owned).collect()
    };
    let listed = |channel: &str, parameter: &str| -> BTreeSet<String> {
        serde_json::from_value(listed(channel, parameter)).expect("a list of words")
    };
    assert_eq!(listed("jobEvents", "event"), words("job."));
    assert_eq!(listed("workerEvents", "event"), words("worker."));
    let job = "a.b".parse().expect("it is an id");
    let keys = synthex::message::event::output_keys(&job);
    let keys = keys.iter().map(|key| key.replacen("output.a.b.", "", 1));
    assert_eq!(listed("liveOutput", "what"), keys.collect());
}
