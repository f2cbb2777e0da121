//! The first run: without configuration the daemon hands out a credential, to people alone.

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::mint::mint;
use super::output;
use super::urls::urls;
use crate::config::{Loaded, SecretOrigin, Settings};

/// What the greeting needs beside the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    certificate_name: Option<String>,
}

impl Greeting {
    /// A greeting where nothing was configured, or where nobody could learn a credential otherwise.
    pub fn of(loaded: &Loaded) -> Option<Self> {
        let needed = match loaded.secret_origin {
            SecretOrigin::Configured => false,
            SecretOrigin::Kept(_) => loaded.sources.are_defaults(),
            SecretOrigin::Forgotten => true,
        };
        needed.then(|| Self { certificate_name: certificate_name(loaded) })
    }
}

/// The name that clients should use for TLS: the first of the first certificate that is no pattern.
pub(super) fn certificate_name(loaded: &Loaded) -> Option<String> {
    loaded.certificates.first()?.content.names.iter().find(|name| !name.starts_with('*')).cloned()
}

/// Whether standard output leads into a log rather than to a person.
pub fn under_service_manager() -> bool {
    ["INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET"].iter().any(|name| std::env::var_os(name).is_some())
}

/// How long the printed credential is good for.
const TTL: Duration = Duration::from_secs(86400);

/// Prints URLs with a username and password valid for a day to standard output.
pub fn print(greeting: &Greeting, settings: &Settings) {
    if let Some(text) = text(greeting, settings, SystemTime::now(), &called_as(std::env::args_os().next()))
        && let Err(error) = output::write(format!("{text}\n"))
    {
        warn!(%error, "the URLs and the credential cannot be printed");
    }
}

/// What a shell is told to run this program again: what it was told, for which there need be no `ferryd` on its path.
fn called_as(name: Option<OsString>) -> String {
    let name = name.and_then(|name| name.into_string().ok()).unwrap_or_else(|| "ferryd".to_owned());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    if name.bytes().all(is_plain) { name } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

fn text(greeting: &Greeting, settings: &Settings, now: SystemTime, ferryd: &str) -> Option<String> {
    let credential = mint(settings.auth.shared_secrets.first()?, now, TTL, None);
    let urls = urls(settings, None, greeting.certificate_name.as_deref());
    let lines = urls.iter().map(|url| format!("  {url}\n")).collect::<String>();
    Some(format!(
        "ferryd relays. For a client, valid for a day:\n\n{lines}\n  username    {}\n  credential  {}\n\n\
         Try it:  {ferryd} probe '{}' -u {} -p {}\n",
        credential.username,
        credential.password,
        urls.first()?,
        credential.username,
        credential.password
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment, HostFacts, StateAccess};

    fn loaded(environment: &[(&str, &str)]) -> Loaded {
        let environment: Environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let host = HostFacts { own_addresses: vec!["127.0.0.1".parse().unwrap()], ..HostFacts::default() };
        config::load(None, &environment, &host, StateAccess::Create).unwrap()
    }

    #[test]
    fn the_first_run_is_greeted_with_something_to_paste() {
        let loaded = loaded(&[]);
        let greeting = Greeting::of(&loaded).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let text = text(&greeting, &loaded.settings, now, "target/release/ferryd").unwrap();
        assert!(
            text.contains(
                "\nTry it:  target/release/ferryd probe 'turn:127.0.0.1:3478?transport=udp' -u 1700086400 -p "
            )
        );
        assert!(text.contains("  turn:127.0.0.1:3478?transport=udp\n"), "{text}");
        assert!(text.contains("  username    1700086400\n"), "{text}");
        assert!(!text.contains("turns:"), "{text}");
    }

    #[test]
    fn a_shell_takes_the_name_that_is_printed_for_one_word() {
        assert_eq!(called_as(Some("target/release/ferryd".into())), "target/release/ferryd");
        assert_eq!(called_as(Some("/home/a b/it's/ferryd".into())), r"'/home/a b/it'\''s/ferryd'");
        assert_eq!(called_as(None), "ferryd");
    }

    #[test]
    fn who_has_configured_a_secret_is_not_greeted() {
        assert_eq!(Greeting::of(&loaded(&[("FERRYD_AUTH__SHARED_SECRETS", "mVJ0s3yTzQkU8cXeW1bNhR4p")])), None);
    }

    #[test]
    fn who_configures_something_else_and_keeps_no_secret_is_greeted() {
        assert!(Greeting::of(&loaded(&[("FERRYD_REALM", "x")])).is_some());
    }
}
