//! The configuration that an import makes, and its text.

use std::fmt::{Display, Write};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::config::duration_words;

/// What is set; everything else keeps ferryd's default.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) realm: Option<String>,
    pub(super) workers: Option<u64>,
    pub(super) listeners: Vec<Listener>,
    pub(super) certificate: Option<Certificate>,
    pub(super) relay_addresses: Vec<IpAddr>,
    pub(super) advertised_addresses: Vec<IpAddr>,
    pub(super) port_min: Option<u64>,
    pub(super) port_max: Option<u64>,
    pub(super) lifetime_default: Option<u64>,
    pub(super) lifetime_max: Option<u64>,
    pub(super) shared_secrets: Vec<String>,
    pub(super) nonce_lifetime: Option<u64>,
    pub(super) users: Vec<User>,
    pub(super) allow: Vec<IpNet>,
    pub(super) deny: Vec<IpNet>,
    pub(super) allocations_per_user: Option<u64>,
    pub(super) allocations_total: Option<u64>,
    pub(super) allocation_bytes_per_second: Option<u64>,
    /// By transport, as `udp`, `tcp` or `tls`.
    pub(super) redirect: Vec<(&'static str, Alternates)>,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) log_level: Option<&'static str>,
    pub(super) mobility: bool,
    pub(super) nat_behavior: Option<NatBehavior>,
    pub(super) rfc3489: bool,
}

/// A listener; `host` is an address or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: String,
    pub(super) transport: &'static str,
    /// `None` is "both".
    pub(super) accept: Option<&'static str>,
}

#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) certificate: String,
    pub(super) key: String,
    /// Why the pair is written as a remark.
    pub(super) off: Option<&'static str>,
}

#[derive(Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: Password,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Password {
    Plain(String),
    Key(String),
}

/// The first server of each family.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Alternates {
    pub(super) v4: Option<SocketAddr>,
    pub(super) v6: Option<SocketAddr>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct NatBehavior {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) alternate_port: u64,
}

impl Draft {
    /// The text of a ferryd.toml, under a remark that says where it comes from.
    pub(super) fn text(&self, origin: &str) -> String {
        let mut text = Text(format!(
            "# Made from {} by `ferryd import`. After a change: `ferryd check`, then `systemctl reload ferryd`.\n\
             # What is not named here has a safe default; reference.toml lists every key.\n\n",
            origin.escape_debug()
        ));
        text.line("# Kept across restarts: the nonce key, and a secret where none is given.");
        text.key("state-directory", quoted("/var/lib/ferryd"));
        text.maybe("realm", self.realm.as_ref().map(quoted));
        text.maybe("workers", self.workers);
        self.write_listeners(&mut text);
        self.write_certificate(&mut text);
        text.section(
            "relay",
            [
                ("addresses", list(&self.relay_addresses)),
                ("advertised-addresses", list(&self.advertised_addresses)),
                ("port-min", self.port_min.map(|port| port.to_string())),
                ("port-max", self.port_max.map(|port| port.to_string())),
                ("lifetime-default", self.lifetime_default.map(seconds)),
                ("lifetime-max", self.lifetime_max.map(seconds)),
            ],
        );
        text.section(
            "auth",
            [("shared-secrets", list(&self.shared_secrets)), ("nonce-lifetime", self.nonce_lifetime.map(seconds))],
        );
        for user in &self.users {
            let (key, value) = match &user.password {
                Password::Plain(password) => ("password", quoted(password)),
                Password::Key(key) => ("key", quoted(key)),
            };
            text.section("[auth.user]", [("name", Some(quoted(&user.name))), (key, Some(value))]);
        }
        text.section("peers", [("allow", list(&self.allow)), ("deny", list(&self.deny))]);
        text.section(
            "limits",
            [
                ("allocations-per-user", self.allocations_per_user.map(|count| count.to_string())),
                ("allocations-total", self.allocations_total.map(|count| count.to_string())),
                ("allocation-bytes-per-second", self.allocation_bytes_per_second.map(|bytes| bytes.to_string())),
            ],
        );
        for (transport, alternates) in &self.redirect {
            let of = |server: Option<SocketAddr>| server.map(quoted);
            text.section(&format!("redirect.{transport}"), [("v4", of(alternates.v4)), ("v6", of(alternates.v6))]);
        }
        text.section("metrics", [("address", self.metrics.map(quoted))]);
        text.section("log", [("level", self.log_level.map(quoted))]);
        text.section("extensions", [("mobility", self.mobility.then(|| "true".to_owned()))]);
        if let Some(NatBehavior { addresses, alternate_port }) = &self.nat_behavior {
            let port = Some(alternate_port.to_string());
            text.section("extensions.nat-behavior", [("addresses", list(addresses)), ("alternate-port", port)]);
        }
        text.section("compatibility", [("rfc3489", self.rfc3489.then(|| "true".to_owned()))]);
        text.0
    }

    fn write_listeners(&self, text: &mut Text) {
        if self.listeners.is_empty() {
            return;
        }
        text.line("listener = [");
        for Listener { address, transport, accept } in &self.listeners {
            let accept = accept.map_or_else(String::new, |accept| format!(", accept = {}", quoted(accept)));
            text.line(&format!("  {{ address = {}, transport = {}{accept} }},", quoted(address), quoted(transport)));
        }
        text.line("]");
    }

    fn write_certificate(&self, text: &mut Text) {
        let Some(Certificate { certificate, key, off }) = &self.certificate else { return };
        let (certificate, key) = (quoted(certificate), quoted(key));
        match off {
            None => text.section("tls", [("certificate", Some(certificate)), ("key", Some(key))]),
            Some(reason) => {
                text.line(&format!("\n# {reason}\n#[tls]\n#certificate = {certificate}\n#key = {key}"));
            }
        }
    }
}

/// Lines of TOML.
struct Text(String);

impl Text {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn key(&mut self, key: &str, value: impl Display) {
        writeln!(self.0, "{key} = {value}").expect("a text takes what is written");
    }

    fn maybe(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.key(key, value);
        }
    }

    /// A table of what is set, if anything is.
    fn section<const N: usize>(&mut self, name: &str, values: [(&str, Option<String>); N]) {
        if values.iter().any(|(_, value)| value.is_some()) {
            self.line(&format!("\n[{name}]"));
            for (key, value) in values {
                self.maybe(key, value);
            }
        }
    }
}

/// A basic string of TOML: JSON's escapes are a part of TOML's, and DEL alone needs one more.
fn quoted(value: impl Display) -> String {
    serde_json::Value::from(value.to_string()).to_string().replace('\u{7f}', "\\u007F")
}

fn list<T: Display>(items: &[T]) -> Option<String> {
    let items: Vec<String> = items.iter().map(quoted).collect();
    (!items.is_empty()).then(|| format!("[{}]", items.join(", ")))
}

fn seconds(seconds: u64) -> String {
    quoted(duration_words(std::time::Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_so_that_they_come_back() {
        for text in ["plain", "a\"b\\c", "tab\there", "é\u{7f}\u{1}", "'[#]="] {
            let value: config::Value = config::Config::builder()
                .add_source(config::File::from_str(&format!("a = {}", quoted(text)), config::FileFormat::Toml))
                .build()
                .unwrap()
                .get("a")
                .unwrap();
            assert_eq!(value.into_string().unwrap(), text);
        }
    }

    #[test]
    fn what_is_not_set_is_not_written() {
        let text = Draft::default().text("a\nb");
        let keys: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        assert_eq!(keys, ["state-directory = \"/var/lib/ferryd\""]);
    }
}
