//! `ferryd check`: the configuration, with everything wrong listed.

use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use super::output::print;
use crate::config::{CertificateFacts, Loaded, SecretOrigin, StateAccess, Validity};
use crate::turn::settings::RelayAddress;
use crate::worker::settings::Listener;

pub(super) fn run(file: Option<&Path>) -> ExitCode {
    let loaded = match super::load(file, StateAccess::ReadOnly) {
        Ok(loaded) => loaded,
        Err(status) => return status,
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let mut status = ExitCode::SUCCESS;
    for facts in &loaded.certificates {
        match facts.validity(SystemTime::now()) {
            Validity::Good(_) => {}
            Validity::Soon(words) => eprintln!("warning: {words}"),
            Validity::Refused(words) => {
                eprintln!("error: {words}");
                status = ExitCode::from(super::EXIT_CONFIG);
            }
        }
    }
    print(summary(&loaded, SystemTime::now()));
    status
}

fn summary(loaded: &Loaded, now: SystemTime) -> String {
    let settings = &loaded.settings;
    let mut from: Vec<String> = loaded.sources.file.iter().map(|file| file.display().to_string()).collect();
    from.extend(loaded.sources.variables.iter().cloned());
    let from = if from.is_empty() { "built-in defaults".to_owned() } else { from.join(", ") };
    let tls = if loaded.certificates.is_empty() {
        "off, as no certificate is set".to_owned()
    } else {
        list(&loaded.certificates, |facts| certificate_words(facts, now))
    };
    let turn = &settings.turn;
    let state = settings.state_directory.as_ref();
    format!(
        "configuration  {from}\nrealm          {}\nlisteners      {}\ntls            {tls}\n\
         relay          {}, ports {} to {}\ncredentials    {}\nstate          {}\n",
        settings.auth.realm,
        list(&settings.listeners, listener_words),
        list(&turn.relay_addresses, relay_words),
        turn.port_min,
        turn.port_max,
        credential_words(loaded),
        state.map_or_else(|| "none is kept".to_owned(), |directory| directory.display().to_string()),
    )
}

fn list<T>(items: &[T], words: impl Fn(&T) -> String) -> String {
    items.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn certificate_words(facts: &CertificateFacts, now: SystemTime) -> String {
    let names = if facts.content.names.is_empty() { "no names".to_owned() } else { facts.content.names.join(" ") };
    match facts.validity(now) {
        Validity::Good(days) => format!("{names} ({days} days left)"),
        Validity::Soon(_) => format!("{names} (expires soon)"),
        Validity::Refused(_) => format!("{names} (not valid)"),
    }
}

fn listener_words(listener: &Listener) -> String {
    let proxies = if listener.proxies.is_empty() { "" } else { " behind proxies" };
    format!("{} {}{proxies}", listener.kind.name(), listener.address)
}

fn relay_words(relay: &RelayAddress) -> String {
    match relay.advertised {
        Some(advertised) => format!("{} told as {advertised}", relay.bind),
        None => relay.bind.to_string(),
    }
}

fn credential_words(loaded: &Loaded) -> String {
    let auth = &loaded.settings.auth;
    match &loaded.secret_origin {
        SecretOrigin::Configured => {
            format!("{} users, {} shared secrets", auth.users.len(), auth.shared_secrets.len())
        }
        SecretOrigin::Kept(file) => format!("the shared secret in {}", file.display()),
        SecretOrigin::Forgotten if loaded.settings.state_directory.is_some() => {
            "a shared secret, which the daemon makes and keeps when it starts".to_owned()
        }
        SecretOrigin::Forgotten => "a shared secret of its own at every start".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment, HostFacts};

    #[test]
    fn the_summary_says_where_everything_is() {
        let host = HostFacts { own_addresses: vec!["127.0.0.1".parse().unwrap()], ..HostFacts::default() };
        let loaded = config::load(None, &Environment::new(), &host, StateAccess::ReadOnly).unwrap();
        assert_eq!(
            summary(&loaded, SystemTime::now()),
            "configuration  built-in defaults\nrealm          ferryd\n\
             listeners      udp 0.0.0.0:3478, tcp 0.0.0.0:3478\ntls            off, as no certificate is set\n\
             relay          127.0.0.1, ports 49152 to 65535\n\
             credentials    a shared secret of its own at every start\nstate          none is kept\n"
        );
    }
}
