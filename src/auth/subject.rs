//! Whom an operator means: a user, users by the beginning of their names or by their secret, or clients by address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::credentials::{Credentials, TimeLimited};
use super::settings::SecretId;

/// Users or clients, as `user:alice`, `user:alice*`, `secret:0f3a9c11` or `client:192.0.2.0/24`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The whole username, or the name behind the expiry of a time-limited one.
    User(String),
    /// The beginning of either.
    UserPrefix(String),
    /// Everybody whose credential was minted from a shared secret.
    Secret(SecretId),
    /// Source addresses of clients.
    Client(IpNet),
}

impl Subject {
    /// A user, or with `*` at the end all whose names begin so.
    pub fn user(text: &str) -> Self {
        match text.strip_suffix('*') {
            Some(prefix) => Self::UserPrefix(prefix.to_owned()),
            None => Self::User(text.to_owned()),
        }
    }

    /// An address or a range of addresses.
    pub fn client(text: &str) -> Result<Self, NoSubject> {
        parse_range(text).map(Self::Client).ok_or(NoSubject)
    }

    /// Whether these credentials, used from this address, are meant.
    pub fn covers(&self, credentials: &Credentials, client: IpAddr) -> bool {
        let username = &*credentials.username;
        let name = || TimeLimited::parse(username).and_then(|limited| limited.name);
        match self {
            Self::User(user) => user == username || name() == Some(user),
            Self::UserPrefix(prefix) => {
                username.starts_with(prefix) || name().is_some_and(|name| name.starts_with(prefix.as_str()))
            }
            Self::Secret(id) => credentials.secret == Some(*id),
            Self::Client(range) => range.contains(&client),
        }
    }
}

/// An address alone is a range of one.
pub fn parse_range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Whether somebody hopes for a `*` where it stands for nothing but itself.
fn is_meant_as_pattern(text: &str) -> bool {
    text.strip_suffix('*').unwrap_or(text).contains('*')
}

/// Whether somebody has mistyped an address or a range, rather than named a user.
fn is_meant_as_address(text: &str) -> bool {
    let address = text.split('/').next().unwrap_or(text);
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || b".*".contains(&byte));
    address.parse::<IpAddr>().is_ok() || (address.contains('.') && is_digits(address))
}

/// The text names no user and no address; what is expected in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSubject;

impl fmt::Display for NoSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a user, the beginning of names with * at the end, an address or range of addresses, or secret: and the id of a \
             shared secret; user: in front of a name that looks like an address or has a * elsewhere",
        )
    }
}

impl FromStr for Subject {
    type Err = NoSubject;

    /// Without `user:`, `secret:` or `client:` in front, what is an address or a range is a client, what looks like one and
    /// is none is nobody, and so is a pattern that is not the beginning of a name; all else is a user.
    fn from_str(text: &str) -> Result<Self, NoSubject> {
        match text.split_once(':') {
            _ if text.is_empty() => Err(NoSubject),
            Some(("user", "")) => Err(NoSubject),
            Some(("user", user)) => Ok(Self::user(user)),
            Some(("client", client)) => Self::client(client),
            Some(("secret", id)) if id.len() == 8 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u32::from_str_radix(id, 16).map(|id| Self::Secret(SecretId(id))).map_err(|_| NoSubject)
            }
            Some(("secret", _)) => Err(NoSubject),
            _ => match parse_range(text) {
                Some(range) => Ok(Self::Client(range)),
                None if is_meant_as_address(text) || is_meant_as_pattern(text) => Err(NoSubject),
                None => Ok(Self::user(text)),
            },
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::UserPrefix(prefix) => write!(f, "user:{prefix}*"),
            Self::Secret(id) => write!(f, "secret:{id}"),
            Self::Client(range) => write!(f, "client:{range}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::credentials::UserKind;
    use super::super::long_term::PasswordAlgorithm;
    use super::*;

    fn covers(subject: &str, username: &str, client: &str) -> bool {
        let credentials = Credentials {
            username: Arc::from(username),
            kind: UserKind::Named,
            algorithm: PasswordAlgorithm::Md5,
            key: PasswordAlgorithm::Md5.key(b"u", "r", b"p"),
            secret: Some(SecretId(0x0f3a_9c11)),
        };
        subject.parse::<Subject>().unwrap().covers(&credentials, client.parse().unwrap())
    }

    #[test]
    fn a_user_is_met_with_and_without_the_expiry() {
        for subject in ["alice", "user:alice", "1700000000:alice", "al*", "1700*", "192.0.2.0/24", "client:192.0.2.1"] {
            assert!(covers(subject, "1700000000:alice", "192.0.2.1"), "{subject}");
        }
        for subject in
            ["alic", "user:alice ", "1700000001:alice", "b*", "192.0.3.0/24", "user:192.0.2.1", "2001:db8::/32"]
        {
            assert!(!covers(subject, "1700000000:alice", "192.0.2.1"), "{subject}");
        }
    }

    #[test]
    fn subjects_are_read_as_they_are_written() {
        for text in
            ["secret:0f3a9c11", "user:alice", "user:alice*", "user:*", "client:192.0.2.1/32", "client:2001:db8::/32"]
        {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        for text in ["", "secret:", "secret:0f3a9c1", "user:", "client:", "client:alice", "client:192.0.2.0/33"] {
            assert_eq!(text.parse::<Subject>(), Err(NoSubject), "{text}");
        }
    }

    #[test]
    fn a_pattern_that_is_no_beginning_of_a_name_is_no_user() {
        for text in ["*-guest", "a*b", "**", "tenant-*-a*"] {
            assert_eq!(text.parse::<Subject>(), Err(NoSubject), "{text}");
            assert_eq!(format!("user:{text}").parse(), Ok(Subject::user(text)), "{text}");
        }
        assert_eq!("*".parse(), Ok(Subject::UserPrefix(String::new())));
    }

    #[test]
    fn a_mistyped_range_is_no_user() {
        for text in ["10.0.0.0/33", "203.0.113.256", "203.0.113.0/", "203.0.113.*", "10.0.0/8", "2001:db8::/129"] {
            assert_eq!(text.parse::<Subject>(), Err(NoSubject), "{text}");
            assert_eq!(format!("user:{text}").parse(), Ok(Subject::user(text)), "{text}");
        }
        for text in ["1800000000", "1800000000*", "10.0.0.1.example", "alice/1"] {
            assert_eq!(text.parse(), Ok(Subject::user(text)), "{text}");
        }
    }
}
