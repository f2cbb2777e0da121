//! `check` and `credential`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::certificate::Certificate;
use crate::ferryd::{Ferryd, PASSWORD, command, run};
use crate::first_run::user_of;
use crate::independent::{self, Way};

fn shipped() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = Vec::new();
    for directory in [directory.clone(), directory.join("examples")] {
        files.extend(std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files
}

#[test]
fn every_shipped_configuration_passes_the_check() {
    let files = shipped();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let ended = run(&["check", "--config", file.to_str().unwrap()]);
        let said = &ended.expect_success().stdout;
        assert!(said.starts_with(&format!("configuration  {}\n", file.display())), "{said}");
    }
}

#[test]
fn every_verb_has_a_man_page_and_is_completed() {
    let help = run(&["--help"]).expect_success().stdout.clone();
    let verbs = help.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| line.starts_with("  "));
    let verbs: Vec<&str> =
        verbs.map(|line| line.split_whitespace().next().unwrap()).filter(|verb| *verb != "help").collect();
    assert!(verbs.contains(&"serve") && verbs.contains(&"import"), "{verbs:?}");
    let directory = tempfile::tempdir().unwrap();
    run(&["man", directory.path().to_str().unwrap()]).expect_success();
    let main = std::fs::read_to_string(directory.path().join("ferryd.1")).unwrap();
    assert_eq!(main, run(&["man"]).expect_success().stdout);
    assert!(main.contains("/etc/ferryd/ferryd.toml"), "{main}");
    // What the completion would offer, asked of a real shell.
    let script = directory.path().join("ferryd.bash");
    std::fs::write(&script, &run(&["completions", "bash"]).expect_success().stdout).unwrap();
    let ask =
        "source \"$0\" && COMP_WORDS=(ferryd '') COMP_CWORD=1 && _ferryd ferryd '' ferryd && echo \"${COMPREPLY[@]}\"";
    let asked = std::process::Command::new("bash").args(["-c", ask]).arg(&script).output().unwrap();
    let offered = String::from_utf8(asked.stdout).unwrap();
    for verb in verbs {
        assert!(directory.path().join(format!("ferryd-{verb}.1")).exists(), "ferryd-{verb}.1");
        assert!(offered.split_whitespace().any(|word| word == verb), "{verb} is not in {offered}");
    }
    for shell in ["zsh", "fish"] {
        assert!(run(&["completions", shell]).expect_success().stdout.contains("credential"));
    }
    run(&["completions", "tcsh"]).expect_failure(2, &["possible values: bash"]);
    run(&["man", "/nonexistent"]).expect_failure(1, &["/nonexistent: cannot be written"]);
}

#[test]
fn a_check_tells_what_the_daemon_would_do_and_leaves_nothing() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.set("relay.advertised-addresses", "[\"203.0.113.5\"]");
    });
    let files = || std::fs::read_dir(&ferryd.config.directory).unwrap().count();
    let before = files();
    let ended = ferryd.verb(&["check"]);
    let said = &ended.expect_success().stdout;
    let (address, ip) = (ferryd.address(), ferryd.config.ip);
    for words in [
        format!("{} {address}, tcp+tls {address}", if cfg!(feature = "dtls") { "udp+dtls" } else { "udp" }),
        format!("relay          {ip} told as 203.0.113.5, ports 49152 to 65535"),
        "1 users, 0 shared secrets".to_owned(),
        "localhost (".to_owned(),
    ] {
        assert!(said.contains(&words), "{words:?} is missing in:\n{said}");
    }
    assert!(!said.contains(PASSWORD), "{said}");
    assert_eq!(files(), before);
}

#[test]
fn a_credential_relays_and_its_urls_lead_to_the_server() {
    let ferryd = Ferryd::start(|config| {
        Certificate::configured(config);
        config.unset("auth.user").set("auth.shared-secrets", "[\"Zq8vN3xT0pLw6RbYc2HsKd5M\"]");
    });
    let ended = ferryd.verb(&["credential", "--ttl", "10m", "dora"]);
    let json: serde_json::Value = serde_json::from_str(&ended.expect_success().stdout).unwrap();
    let address = ferryd.address();
    let urls = serde_json::json!([
        format!("turn:{address}?transport=udp"),
        format!("turn:{address}?transport=tcp"),
        format!("turns:localhost:{}?transport=tcp", address.port()),
    ]);
    assert_eq!(json["iceServers"][0]["urls"], urls);
    let user = user_of(&ended.stdout);
    assert!(user.name.ends_with(":dora"));
    independent::relays(address, &Way::Udp, &user);
    independent::relays(address, &Way::Tcp, &user);
    let nameless = ferryd.verb(&["credential"]);
    independent::relays(address, &Way::Udp, &user_of(&nameless.expect_success().stdout));
}

#[test]
fn a_credential_without_a_secret_says_what_to_do() {
    let ferryd = Ferryd::start(|_| {});
    let words = ["ferryd.toml: auth.shared-secrets: ", "expected a shared secret", "openssl rand"];
    ferryd.verb(&["credential", "dora"]).expect_failure(78, &words);
    run(&["credential"]).expect_failure(78, &["auth.shared-secrets", "set state-directory"]);
    run(&["credential", "--ttl", "soon"]).expect_failure(2, &["expected a duration such as 90s"]);
}

#[test]
fn a_reader_that_has_gone_and_a_full_disk_end_no_verb_in_a_panic() {
    let printed = |verb: &[&str], to: Stdio| -> (Option<i32>, String) {
        let Output { status, stderr, .. } = command(verb).stdin(Stdio::null()).stdout(to).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    for verb in [&["check"][..], &["man"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(printed(verb, writer.into()), (Some(0), String::new()), "{verb:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (code, said) = printed(verb, full.into());
        assert_eq!(code, Some(1), "{verb:?}: {said}");
        assert!(said.starts_with("error: standard output: cannot be written (No space left on device"), "{said}");
    }
}
