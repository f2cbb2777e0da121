//! The documents name what is there: files that exist, tests that run, settings that are known.
#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use ferryd::config::{self, Environment, HostFacts, StateAccess};

const DOCUMENTS: [&str; 7] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/operating.md",
    "docs/metrics.md",
    "docs/known-attacks.md",
    "tests/e2e/README.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

/// Every file below a directory that holds code.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "node_modules" {
            sources(&path, found);
        } else if name.ends_with(".rs") || name.ends_with(".py") {
            found.push(path);
        }
    }
}

#[test]
fn every_link_leads_to_a_file() {
    let mut links = 0;
    for document in DOCUMENTS {
        for part in read(document).split("](").skip(1) {
            let target = part.split(')').next().unwrap();
            let file = target.split('#').next().unwrap();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            let path = root().join(document).parent().unwrap().join(file);
            assert!(path.exists(), "{document} links to {target}");
            links += 1;
        }
    }
    assert!(links > 10, "{links} links");
}

#[test]
fn every_test_that_is_named_beside_an_attack_is_there() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let code: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let tests = names_of_tests(&code);
    let text = read("docs/known-attacks.md");
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ") && line.matches('|').count() == 5) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (attack, shown_by) = (cells[0], cells[3]);
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        let is_heading = attack == "attack" || attack == "---";
        // The rates of the buckets are a table of another kind.
        let is_number = shown_by == "at once" || shown_by.starts_with(|first: char| first.is_ascii_digit());
        let is_told = is_heading || is_number || shown_by.starts_with("the same") || shown_by == "by construction";
        assert!(is_told || !names.is_empty(), "no test for: {attack}");
        for name in &names {
            assert!(tests.contains(name), "there is no test {name}, for: {attack}");
        }
        named += names.len();
    }
    assert!(named > 80, "{named} tests");
}

/// Functions that are marked as tests, those that a macro makes for each back end, and cases of the end-to-end tests.
fn names_of_tests(code: &str) -> HashSet<&str> {
    let (mut tests, mut is_marked, mut is_listed) = (HashSet::new(), false, false);
    for line in code.lines().map(str::trim) {
        if is_listed {
            is_listed = line != "}";
            tests.insert(line);
            continue;
        }
        is_listed = line == "on_both! {";
        is_marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test") || line == "@case";
        let function = ["fn ", "async fn ", "def "].iter().find_map(|keyword| line.strip_prefix(keyword));
        if let Some(function) = function {
            let name = function.split(['(', '<']).next().unwrap();
            if std::mem::take(&mut is_marked) {
                tests.insert(name);
            }
        }
    }
    tests
}

#[test]
fn the_configuration_in_the_kubernetes_example_is_known() {
    let manifest = read("config/kubernetes/ferryd.yaml");
    let block = manifest.split("  ferryd.toml: |\n").nth(1).unwrap().split("\n---").next().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ferryd.toml");
    fs::write(&path, block.lines().map(|line| format!("{}\n", line.trim_start())).collect::<String>()).unwrap();
    let host = HostFacts { own_addresses: vec!["127.0.0.1".parse().unwrap()], ..HostFacts::default() };
    let loaded = config::load(Some(&path), &Environment::new(), &host, StateAccess::ReadOnly);
    let problems = loaded.err().map(|problems| problems.0).unwrap_or_default();
    // The secrets are the cluster's.
    let found: Vec<_> = problems.iter().filter(|problem| !problem.found.contains("cannot be read")).collect();
    assert!(found.is_empty() && problems.len() == 2, "{problems:?}");
    assert!(manifest.contains("\n      enableServiceLinks: false\n"), "the variables of Services are no settings");
    // The grace outlives the drain by a minute.
    assert!(block.contains("on-stop = \"30m\"") && manifest.contains("terminationGracePeriodSeconds: 1860"));
}

#[test]
fn what_operators_are_told_to_install_or_read_is_in_the_package() {
    let (manifest, text) = (read("Cargo.toml"), read("docs/operating.md"));
    let words = text.split(|c: char| c.is_whitespace() || "()[]`".contains(c));
    let mut named: Vec<&str> = words.map(|word| word.trim_start_matches("../")).collect();
    named.retain(|word| word.starts_with("systemd/") && (word.ends_with(".conf") || word.ends_with(".socket")));
    assert!(named.len() >= 3, "{named:?}");
    for file in named.into_iter().chain(["docs/metrics.md", "docs/openapi.json"]) {
        assert!(manifest.contains(&format!("  [\"{file}\", \"usr/share/doc/ferryd/\", \"644\"],")), "{file}");
    }
}

#[test]
fn every_configuration_that_is_shown_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shown.toml");
    let host = HostFacts { own_addresses: vec!["127.0.0.1".parse().unwrap()], ..HostFacts::default() };
    let mut shown = 0;
    for document in DOCUMENTS {
        for block in read(document).split("```toml\n").skip(1) {
            fs::write(&path, block.split("```").next().unwrap()).unwrap();
            let loaded = config::load(Some(&path), &Environment::new(), &host, StateAccess::ReadOnly);
            // The certificates and secrets that are shown are on nobody's disk, and without them TLS is off.
            let is_absent = |problem: &config::Problem| {
                ["cannot be read", "there is no certificate", "found no certificate"]
                    .iter()
                    .any(|words| problem.found.contains(words))
            };
            let problems = loaded.err().map(|problems| problems.0).unwrap_or_default();
            let problems: Vec<_> = problems.iter().filter(|problem| !is_absent(problem)).collect();
            assert!(problems.is_empty(), "{document}: {problems:?}");
            shown += 1;
        }
    }
    assert!(shown >= 3, "{shown} blocks");
}
