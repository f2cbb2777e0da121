//! `realm` and `auth`: who may allocate, from the file, from files it names, from systemd and from the state directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::Value;
use zeroize::Zeroizing;

use super::problem::{At, Report};
use super::section::{Entry, Section, as_text, secret_text, table_of};
use super::state::{self, StateAccess};
use super::strength::{STRENGTH_BITS_MIN, strength_bits};
use super::third_party;
use crate::auth::settings::{Secret, SecretAlgorithm, Settings, SharedSecret, User, UserCredential};
use crate::auth::{PrepareError, opaque_string};

/// Where secrets are looked for beside the file.
pub(super) struct Places<'a> {
    pub(super) state_directory: Option<&'a Path>,
    /// systemd's `$CREDENTIALS_DIRECTORY`.
    pub(super) credentials_directory: Option<&'a Path>,
    pub(super) access: StateAccess,
}

/// The shared secrets as a systemd credential.
const SECRETS_CREDENTIAL: &str = "ferryd.secrets";
/// The nonce key as a systemd credential.
const NONCE_KEY_CREDENTIAL: &str = "ferryd.nonce-key";

/// Where the secret that mints credentials comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretOrigin {
    /// Secrets or users stand in the configuration or in files it names.
    Configured,
    /// Made by the daemon and kept in this file.
    Kept(PathBuf),
    /// Made by this process and forgotten at its end.
    Forgotten,
}

/// What [`read`] found.
pub(super) struct Credentials {
    pub(super) settings: Settings,
    pub(super) secret_origin: SecretOrigin,
    /// Whether the nonce key was made by this process and is kept nowhere.
    pub(super) nonce_key_forgotten: bool,
}

/// Short, as every challenge carries it.
pub const REALM: &str = "ferryd";

/// A nonce may end up to 16 s early, and a client has to answer with it: 438 on Allocate is final to Chrome.
const NONCE_LIFETIME_MIN: Duration = Duration::from_secs(60);

/// RFC 8489 section 14.9: "fewer than 128 characters".
const REALM_CHARACTERS_MAX: usize = 127;
/// RFC 8489 section 14.3: USERNAME holds fewer than 509 bytes.
pub(super) const USERNAME_BYTES_MAX: usize = 508;

const GENERATE: &str = "make a random one: `openssl rand -base64 18`, or use time-limited users (`ferryd credential`)";

/// Reads `realm` and `auth`.
pub(super) fn read(root: &mut Section, places: &Places<'_>, report: &mut Report) -> Credentials {
    let realm = read_realm(root, report);
    let before = report.problems.len();
    let mut auth = root.section("auth", report);
    let weak_allowed = auth.truth("allow-weak-passwords", report).is_some_and(|entry| entry.value);
    let mut shared_secrets = read_shared_secrets(&mut auth, places, weak_allowed, report);
    let users = read_users(&mut auth, weak_allowed, report);
    let third_party = third_party::read(auth.section("third-party", report), report);
    let clean = report.problems.len() == before;
    let nonce_range = NONCE_LIFETIME_MIN..=Settings::NONCE_LIFETIME;
    let nonce_lifetime = auth.duration("nonce-lifetime", nonce_range, report);
    let (nonce_key, nonce_key_forgotten) = read_nonce_key(&mut auth, places, report);
    auth.finish(report);
    let mut origin = SecretOrigin::Configured;
    // A secret is not made for an operator who meant to give one.
    if shared_secrets.is_empty() && users.is_empty() && third_party.is_none() && clean {
        (shared_secrets, origin) = make_shared_secret(places, report);
    }
    let nonce_lifetime = nonce_lifetime.map_or(Settings::NONCE_LIFETIME, |entry| entry.value);
    let settings = Settings { realm, users, shared_secrets, nonce_lifetime, nonce_key, third_party };
    Credentials { settings, secret_origin: origin, nonce_key_forgotten }
}

fn read_realm(root: &mut Section, report: &mut Report) -> String {
    let Some(entry) = root.text("realm", report) else { return REALM.to_owned() };
    match opaque_string(&entry.value) {
        Ok(realm) if realm.chars().count() <= REALM_CHARACTERS_MAX => realm,
        Ok(realm) => {
            let words = format!("found {} characters", realm.chars().count());
            report.problem(entry.at.problem(words, "fewer than 128 (RFC 8489)", "shorten it"));
            realm
        }
        Err(error) => {
            report.problem(unprepared(&entry.at, error));
            REALM.to_owned()
        }
    }
}

fn unprepared(at: &At, error: PrepareError) -> super::Problem {
    let expected = "a text of letters, digits, symbols and spaces (OpaqueString, RFC 8265)";
    at.problem(error.to_string(), expected, "write another text")
}

fn refuse_weak(text: &str, at: &At, weak_allowed: bool, report: &mut Report) {
    let bits = strength_bits(text);
    if bits < STRENGTH_BITS_MIN && !weak_allowed {
        report.problem(at.problem(
            format!("an estimated strength of {bits} bits"),
            format!("at least {STRENGTH_BITS_MIN} bits, as the network may guess"),
            format!("{GENERATE}; auth.allow-weak-passwords = true allows it for tests"),
        ));
    }
}

/// A shared secret is typed by nobody and guessed offline at best, by someone who holds a credential minted from it, so a
/// weak one is an operator's risk to take.
fn warn_of_weak(text: &str, at: &At, weak_allowed: bool, report: &mut Report) {
    let bits = strength_bits(text);
    if bits < STRENGTH_BITS_MIN && !weak_allowed {
        let words = format!("an estimated strength of {bits} bits, where {STRENGTH_BITS_MIN} are advised; {GENERATE}");
        report.warn(at, words);
    }
}

fn read_shared_secrets(
    auth: &mut Section,
    places: &Places<'_>,
    weak_allowed: bool,
    report: &mut Report,
) -> Vec<SharedSecret> {
    let mut entries = Vec::new();
    for entry in auth.list("shared-secrets", report).unwrap_or_default() {
        entries.extend(read_shared_secret(entry, report));
    }
    let named = auth.path("shared-secrets-file", report);
    let credential = places.credentials_directory.map(|directory| directory.join(SECRETS_CREDENTIAL));
    let credential = credential.filter(|path| path.exists()).map(|path| Entry { at: At::file(&path, ""), value: path });
    for file in named.into_iter().chain(credential) {
        entries.extend(read_secrets_file(&file, report));
    }
    for entry in &entries {
        let text = String::from_utf8_lossy(entry.value.secret.expose());
        warn_of_weak(&text, &entry.at, weak_allowed, report);
    }
    entries.into_iter().map(|entry| entry.value).collect()
}

const ALGORITHMS: [(&str, SecretAlgorithm); 2] = [("sha1", SecretAlgorithm::Sha1), ("sha256", SecretAlgorithm::Sha256)];

/// A text, or a table that also names the algorithm.
fn read_shared_secret(entry: Entry<Value>, report: &mut Report) -> Option<Entry<SharedSecret>> {
    let shared = |secret: Entry<String>, algorithm| Entry {
        value: SharedSecret { secret: Secret::new(secret.value), algorithm },
        at: secret.at,
    };
    if as_text(&entry.value).is_some() {
        return Some(shared(secret_text(entry, report)?, SecretAlgorithm::Sha1));
    }
    let mut section = table_of(entry, report)?;
    let at = section.at("secret");
    let before = report.problems.len();
    let secret = section.secret("secret", report);
    if secret.is_none() && report.problems.len() == before {
        report.problem(at.problem("is missing", "the secret", "write { secret = \"...\", algorithm = \"sha256\" }"));
    }
    let algorithm = section.word("algorithm", &ALGORITHMS, report);
    section.finish(report);
    Some(shared(secret?, algorithm.map_or(SecretAlgorithm::Sha1, |entry| entry.value)))
}

/// One secret on each line, the newest first; `sha256:` before one chooses the algorithm, `#` begins a remark.
fn read_secrets_file(file: &Entry<PathBuf>, report: &mut Report) -> Vec<Entry<SharedSecret>> {
    let Some(text) = read_secret_file(file, report) else { return Vec::new() };
    let mut secrets = Vec::new();
    for (index, line) in text.lines().enumerate().map(|(index, line)| (index, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let prefixed = ALGORITHMS
            .iter()
            .find_map(|(name, algorithm)| Some((line.strip_prefix(name)?.strip_prefix(':')?.trim_start(), *algorithm)));
        let (secret, algorithm) = prefixed.unwrap_or((line, SecretAlgorithm::Sha1));
        let at = At::file(&file.value, format!("line {}", index + 1));
        secrets.push(Entry { value: SharedSecret { secret: Secret::new(secret), algorithm }, at });
    }
    if secrets.is_empty() {
        let words = format!("{} holds no secret", file.value.display());
        report.problem(file.at.problem(words, "one secret on each line", format!("write one into it: {GENERATE}")));
    }
    secrets
}

fn read_secret_file(file: &Entry<PathBuf>, report: &mut Report) -> Option<Zeroizing<String>> {
    report.secret_files.push(file.value.clone());
    match fs::read_to_string(&file.value) {
        Ok(text) => {
            let open = fs::metadata(&file.value).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0);
            if open {
                report.warn(&At::file(&file.value, "mode"), "everybody may read this secret; chmod o-r closes it");
            }
            Some(Zeroizing::new(text))
        }
        Err(error) => {
            report.problem(file.at.problem(
                format!("{} cannot be read ({error})", file.value.display()),
                "a text file",
                "check the path and that the user ferryd runs as may read it",
            ));
            None
        }
    }
}

fn read_users(auth: &mut Section, weak_allowed: bool, report: &mut Report) -> Vec<User> {
    let mut users: Vec<User> = Vec::new();
    for section in auth.sections("user", report).unwrap_or_default() {
        let Some(Entry { value: user, at }) = read_user(section, weak_allowed, report) else { continue };
        if users.iter().any(|other| other.name == user.name) {
            let words = format!("the user \"{}\" stands there already", user.name);
            report.problem(at.problem(words, "each name once", "remove one of the two"));
        } else {
            users.push(user);
        }
    }
    users
}

fn read_user(mut section: Section, weak_allowed: bool, report: &mut Report) -> Option<Entry<User>> {
    let (name_at, password_at) = (section.at("name"), section.at("password"));
    let before = report.problems.len();
    let name = section.text("name", report);
    let password = section.secret("password", report);
    let password_file = section.path("password-file", report);
    let key = section.secret("key", report);
    section.finish(report);
    let given = [password.is_some(), password_file.is_some(), key.is_some()].iter().filter(|given| **given).count();
    if name.is_none() && report.problems.len() == before {
        report.problem(name_at.problem("is missing", "the username", "write name = \"...\""));
    }
    if given != 1 && report.problems.len() == before {
        let words = if given == 0 { "no password is set" } else { "there is more than one password" };
        report.problem(password_at.problem(words, "one of password, password-file, key", "set exactly one of them"));
    }
    let from_file = password_file.and_then(|file| {
        let text = read_secret_file(&file, report)?;
        let line = text.lines().next().unwrap_or_default().to_owned();
        Some(Entry { value: line, at: At::file(&file.value, "line 1") })
    });
    let credential = match (password.or(from_file), key) {
        (Some(password), _) => read_password(&password, weak_allowed, report),
        (None, Some(key)) => read_md5_key(&key, report),
        (None, None) => None,
    };
    let name = name?;
    let prepared = opaque_string(&name.value).map_err(|error| report.problem(unprepared(&name.at, error))).ok()?;
    if prepared.len() > USERNAME_BYTES_MAX {
        let words = format!("found {} bytes", prepared.len());
        report.problem(name.at.problem(words, "fewer than 509 (RFC 8489)", "shorten it"));
    }
    Some(Entry { value: User { name: prepared, credential: credential? }, at: name.at })
}

fn read_password(password: &Entry<String>, weak_allowed: bool, report: &mut Report) -> Option<UserCredential> {
    match opaque_string(&password.value) {
        Ok(prepared) => {
            refuse_weak(&prepared, &password.at, weak_allowed, report);
            Some(UserCredential::Password(Secret::new(prepared)))
        }
        Err(error) => {
            report.problem(unprepared(&password.at, error));
            None
        }
    }
}

/// The key that `turnadmin -k` prints, with or without its `0x`.
fn read_md5_key(key: &Entry<String>, report: &mut Report) -> Option<UserCredential> {
    let digits = key.value.trim_start_matches("0x");
    match state::parse_hex(digits).filter(|bytes| bytes.len() == 16) {
        Some(bytes) => Some(UserCredential::Md5Key(Secret::new(bytes.to_vec()))),
        None => {
            let expected = "32 hexadecimal digits, MD5(name:realm:password)";
            report.problem(key.at.problem(
                "is not such a key",
                expected,
                "copy it from `turnadmin -k`, or set password",
            ));
            None
        }
    }
}

fn make_shared_secret(places: &Places<'_>, report: &mut Report) -> (Vec<SharedSecret>, SecretOrigin) {
    let directory = places.state_directory;
    let Some(kept) = state::keep(directory, state::SHARED_SECRET, places.access, report, state::random_secret) else {
        return (Vec::new(), SecretOrigin::Forgotten);
    };
    let origin = kept.file.clone().map_or(SecretOrigin::Forgotten, SecretOrigin::Kept);
    let strength = strength_bits(&kept.text);
    if let Some(path) = kept.file.as_ref().filter(|_| strength < STRENGTH_BITS_MIN) {
        report.problem(At::file(path, "").problem(
            format!("holds {} characters of {strength} bits", kept.text.len()),
            "the secret that ferryd made",
            "restore it from a backup, or remove the file: credentials minted before end with it",
        ));
    }
    let secret = SharedSecret { secret: Secret::new(kept.text.as_bytes()), algorithm: SecretAlgorithm::Sha1 };
    (vec![secret], origin)
}

/// The key, and whether it is kept nowhere.
fn read_nonce_key(auth: &mut Section, places: &Places<'_>, report: &mut Report) -> (Secret, bool) {
    let named = auth.path("nonce-key-file", report);
    let credential = places.credentials_directory.map(|directory| directory.join(NONCE_KEY_CREDENTIAL));
    let credential = credential.filter(|path| path.exists()).map(|path| Entry { at: At::file(&path, ""), value: path });
    let (text, at, forgotten) = match named.or(credential) {
        Some(file) => (read_secret_file(&file, report), At::file(&file.value, ""), false),
        None => {
            let directory = places.state_directory;
            let kept = state::keep(directory, state::NONCE_KEY, places.access, report, state::random_key);
            let at = At::file(&directory.unwrap_or(Path::new("")).join(state::NONCE_KEY), "");
            let forgotten = kept.as_ref().is_some_and(|kept| kept.file.is_none());
            (kept.map(|kept| kept.text), at, forgotten)
        }
    };
    let Some(text) = text else { return (Secret::new(Vec::new()), false) };
    match state::parse_hex(text.trim()).filter(|bytes| bytes.len() == 32) {
        Some(bytes) => (Secret::new(bytes.to_vec()), forgotten),
        None => {
            let remedy = "`openssl rand -hex 32` makes one; it is the same on every node";
            report.problem(at.problem("is not such a key", "64 hexadecimal digits", remedy));
            (Secret::new(Vec::new()), false)
        }
    }
}
