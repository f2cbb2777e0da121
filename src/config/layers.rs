//! The layers: a file, then the environment over it. Defaults live in the rooms and are what stays unset.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use config::{Config, File, FileFormat, Map, Source, Value, ValueKind};

use super::Environment;
use super::problem::{At, Report};

/// The prefix of the environment's variables.
pub(super) const PREFIX: &str = "FERRYD_";

/// Variables with the prefix that are not settings: the default of `--config`.
const NOT_SETTINGS: [&str; 1] = ["FERRYD_CONFIG"];

/// A configuration file as read.
pub(super) struct FileText {
    pub(super) text: String,
    pub(super) world_readable: bool,
}

/// Reads the file, or says why it cannot be read.
pub(super) fn read_file(path: &Path, report: &mut Report) -> Option<FileText> {
    let at = At::file(path, "");
    let mut text = String::new();
    let opened = std::fs::File::open(path).and_then(|mut file| {
        file.read_to_string(&mut text)?;
        file.metadata()
    });
    match opened {
        Ok(metadata) => Some(FileText { text, world_readable: metadata.permissions().mode() & 0o004 != 0 }),
        Err(error) => {
            report.problem(at.problem(
                format!("cannot be read ({error})"),
                "a TOML file",
                "check the path and that the user ferryd runs as may read it",
            ));
            None
        }
    }
}

/// Puts the layers over each other; a value keeps the name of its variable, or no name when it is the file's.
pub(super) fn merge(file: Option<(&Path, &str)>, environment: &Environment, report: &mut Report) -> Map<String, Value> {
    let mut layers = Config::builder();
    if let Some((path, text)) = file {
        let source = File::from_str(text, FileFormat::Toml);
        match source.collect() {
            Ok(_) => layers = layers.add_source(source),
            Err(error) => report.problem(At::file(path, "").problem(
                syntax_words(&error.to_string()),
                "a TOML file",
                "mend the syntax there; keys are kebab-case, texts stand in quotes",
            )),
        }
    }
    let built = layers.add_source(Variables::from_environment(environment, report)).build();
    match built.map(|layers| layers.cache.kind) {
        Ok(ValueKind::Table(table)) => table,
        Ok(_) | Err(_) => Map::new(),
    }
}

/// The names of the variables that set something.
pub(super) fn setting_names(environment: &Environment) -> Vec<String> {
    environment.keys().filter(|name| is_setting(name)).cloned().collect()
}

fn is_setting(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty()) && !NOT_SETTINGS.contains(&name)
}

/// The parser's words without the line it quotes: that line may hold a secret.
fn syntax_words(error: &str) -> String {
    let quoted = |line: &str| {
        let line = line.trim_start();
        line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start().starts_with('|')
    };
    let words: Vec<&str> = error.lines().filter(|line| !quoted(line)).map(str::trim).collect();
    words.join(", ")
}

/// The `FERRYD_` variables as a layer.
#[derive(Clone, Debug)]
struct Variables(Vec<(String, Value)>);

impl Variables {
    fn from_environment(environment: &Environment, report: &mut Report) -> Self {
        let mut values = Vec::new();
        for (name, text) in environment.iter().filter(|(name, _)| is_setting(name)) {
            let origin = format!("environment variable {name}");
            match parse_variable(text) {
                Some(kind) => values.push((key_of(&name[PREFIX.len()..]), Value::new(Some(&origin), kind))),
                None => report.problem(At::new(origin, key_of(&name[PREFIX.len()..])).problem(
                    "begins like TOML but is not",
                    "a TOML array or inline table, or a plain text",
                    "mend the brackets and quotes",
                )),
            }
        }
        Self(values)
    }
}

impl Source for Variables {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.iter().cloned().collect())
    }
}

/// `RELAY__PORT_MIN` is `relay.port-min`.
fn key_of(name: &str) -> String {
    name.split("__").map(|part| part.to_ascii_lowercase().replace('_', "-")).collect::<Vec<_>>().join(".")
}

/// A text, or an array or inline table of TOML when it begins like one.
fn parse_variable(text: &str) -> Option<ValueKind> {
    // A relay or listener in brackets, such as [::]:3478, begins like TOML too.
    if !text.starts_with(['[', '{']) || text.starts_with("[:") {
        return Some(ValueKind::String(text.to_owned()));
    }
    let table = File::from_str(&format!("value = {text}"), FileFormat::Toml).collect().ok()?;
    table.get("value").map(|value| value.kind.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str, environment: &[(&str, &str)]) -> (Map<String, Value>, Report) {
        let mut report = Report::default();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let table = merge(Some((Path::new("f.toml"), text)), &environment, &mut report);
        (table, report)
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let (table, report) = merged(
            "realm = \"a\"\n[relay]\nport-min = 1\nport-max = 2",
            &[("FERRYD_REALM", "b"), ("FERRYD_RELAY__PORT_MIN", "3")],
        );
        assert!(report.problems.is_empty());
        assert_eq!(table["realm"].kind, ValueKind::String("b".into()));
        let ValueKind::Table(relay) = &table["relay"].kind else { panic!("not a table") };
        assert_eq!(relay["port-min"].kind, ValueKind::String("3".into()));
        assert_eq!(relay["port-min"].origin(), Some("environment variable FERRYD_RELAY__PORT_MIN"));
        assert_eq!(relay["port-max"].kind, ValueKind::I64(2));
    }

    #[test]
    fn a_variable_may_be_a_toml_array() {
        let (table, _) = merged("", &[("FERRYD_LISTENER", "[{ address = \"*:1\", transport = \"udp\" }]")]);
        assert!(matches!(table["listener"].kind, ValueKind::Array(_)));
        let (_, report) = merged("", &[("FERRYD_LISTENER", "[{ address = ")]);
        assert_eq!(report.problems[0].source, "environment variable FERRYD_LISTENER");
    }

    #[test]
    fn a_syntax_error_tells_the_place_but_not_the_line() {
        let (_, report) = merged("[auth]\nshared-secrets = [\"hush-hush\n", &[]);
        let words = report.problems[0].to_string();
        assert!(words.starts_with("f.toml: TOML parse error at line 2"), "{words}");
        assert!(!words.contains("hush"), "{words}");
    }

    #[test]
    fn foreign_variables_and_the_one_of_the_flag_are_left_alone() {
        let (table, report) = merged("", &[("FERRYD_CONFIG", "/x"), ("FERRY", "y"), ("PATH", "z")]);
        assert!(table.is_empty() && report.problems.is_empty());
    }
}
