//! A real Prometheus, and its dashboards as Grafana would ask for them.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use tempfile::TempDir;

use crate::bench::PATIENCE;
use crate::support::cli::{Cli, Running};

/// What Grafana puts in the place of `$__rate_interval`: it has to hold two samples.
const RATE_INTERVAL: &str = "1m";

/// A Prometheus of this test's own.
pub struct Prometheus {
    _running: Running,
    _folder: TempDir,
    address: String,
}

impl Prometheus {
    /// Starts it with a configuration; JSON is YAML.
    pub fn start(config: &Value) -> Self {
        let folder = tempfile::tempdir().expect("the temporary folder can be written");
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).expect("the folder is there");
        let args = [
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
        ];
        let running = Cli::program("prometheus", args).spawn();
        let line = running.wait_for_line(|line| line.contains("Listening on"));
        let address = line.rsplit_once("address=").expect("the line has the address").1;
        running.wait_for_line(|line| line.contains("Server is ready"));
        Self {
            address: address.to_owned(),
            _running: running,
            _folder: folder,
        }
    }

    /// The answer to a query now: a list of series with their labels and values.
    pub fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let answer = self.ask("/api/v1/query", &[("query", query)])?;
        let result = answer["result"].as_array();
        result.cloned().ok_or_else(|| format!("{query}: not a list: {answer}"))
    }

    /// The only value of a query, if it has one.
    pub fn value(&self, query: &str) -> Option<f64> {
        value(self.query(query).ok()?.first()?)
    }

    /// What Grafana makes of `label_values(metric, label)`.
    pub fn label_values(&self, metric: &str, label: &str) -> Result<Vec<String>, String> {
        let answer = self.ask(&format!("/api/v1/label/{label}/values"), &[("match[]", metric)])?;
        serde_json::from_value(answer).map_err(|error| error.to_string())
    }

    /// The targets that it scrapes, with what came of it.
    pub fn targets(&self) -> Vec<Value> {
        let answer = self
            .ask("/api/v1/targets", &[("state", "active")])
            .expect("it answers about its targets");
        answer["activeTargets"].as_array().expect("they are a list").clone()
    }

    /// The rules that it evaluates, with what came of it.
    pub fn rules(&self) -> Vec<Value> {
        let answer = self.ask("/api/v1/rules", &[]).expect("it answers about its rules");
        let groups = answer["groups"].as_array().expect("they are in groups");
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().expect("a group has rules"));
        rules.cloned().collect()
    }

    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let parameters: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{}={}", percent_encoded(name), percent_encoded(value)))
            .collect();
        let (_, body) = get(&self.address, &format!("{path}?{}", parameters.join("&")), None);
        let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer["error"].to_string()),
        }
    }
}

/// A dashboard's query, of one of its panels.
pub struct Target {
    pub panel: String,
    pub query: String,
    legend: String,
}

/// All queries of a dashboard's panels, with its variables filled in as Grafana does for "All".
pub fn targets(dashboard: &Value, prometheus: &Prometheus) -> Vec<Target> {
    let variables = variables(dashboard, prometheus);
    let of_panel = |panel: &Value| {
        let name = text(&panel["title"]);
        let target = |target: &Value| Target {
            panel: name.clone(),
            query: filled_in(text(&target["expr"]), &variables),
            legend: text(&target["legendFormat"]),
        };
        list(&panel["targets"]).map(target).collect::<Vec<_>>()
    };
    list(&dashboard["panels"])
        .filter(|panel| panel["type"] != "row")
        .flat_map(of_panel)
        .collect()
}

/// The queries of its annotations, in the same way. They may have no answer: nothing has happened then.
pub fn annotations(dashboard: &Value, prometheus: &Prometheus) -> Vec<String> {
    let variables = variables(dashboard, prometheus);
    list(&dashboard["annotations"]["list"])
        .map(|annotation| filled_in(text(&annotation["expr"]), &variables))
        .collect()
}

/// The names and values of a dashboard's variables. One may ask with those before it.
fn variables(dashboard: &Value, prometheus: &Prometheus) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for variable in list(&dashboard["templating"]["list"]).filter(|variable| variable["type"] == "query") {
        let definition = filled_in(text(&variable["definition"]), &variables);
        variables.push((text(&variable["name"]), all_of(&definition, prometheus)));
    }
    variables
}

fn filled_in(query: String, variables: &[(String, String)]) -> String {
    let query = query.replace("$__rate_interval", RATE_INTERVAL);
    let fill = |query: String, (name, values): &(String, String)| query.replace(&format!("${name}"), values);
    let query = variables.iter().fold(query, fill);
    assert!(!query.contains('$'), "a variable that nobody declares in {query}");
    query
}

impl Target {
    /// Runs the query; what is wrong with the answer, if anything is.
    pub fn problem(&self, prometheus: &Prometheus) -> Option<String> {
        let wrong = |what: String| Some(format!("{}: {what}: {}", self.panel, self.query));
        let answer = match prometheus.query(&self.query) {
            Ok(answer) => answer,
            Err(error) => return wrong(error),
        };
        // A quantile or a part of nothing is not a number, and drawn as a gap.
        if !answer.iter().filter_map(value).any(f64::is_finite) {
            return wrong(format!("no number in {answer:?}"));
        }
        let labels = self
            .legend
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split("}}").next());
        let mut missing = labels.filter(|label| answer.iter().any(|series| series["metric"][*label].is_null()));
        missing
            .next()
            .and_then(|label| wrong(format!("no label {label:?} for the legend")))
    }
}

/// `(a|b)`, the values of a variable as Grafana writes all of them into a regular expression.
fn all_of(definition: &str, prometheus: &Prometheus) -> String {
    let inner = definition
        .strip_prefix("label_values(")
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|inner| inner.rsplit_once(", "));
    let (metric, label) = inner.unwrap_or_else(|| panic!("not label_values(metric, label): {definition}"));
    let values = prometheus.label_values(metric, label).expect("it answers about labels");
    assert!(!values.is_empty(), "{definition} has no values");
    format!("({})", values.join("|"))
}

/// Asks an HTTP server, as somebody or as nobody: the status and the body.
pub fn get(address: &str, path: &str, user: Option<(&str, &str)>) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit is allowed");
    let login = user.map(|(name, password)| {
        let credentials = BASE64.encode(format!("{name}:{password}"));
        format!("Authorization: Basic {credentials}\r\n")
    });
    // In version 1.0 a body comes as it is, and not in chunks.
    let request = format!(
        "GET {path} HTTP/1.0\r\nHost: {address}\r\n{}\r\n",
        login.unwrap_or_default()
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers with text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("an HTTP answer has a status"), body.to_owned())
}

/// The value of a series of an answer.
pub fn value(series: &Value) -> Option<f64> {
    series["value"][1].as_str()?.parse().ok()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    let text = value.as_str();
    text.unwrap_or_else(|| panic!("a text is expected, not {value}"))
        .to_owned()
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    text.bytes().map(encode).collect()
}
