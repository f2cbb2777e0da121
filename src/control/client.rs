//! Speaks the admin API from the command line: one request over one connection.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::wire;

/// A listing of a busy server takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than the longest answer.
const ANSWER_LEN_MAX: u64 = 64 << 20;

/// The daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or what the answer refuses.
#[derive(Debug)]
pub enum ClientError {
    Unreachable { socket: PathBuf, source: io::Error },
    Broken { socket: PathBuf, words: String },
    Refused { status: u16, words: String },
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { socket, source } => {
                let remedy = if source.kind() == io::ErrorKind::PermissionDenied {
                    "run this as root or as the user ferryd runs as"
                } else {
                    "start ferryd, or name its socket by --socket; admin.socket is where it serves"
                };
                write!(
                    f,
                    "{}: cannot be reached ({source}), expected ferryd's admin socket; {remedy}",
                    socket.display()
                )
            }
            Self::Broken { socket, words } => write!(f, "{}: {words}, expected an answer of ferryd", socket.display()),
            Self::Refused { words, .. } => f.write_str(words),
        }
    }
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks, and reads the answer as one of the API's types.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.read(self.request("GET", path, None)?)
    }

    /// Asks, and returns the answer as it came.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let unreachable = |source| ClientError::Unreachable { socket: self.socket.clone(), source };
        let mut stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(unreachable)?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: ferryd\r\nConnection: close\r\n");
        let body = body.map(Value::to_string).unwrap_or_default();
        if !body.is_empty() {
            let _ = write!(request, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += &body;
        stream.write_all(request.as_bytes()).map_err(unreachable)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer).map_err(unreachable)?;
        let (status, body) = parse(&answer).ok_or_else(|| self.broken("no HTTP answer"))?;
        let value: Value = match body {
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
        ClientError::Broken { socket: self.socket.clone(), words: words.to_string() }
    }
}

/// The status and the body of an answer that ends with its connection.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = &answer[end + 4..];
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // A daemon that dies midway is no answer.
    (length.unwrap_or(0) == body.len()).then_some((status, body))
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
    fn an_answer_that_was_cut_off_is_none() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue";
        assert_eq!(parse(answer), Some((200, &b"true"[..])));
        for cut in 1..answer.len() {
            assert_eq!(parse(&answer[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_query_may_hold_anything() {
        let query = [("user", Some("17:ä&b=*".to_owned())), ("peer", None), ("limit", Some("5".to_owned()))];
        assert_eq!(with_query("/v1/sessions", &query), "/v1/sessions?user=17%3A%C3%A4%26b%3D%2A&limit=5");
        assert_eq!(with_query("/v1/sessions", &[]), "/v1/sessions");
    }
}
