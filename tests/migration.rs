//! `ferryd import` on coturn's own files, which the Debian package coturn has.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may fail like tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ferryd::config::{self, Environment, HostFacts, StateAccess};

/// The sample: the package's configuration, and where documentation is installed, the same as an example.
const SAMPLES: [&str; 2] = ["/etc/turnserver.conf", "/usr/share/doc/coturn/examples/etc/turnserver.conf"];

fn samples() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = SAMPLES.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
    assert!(!found.is_empty(), "install the Debian package coturn: {SAMPLES:?} are not there");
    found
}

fn ferryd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferryd")).args(arguments).output().unwrap()
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The report of an import, and the file that it made.
fn import(file: &Path) -> (tempfile::TempDir, PathBuf, String) {
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("ferryd.toml");
    let output = ferryd(&["import", file.to_str().unwrap(), "--output", made.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output.stderr));
    (directory, made, words(&output.stderr))
}

/// The sample with every option that it shows in a remark switched on: `#name`, `#name=value`, `# name=value`.
fn uncommented(text: &str) -> String {
    let option = |line: &str| {
        let remark = line.strip_prefix('#')?;
        let shown = remark.trim_start();
        let (name, value) = shown.split_once('=').unwrap_or((shown, ""));
        let is_name = name.len() > 1 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        let is_shown = remark == shown || (shown.contains('=') && !value.contains(' '));
        (is_name && is_shown).then(|| shown.to_owned())
    };
    text.lines().map(|line| option(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn coturns_own_sample_becomes_a_configuration_that_passes_the_check() {
    for sample in samples() {
        let (_directory, made, report) = import(&sample);
        assert!(!report.contains("unknown: line"), "{report}");
        assert!(report.contains("nobody relays without a credential"), "{report}");
        let check = ferryd(&["check", "--config", made.to_str().unwrap()]);
        assert!(check.status.success(), "{}{}", words(&check.stderr), fs::read_to_string(&made).unwrap());
    }
}

#[test]
fn everything_that_the_sample_shows_is_known_and_translated_at_once() {
    for sample in samples() {
        let directory = tempfile::tempdir().unwrap();
        let all = directory.path().join("turnserver.conf");
        let text = uncommented(&fs::read_to_string(&sample).unwrap());
        fs::write(&all, &text).unwrap();
        let (_made_in, made, report) = import(&all);
        assert!(text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count() > 110);
        let unknown: Vec<&str> = report.lines().filter(|line| line.starts_with("unknown: ")).collect();
        assert!(unknown.is_empty(), "{unknown:#?}");
        for refused in ["allow-loopback-peers: refused", "server-relay: refused", "no-auth: refused"] {
            assert!(report.contains(refused), "{refused} is not in:\n{report}");
        }
        // Its addresses are of no host, and its certificates on no disk.
        let host = HostFacts { nonlocal_bind: true, has_ipv6: true, ..HostFacts::default() };
        let loaded = config::load(Some(&made), &Environment::new(), &host, StateAccess::ReadOnly);
        let problems = loaded.err().map(|problems| problems.0).unwrap_or_default();
        let problems: Vec<_> = problems.iter().filter(|problem| !problem.found.contains("cannot be read")).collect();
        assert!(problems.is_empty(), "{problems:?}\n{}", fs::read_to_string(&made).unwrap());
    }
}

#[test]
fn every_option_that_the_installed_coturn_has_is_known() {
    let help = Command::new("turnserver").arg("-h").output().unwrap_or_else(|error| {
        panic!("turnserver cannot be run ({error}): install the Debian package coturn");
    });
    let help = words(&help.stdout) + &words(&help.stderr);
    let name = |word: &str| {
        let name = word.strip_prefix("--")?;
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).unwrap_or(name.len());
        Some(name[..end].to_owned())
    };
    // The column of the options; prose names flags too, such as `--user=<username>`.
    let columns = help.lines().filter(|line| line.trim_start().starts_with('-'));
    let names: Vec<String> =
        columns.flat_map(|line| line.split_whitespace().take(3).filter_map(name).collect::<Vec<_>>()).collect();
    assert!(names.len() > 90, "{names:?}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("turnserver.conf");
    let lines: String = names.iter().filter(|name| *name != "version").map(|name| format!("{name}=1\n")).collect();
    fs::write(&file, lines).unwrap();
    let output = ferryd(&["import", file.to_str().unwrap()]);
    let report = words(&output.stderr);
    let unknown: Vec<&str> = report.lines().filter(|line| line.starts_with("unknown: ")).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}
