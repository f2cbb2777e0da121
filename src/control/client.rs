//! Speaks the admin API from the command line: one request over one connection.

use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire;
use crate::web::{Ask, Endpoint, request_over_socket, signs_itself};

/// A listing of a busy server takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than the longest answer.
const ANSWER_LEN_MAX: usize = 64 << 20;

/// The daemon behind a socket, or behind a URL.
#[derive(Clone, Debug)]
pub struct Client {
    door: Door,
}

#[derive(Clone, Debug)]
enum Door {
    Local(PathBuf),
    Remote(Box<Endpoint>),
}

/// Where the admin API was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a socket of this host.
    Socket(PathBuf),
    /// At the URL of any host.
    Url(String),
}

impl Place {
    /// The URL of another host's admin API.
    pub fn url(host: &str, port: u16) -> Self {
        Self::Url(format!("https://{host}:{port}"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Why there is no answer, or what the answer refuses.
#[derive(Debug)]
pub enum ClientError {
    Unreachable { place: Place, source: io::Error },
    Broken { place: Place, words: String },
    Refused { status: u16, words: String },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { place, source } => {
                let remedy = match place {
                    Place::Url(_) => {
                        "see admin.address of the server, and --ca, --token-file, --certificate and --key here"
                    }
                    Place::Socket(_) if source.kind() == io::ErrorKind::PermissionDenied => {
                        "run this as root or as the user ferryd runs as"
                    }
                    Place::Socket(_) => "start ferryd, or name its socket by --socket; admin.socket is where it serves",
                };
                write!(f, "{place}: cannot be reached ({source}), expected ferryd's admin API; {remedy}")
            }
            Self::Broken { place, words } => write!(f, "{place}: {words}, expected an answer of ferryd"),
            Self::Refused { words, .. } => f.write_str(words),
        }
    }
}

impl Client {
    /// Behind a socket of this host.
    pub fn new(socket: &Path) -> Self {
        Self { door: Door::Local(socket.to_owned()) }
    }

    /// Behind `admin.address` of any host.
    pub fn remote(endpoint: Endpoint) -> Self {
        Self { door: Door::Remote(Box::new(endpoint)) }
    }

    /// Asks, and reads the answer as one of the API's types.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(self.request("GET", path, None)?)
    }

    /// Asks, and returns the answer as it came.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let ask = Ask { method, path, body: &body };
        let answered = match &self.door {
            Door::Local(socket) => request_over_socket(socket, ask, ANSWER_LEN_MAX, PATIENCE),
            Door::Remote(endpoint) => endpoint.request(ask, ANSWER_LEN_MAX, PATIENCE),
        };
        let (status, body) = answered.map_err(|source| {
            let tls = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if source.kind() == io::ErrorKind::InvalidData && tls.is_none() {
                return self.broken(source);
            }
            if let Some(rustls::Error::InvalidCertificate(reason)) = tls
                && signs_itself(reason)
            {
                let source = io::Error::other("its certificate signs itself and is not the one that --ca names");
                return ClientError::Unreachable { place: self.place(), source };
            }
            ClientError::Unreachable { place: self.place(), source }
        })?;
        let value: Value = match body.as_slice() {
            [] => Value::Null,
            body => serde_json::from_slice(body).map_err(|error| self.broken(error))?,
        };
        if (200..300).contains(&status) {
            return Ok(value);
        }
        let words = serde_json::from_value::<wire::Failure>(value).map_err(|error| self.broken(error))?.error;
        Err(ClientError::Refused { status, words })
    }

    /// Reads an answer as one of the API's types.
    pub fn read<T: DeserializeOwned>(&self, answer: Value) -> Result<T, ClientError> {
        serde_json::from_value(answer).map_err(|error| self.broken(error))
    }

    fn broken(&self, words: impl fmt::Display) -> ClientError {
        ClientError::Broken { place: self.place(), words: words.to_string() }
    }

    fn place(&self) -> Place {
        match &self.door {
            Door::Local(socket) => Place::Socket(socket.clone()),
            Door::Remote(endpoint) => Place::url(&endpoint.url.host, endpoint.url.port),
        }
    }
}

/// A path with a query; values may be anything.
pub fn with_query(path: &str, query: &[(&str, Option<String>)]) -> String {
    let mut written = path.to_owned();
    let mut separator = '?';
    for (name, value) in query {
        let Some(value) = value else { continue };
        written.push(separator);
        written += name;
        written.push('=');
        written += &escape(value);
        separator = '&';
    }
    written
}

/// Percent-encodes what is not unreserved (RFC 3986 section 2.3).
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(byte as char);
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_may_hold_anything() {
        let query = [("user", Some("17:ä&b=*".to_owned())), ("peer", None), ("limit", Some("5".to_owned()))];
        assert_eq!(with_query("/v1/sessions", &query), "/v1/sessions?user=17%3A%C3%A4%26b%3D%2A&limit=5");
        assert_eq!(with_query("/v1/sessions", &[]), "/v1/sessions");
    }
}
