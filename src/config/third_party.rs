//! `auth.third-party`: the authorization servers that are believed.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::credentials::USERNAME_BYTES_MAX;
use super::problem::Report;
use super::section::{Entry, Section};
use crate::auth::aead::AeadAlgorithm;
use crate::auth::settings::{Secret, ThirdParty, TokenKey};

/// Every 401 carries the name.
const SERVER_NAME_BYTES_MAX: usize = 255;
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Reads who authorizes; `None` when nobody does.
pub(super) fn read(mut section: Section, report: &mut Report) -> Option<ThirdParty> {
    let before = report.problems.len();
    let (name_at, keys_at) = (section.at("server-name"), section.at("keys"));
    let name = section.text("server-name", report);
    let mut keys: Vec<TokenKey> = Vec::new();
    for section in section.sections("keys", report).unwrap_or_default() {
        let Some(Entry { value: key, at }) = read_key(section, report) else { continue };
        if keys.iter().any(|other| other.id == key.id) {
            let words = format!("the key \"{}\" stands there already", key.id);
            report.problem(at.problem(words, "each id once", "give the new key an id of its own"));
        } else {
            keys.push(key);
        }
    }
    section.finish(report);
    if report.problems.len() > before {
        return None;
    }
    let Some(name) = name else {
        if !keys.is_empty() {
            let remedy = "write server-name = \"...\", as the authorization server has it, or remove the keys";
            report.problem(name_at.problem("is missing", "the name that tokens are made for", remedy));
        }
        return None;
    };
    if name.value.is_empty() || name.value.len() > SERVER_NAME_BYTES_MAX {
        let words = format!("found {} bytes", name.value.len());
        report.problem(name.at.problem(words, "a name of 1 to 255 bytes", "write this server's DNS name"));
    }
    if keys.is_empty() {
        let remedy = "write one below [[auth.third-party.keys]], or remove server-name";
        report.problem(keys_at.problem("is missing", "a key shared with the authorization server", remedy));
    }
    Some(ThirdParty { server_name: name.value, keys })
}

fn read_key(mut section: Section, report: &mut Report) -> Option<Entry<TokenKey>> {
    let before = report.problems.len();
    let (id_at, key_at) = (section.at("id"), section.at("key"));
    let id = section.text("id", report);
    let algorithm = section.word("algorithm", &AeadAlgorithm::NAMES, report);
    let key = section.secret("key", report);
    let not_before: Option<Entry<u64>> = section.number("not-before", 0..=i64::MAX as u64, report);
    let lifetime = section.duration("lifetime", Duration::from_secs(1)..=LIFETIME_MAX, report);
    section.finish(report);
    if report.problems.len() > before {
        return None;
    }
    if id.as_ref().is_none_or(|id| id.value.is_empty() || id.value.len() > USERNAME_BYTES_MAX) {
        let words = id.map_or_else(|| "is missing".to_owned(), |id| format!("found {} bytes", id.value.len()));
        let remedy = "write the kid that the authorization server gives to clients";
        report.problem(id_at.problem(words, "a text of 1 to 508 bytes", remedy));
        return None;
    }
    let algorithm = algorithm.map_or(AeadAlgorithm::A256Gcm, |entry| entry.value);
    let bytes = key.and_then(|key| STANDARD.decode(key.value).ok()).filter(|key| key.len() == algorithm.key_len());
    let Some(bytes) = bytes else {
        let len = algorithm.key_len();
        let expected = format!("{len} bytes in base64");
        let remedy = format!("`openssl rand -base64 {len}` makes one; give it to the authorization server as well");
        report.problem(key_at.problem("is no such key", expected, remedy));
        return None;
    };
    if let (Some(lifetime), None) = (&lifetime, &not_before) {
        let remedy = "write when it begins, in seconds since 1970, or remove lifetime";
        report.problem(lifetime.at.problem("is set, and not-before is not", "both or neither", remedy));
    }
    let id = id?;
    let key = TokenKey {
        id: id.value,
        algorithm,
        key: Secret::new(bytes),
        not_before: not_before.map_or(0, |entry| entry.value),
        lifetime: lifetime.map(|entry| entry.value),
    };
    Some(Entry { value: key, at: id.at })
}

#[cfg(test)]
mod tests {
    use super::super::SecretOrigin;
    use super::super::tests::{load_text, problems};
    use super::*;

    const KEY: &str = "SEdrajMyS0pHaXV5MDk4c2RmYXFiTmpPaWF6NzE5MjM=";
    const SHORT_KEY: &str = "SEdrajMyS0pHaXV5MDk4cw==";

    #[test]
    fn several_keys_are_read_with_their_times() {
        let text = format!(
            "[auth.third-party]\nserver-name = \"turn.example.org\"\nkeys = [\n\
             {{ id = \"new\", algorithm = \"A256GCM\", key = \"{KEY}\", not-before = 1798761600, lifetime = \"90d\" }},\n\
             {{ id = \"old\", algorithm = \"A128GCM\", key = \"{SHORT_KEY}\" }},\n]\n"
        );
        let loaded = load_text(&text).unwrap();
        assert_eq!(loaded.secret_origin, SecretOrigin::Configured, "no secret is made beside them");
        assert!(loaded.settings.auth.shared_secrets.is_empty());
        let third_party = loaded.settings.auth.third_party.unwrap();
        assert_eq!(third_party.server_name, "turn.example.org");
        let [new, old] = &third_party.keys[..] else { panic!("two keys") };
        assert_eq!((new.id.as_str(), new.algorithm, new.key.expose().len()), ("new", AeadAlgorithm::A256Gcm, 32));
        assert_eq!((new.not_before, new.lifetime), (1_798_761_600, Some(Duration::from_secs(90 * 86_400))));
        assert_eq!((old.id.as_str(), old.algorithm, old.key.expose().len()), ("old", AeadAlgorithm::A128Gcm, 16));
        assert_eq!((old.not_before, old.lifetime), (0, None));
    }

    #[test]
    fn nothing_named_is_nobody() {
        assert_eq!(load_text("[auth.third-party]\n").unwrap().settings.auth.third_party, None);
    }

    #[test]
    fn wrong_keys_are_told_without_showing_them() {
        let one = |text: &str, words: &str| {
            let found = problems(&format!("[auth.third-party]\n{text}")).join("\n");
            assert!(found.contains(words), "{found}");
            assert!(!found.contains("SEdr"), "a key is shown: {found}");
        };
        let key = |text: &str| format!("server-name = \"a\"\nkeys = [{{ {text} }}]");
        one("server-name = \"a\"", "auth.third-party.keys: is missing");
        one(&format!("keys = [{{ id = \"a\", key = \"{KEY}\" }}]"), "auth.third-party.server-name: is missing");
        one(&key(&format!("key = \"{KEY}\"")), "auth.third-party.keys #1 id: is missing");
        one(&key("id = \"a\""), "auth.third-party.keys #1 key: is no such key, expected 32 bytes in base64");
        one(&key(&format!("id = \"a\", key = \"{SHORT_KEY}\"")), "expected 32 bytes in base64");
        one(&key(&format!("id = \"a\", algorithm = \"A128GCM\", key = \"{KEY}\"")), "expected 16 bytes in base64");
        one(
            &key(&format!("id = \"a\", algorithm = \"A256GCN\", key = \"{KEY}\"")),
            "expected one of \"A256GCM\", \"A128GCM\"",
        );
        one(&key(&format!("id = \"a\", key = \"{KEY}\", lifetime = \"1d\"")), "and not-before is not");
        let twice = format!("{{ id = \"a\", key = \"{KEY}\" }}");
        one(&format!("server-name = \"a\"\nkeys = [{twice}, {twice}]"), "the key \"a\" stands there already");
        one(&format!("server-name = \"\"\nkeys = [{twice}]"), "found 0 bytes, expected a name of 1 to 255 bytes");
    }
}
