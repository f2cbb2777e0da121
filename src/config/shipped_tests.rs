//! The files that are shipped load, and the reference is true.

use std::collections::BTreeSet;
use std::fs;

use config::{File, FileFormat, Source, Value, ValueKind};

use super::tests::host;
use super::*;
use crate::turn;
use crate::worker::settings::AcceptLimits;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn every_shipped_file_loads() {
    let mut files: Vec<PathBuf> = Vec::new();
    for directory in [shipped(""), shipped("examples")] {
        files.extend(fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let loaded = load(Some(&file), &Environment::new(), &host(), StateAccess::ReadOnly);
        assert!(loaded.is_ok(), "{}", loaded.unwrap_err());
    }
}

#[test]
fn every_remark_in_a_shipped_file_that_is_a_key_is_one() {
    for name in ["ferryd.toml", "examples/port-443.toml", "examples/dual-stack.toml", "reference.toml"] {
        let (_, report) = read_uncommented(name);
        let unknown: Vec<_> =
            report.problems.iter().filter(|problem| problem.found == "unknown key" || problem.key.is_empty()).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
    }
}

/// The settings as text, without what is random at every start.
fn settled(mut settings: Settings) -> String {
    settings.auth.shared_secrets.clear();
    format!("{settings:#?}")
}

#[test]
fn the_reference_equals_the_defaults() {
    let read = |file: Option<&Path>| load(file, &Environment::new(), &host(), StateAccess::ReadOnly).unwrap();
    let reference = read(Some(&shipped("reference.toml")));
    let defaults = read(None);
    assert_eq!(settled(reference.settings.clone()), settled(defaults.settings));
    assert_eq!(reference.warnings, Vec::<String>::new());
    // The defaults of the rooms, in case the reading of an absent key were wrong as well.
    let settings = reference.settings;
    assert_eq!(format!("{:?}", settings.turn.limits), format!("{:?}", turn::settings::Limits::default()));
    assert_eq!(settings.accept, AcceptLimits::default());
    assert_eq!((settings.turn.port_min, settings.turn.port_max), (turn::Settings::PORT_MIN, turn::Settings::PORT_MAX));
    assert_eq!(settings.turn.lifetime_default, turn::Settings::LIFETIME_DEFAULT);
    assert_eq!(settings.turn.lifetime_max, turn::Settings::LIFETIME_MAX);
    assert_eq!(settings.auth.nonce_lifetime, crate::auth::Settings::NONCE_LIFETIME);
    assert_eq!(settings.log, logs::Settings::default());
}

#[test]
fn the_reference_has_every_key() {
    let (text, mut report) = read_uncommented("reference.toml");
    // A table in place of a text is another shape of the same key.
    report.keys.retain(|key| !key.starts_with("auth.shared-secrets."));
    let mut written = BTreeSet::new();
    for (key, value) in File::from_str(&text, FileFormat::Toml).collect().unwrap() {
        leaves(&key, &value, &mut written);
    }
    assert_eq!(written, report.keys);
    assert!(text.contains("{ secret = \"...\", algorithm = \"sha256\" }"));
}

/// Reads a file with the keys that stand in remarks brought to life.
fn read_uncommented(name: &str) -> (String, Report) {
    let text = fs::read_to_string(shipped(name)).unwrap();
    let mut lines = Vec::new();
    for line in text.lines() {
        let live = line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c != ' ') || in_array(&lines));
        lines.push(live.unwrap_or(line).to_owned());
    }
    let text = lines.join("\n");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uncommented.toml");
    fs::write(&path, &text).unwrap();
    let mut report = Report::default();
    read(Some(&path), &Environment::new(), &host(), StateAccess::ReadOnly, &mut report);
    (text, report)
}

/// Whether an array that a remark began is still open.
fn in_array(lines: &[String]) -> bool {
    let mut open = lines.iter().rev().take_while(|line| !line.starts_with(']'));
    open.any(|line| line.ends_with("= [") && !line.starts_with('#'))
}

/// The paths of all values; the elements of an array share one.
fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    if let ValueKind::Table(table) = &value.kind {
        for (key, value) in table {
            leaves(&format!("{path}.{key}"), value, found);
        }
        return;
    }
    found.insert(path.to_owned());
    if let ValueKind::Array(values) = &value.kind {
        for value in values.iter().filter(|value| matches!(value.kind, ValueKind::Table(_))) {
            leaves(path, value, found);
        }
    }
}

/// What stands behind a key, wherever it is, to the end of the line or of the `{ }`.
fn behind<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let begun = text.match_indices(key).map(|(at, _)| &text[at + key.len()..]);
    begun.map(|rest| rest.split(['\n', ',', '}']).next().unwrap().trim().trim_matches('"')).collect()
}

fn one<'a>(text: &'a str, key: &str) -> &'a str {
    match behind(text, key).as_slice() {
        [value] => value,
        values => panic!("{key} {values:?}"),
    }
}

#[test]
fn the_kubernetes_example_holds_together() {
    let text = fs::read_to_string(shipped("kubernetes/ferryd.yaml")).unwrap();
    let (map, set) = text.split_once("\n---\n").unwrap();
    let set: String =
        set.lines().filter(|line| !line.trim_start().starts_with('#')).map(|it| format!("{it}\n")).collect();
    // The configuration that it holds, with the secrets where the command of the remark puts them.
    let (_, embedded) = map.split_once("ferryd.toml: |\n").unwrap();
    let embedded: String =
        embedded.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("secrets"), "n3kZ8wPq0TtYbV6sLx2RfJ5uHc9GmDaE\n").unwrap();
    fs::write(directory.path().join("nonce.key"), "0123456789abcdef".repeat(4)).unwrap();
    for name in ["secrets", "nonce.key"] {
        assert!(map.contains(&format!("--from-literal={name}=")), "{name}");
    }
    let secrets = "/run/secrets/ferryd";
    assert_eq!(embedded.matches(secrets).count(), 2);
    let file = directory.path().join("ferryd.toml");
    fs::write(&file, embedded.replace(secrets, directory.path().to_str().unwrap())).unwrap();
    let settings = load(Some(&file), &Environment::new(), &host(), StateAccess::ReadOnly).unwrap().settings;
    // Probes and scrapes are where the page is.
    let port = settings.metrics.unwrap().port().to_string();
    assert_eq!(behind(&set, ", port: "), [port.as_str(); 2]);
    assert_eq!(one(&set, "prometheus.io/port: "), port);
    assert_eq!(behind(&set, "httpGet: { path: "), ["/ready", "/metrics"]);
    // It drains to the end before it is killed.
    let grace = Duration::from_secs(one(&set, "terminationGracePeriodSeconds: ").parse().unwrap());
    let drain = settings.admin.drain.on_stop;
    assert!(!drain.is_zero() && drain + Duration::from_secs(60) <= grace, "{drain:?} {grace:?}");
    // What is mounted is there, and where it is looked for.
    let (mounts, volumes) = set.split_once("      volumes:\n").unwrap();
    let (_, mounts) = mounts.split_once("volumeMounts:\n").unwrap();
    assert_eq!(behind(mounts, "name: "), ["config", "secrets", "state"]);
    assert_eq!(behind(mounts, "mountPath: "), ["/etc/ferryd", secrets, "/var/lib/ferryd"]);
    for volume in [
        "- name: config\n          configMap: { name: ferryd }",
        "- name: secrets\n          secret: { secretName: ferryd,",
        "- name: state\n          emptyDir: {",
    ] {
        assert!(volumes.contains(volume), "{volume}");
    }
    assert!(map.contains("kind: ConfigMap\nmetadata:\n  name: ferryd\n") && map.contains("secret generic ferryd "));
    assert!(set.contains("args: [\"serve\", \"--config\", \"/etc/ferryd/ferryd.toml\"]"));
    // The image's user and state, and no port that would need a capability.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let image = fs::read_to_string(root.join("Containerfile")).unwrap();
    let user = one(&set, "runAsUser: ");
    assert!(image.contains(&format!("USER {user}:{}\n", one(&set, "runAsGroup: "))));
    assert_eq!(one(&set, "fsGroup: "), user);
    assert!(image.contains("ENV FERRYD_STATE_DIRECTORY=/var/lib/ferryd\n"));
    assert_eq!(one(&set, "image: registry.example.org/ferryd:"), env!("CARGO_PKG_VERSION"));
    assert!(settings.listeners.iter().all(|listener| listener.address.port() >= 1024));
}
