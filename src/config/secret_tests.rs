//! Secrets go in; nothing of them comes out in words.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::tests::{STRONG, host, load_text, load_with, problems};
use super::*;
use crate::auth::settings::SecretAlgorithm;

#[test]
fn shared_secrets_come_from_everywhere_and_keep_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secrets");
    fs::write(&file, format!("# rolled over in May\n{STRONG}2\n\nsha256:{STRONG}3\n")).unwrap();
    fs::write(directory.path().join("ferryd.secrets"), format!("{STRONG}4")).unwrap();
    let text = format!(
        "[auth]\nshared-secrets = [\"{STRONG}0\", {{ secret = \"{STRONG}1\", algorithm = \"sha256\" }}]\n\
         shared-secrets-file = {file:?}"
    );
    let environment = [("CREDENTIALS_DIRECTORY", directory.path().to_str().unwrap())];
    let loaded = load_with(&text, &environment, &host()).unwrap();
    assert_eq!(loaded.secret_origin, SecretOrigin::Configured);
    let secrets = loaded.settings.auth.shared_secrets;
    let texts: Vec<String> =
        secrets.iter().map(|secret| String::from_utf8(secret.secret.expose().to_vec()).unwrap()).collect();
    assert_eq!(texts, ["0", "1", "2", "3", "4"].map(|end| format!("{STRONG}{end}")));
    let algorithms: Vec<SecretAlgorithm> = secrets.iter().map(|secret| secret.algorithm).collect();
    use SecretAlgorithm::{Sha1, Sha256};
    assert_eq!(algorithms, [Sha1, Sha256, Sha1, Sha256, Sha1]);
}

#[test]
fn wrong_shared_secrets_are_told_without_showing_them() {
    let one = |text: &str, words: &str| {
        let found = problems(&format!("[auth]\n{text}")).join("\n");
        assert!(found.contains(words), "{found}");
        assert!(!found.contains("hush"), "a secret is shown: {found}");
    };
    one("shared-secrets = \"hush\"", "auth.shared-secrets: found a text, expected a list");
    one("shared-secrets = [7]", "found a number, expected a table of keys");
    one("shared-secrets = [\"\"]", "found an empty text");
    one("shared-secrets = [{ algorithm = \"sha1\" }]", "auth.shared-secrets #1 secret: is missing");
    one("shared-secrets = [{ secret = \"hush\", algorithm = \"sha-1\" }]", "did you mean \"sha1\"?");
    one("shared-secrets-file = \"/nonexistent\"", "auth.shared-secrets-file: /nonexistent cannot be read");
    one("shared-secrets-file = \"/dev/null\"", "/dev/null holds no secret");
    one("nonce-key-file = \"/dev/null\"", "/dev/null: is not such a key");
    one("nonce-lifetime = \"2h\"", "expected a duration from 1m to 1h");
}

#[test]
fn a_weak_shared_secret_is_warned_about_without_showing_it() {
    let warnings = load_text("[auth]\nshared-secrets = [\"hush\"]").unwrap().warnings;
    assert!(warnings[0].contains("auth.shared-secrets #1: an estimated strength of"), "{warnings:?}");
    assert!(!warnings[0].contains("hush"), "{warnings:?}");
    let allowed = load_text("[auth]\nallow-weak-passwords = true\nshared-secrets = [\"hush\"]").unwrap();
    assert_eq!(allowed.warnings, Vec::<String>::new());
}

#[test]
fn a_readable_file_with_secrets_is_warned_about() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ferryd.toml");
    fs::write(&path, format!("[auth]\nshared-secrets = [\"{STRONG}\"]\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = load(Some(&path), &Environment::new(), &host(), StateAccess::Create).unwrap().warnings;
    assert!(warnings[0].contains("everybody may read the secrets in this file"), "{warnings:?}");
    fs::write(&path, "realm = \"x\"\n").unwrap();
    let warnings = load(Some(&path), &Environment::new(), &host(), StateAccess::Create).unwrap().warnings;
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn secrets_never_print() {
    let text = format!("[auth]\nshared-secrets = [\"{STRONG}\"]\nuser = [{{ name = \"a\", password = \"{STRONG}\" }}]");
    assert!(!format!("{:?}", load_text(&text).unwrap()).contains(STRONG));
}
