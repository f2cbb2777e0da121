//! The alert rules and the dashboard, loaded into a real Prometheus that scrapes a real ferryd.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may fail like tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(spawned.unwrap_or_else(|error| {
            panic!("{command:?} cannot be run ({error}): install the Debian package prometheus")
        }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The body of an answer with status 200.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split(' ').nth(1).filter(|status| *status == "200").map(|_| body.to_owned())
}

/// What Prometheus answers to a query: `None` for one that it does not understand, or while it starts.
fn query(prometheus: SocketAddr, expression: &str) -> Option<Vec<Value>> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer: Value = serde_json::from_str(&get(prometheus, &format!("/api/v1/query?query={encoded}"))?).unwrap();
    Some(answer["data"]["result"].as_array().unwrap().clone())
}

/// A ferryd with TLS, and a Prometheus with the rules that scrapes it.
struct Monitored {
    prometheus: SocketAddr,
    page: String,
    _processes: [Running; 2],
    _directory: tempfile::TempDir,
}

impl Monitored {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let made = rcgen::generate_simple_self_signed(["turn.example.org".to_owned()]).unwrap();
        fs::write(file("cert.pem"), made.cert.pem()).unwrap();
        fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let (port, metrics, web) = (free_port(), free_port(), free_port());
        let configuration = format!(
            "listener = [{{ address = \"127.0.0.1:{port}\", transport = \"tcp\" }}]\nrelay.addresses = [\"127.0.0.1\"]\n\
             tls = {{ certificate = \"{0}/cert.pem\", key = \"{0}/key.pem\" }}\nmetrics.address = \"127.0.0.1:{metrics}\"\n\
             admin = {{ socket = \"{0}/admin\" }}\n",
            directory.path().display()
        );
        fs::write(file("ferryd.toml"), configuration).unwrap();
        let mut ferryd = Command::new(env!("CARGO_BIN_EXE_ferryd"));
        let ferryd = Running::start(ferryd.env_clear().arg("--config").arg(file("ferryd.toml")));
        let scrape = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [\"{}\"]\n\
             scrape_configs: [{{ job_name: ferryd, static_configs: [{{ targets: [\"127.0.0.1:{metrics}\"] }}] }}]\n",
            shipped("prometheus/ferryd.rules.yml").display()
        );
        fs::write(file("prometheus.yml"), scrape).unwrap();
        let mut prometheus = Command::new("prometheus");
        prometheus.arg(format!("--config.file={}", file("prometheus.yml").display()));
        prometheus.arg(format!("--storage.tsdb.path={}", file("data").display()));
        let prometheus = Running::start(prometheus.arg(format!("--web.listen-address=127.0.0.1:{web}")));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, web));
        let deadline = Instant::now() + PATIENCE;
        let is_scraped = || query(address, "ferryd_build_info").is_some_and(|found| !found.is_empty());
        while !is_scraped() {
            assert!(Instant::now() < deadline, "waited in vain for the first scrape");
            std::thread::sleep(Duration::from_millis(50));
        }
        let page = get((Ipv4Addr::LOCALHOST, metrics).into(), "/metrics").unwrap();
        Self { prometheus: address, page, _processes: [ferryd, prometheus], _directory: directory }
    }

    /// The names of the page, as queries have them.
    fn names(&self) -> BTreeSet<String> {
        let types = self.page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let name = |line: &str| {
            let (name, kind) = line.split_once(' ').unwrap();
            if kind == "counter" { format!("{name}_total") } else { name.to_owned() }
        };
        types.map(name).collect()
    }

    fn assert_understands(&self, expression: &str) {
        assert!(query(self.prometheus, expression).is_some(), "Prometheus refuses: {expression}");
        let names = self.names();
        for used in metrics_of(expression) {
            assert!(names.contains(&used), "{used} is not on the page: {expression}\n{names:?}");
        }
    }
}

/// The names of ferryd's metrics in an expression.
fn metrics_of(expression: &str) -> Vec<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = expression.split(|character: char| !is_name(character));
    words.filter(|word| word.starts_with("ferryd_")).map(str::to_owned).collect()
}

/// Every `expr` below a value.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("expr").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|member| expressions(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn a_real_prometheus_takes_the_page_the_rules_and_the_queries_of_the_dashboard() {
    let monitored = Monitored::start();
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(shipped("grafana/ferryd.json")).unwrap()).unwrap();
    let mut shown = Vec::new();
    expressions(&dashboard["panels"], &mut shown);
    assert!(shown.len() > 15, "{shown:?}");
    for expression in &shown {
        let expression = expression.replace("$job", "ferryd").replace("$instance", ".*");
        monitored.assert_understands(&expression.replace("$__rate_interval", "1m"));
    }
    let rules: Value = serde_json::from_str(&get(monitored.prometheus, "/api/v1/rules").unwrap()).unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(rules.len() >= 10, "{rules:?}");
    for rule in &rules {
        monitored.assert_understands(rule["query"].as_str().unwrap());
        assert_ne!(rule["health"], "err", "{rule}");
    }
    assert_eq!(query(monitored.prometheus, "up{job=\"ferryd\"} == 1").unwrap().len(), 1);
    assert!(query(monitored.prometheus, "sum(").is_none(), "what is no query would be seen");
}

#[test]
fn the_rules_fire_when_they_should() {
    let promtool = |arguments: &[&str]| {
        let directory = shipped("prometheus");
        let output = Command::new("promtool").args(arguments).current_dir(directory).output().unwrap_or_else(|error| {
            panic!("promtool cannot be run ({error}): install the Debian package prometheus");
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    };
    promtool(&["check", "rules", "ferryd.rules.yml"]);
    promtool(&["test", "rules", "ferryd.rules.test.yml"]);
}
