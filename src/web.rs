//! HTTP as a client: one request over one connection, plain or over TLS, with a deadline for all of it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use self::trust::{Trust, signs_itself};

mod trust;

/// A status line.
const STATUS_LEN_MAX: usize = 1024;

/// `http://host[:port]/path` or `https://...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub is_tls: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Url {
    /// `None` for what is no such URL; credentials in it are not taken.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (is_tls, default_port) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let is_fit = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.contains('@') || !is_fit(authority) || !is_fit(path) || path.contains('#') {
            return None;
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port != 0)?),
            Some(_) | None => (authority, default_port),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty()).then(|| Self { is_tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// A token that goes with each request, as `Authorization: Bearer`; it never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `None` unless it is one line of visible ASCII.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The certificates of a PEM file. No error quotes what is in it: somebody may have named a file of keys.
pub fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(file)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "holds no PEM certificate")),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "holds PEM that cannot be read")),
    }
}

/// The key of a PEM file, which no error quotes either.
pub fn key(file: &Path) -> io::Result<PrivateKeyDer<'static>> {
    let no_key = || io::Error::new(io::ErrorKind::InvalidData, "holds no PEM key without a passphrase");
    PrivateKeyDer::from_pem_slice(&std::fs::read(file)?).map_err(|_| no_key())
}

/// A client's side of TLS, with a certificate of its own where the server asks for one.
pub fn client_config(
    trust: Trust,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = trust.of_servers(&provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(io::Error::other)?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Where requests go.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub url: Url,
    pub token: Option<Token>,
    /// Set exactly where the URL is one of https.
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    /// `tls` makes the configuration where the URL needs one.
    pub fn new(
        url: Url,
        token: Option<Token>,
        tls: impl FnOnce() -> io::Result<Arc<ClientConfig>>,
    ) -> io::Result<Self> {
        let tls = url.is_tls.then(tls).transpose()?;
        Ok(Self { url, token, tls })
    }

    /// Posts JSON and returns the status of the answer; the rest of it is not read.
    pub fn post(&self, body: &str, patience: Duration) -> io::Result<u16> {
        let deadline = Instant::now() + patience;
        let mut stream = self.send("POST", &self.url.path, body, deadline)?;
        status(|bytes| stream.read(bytes, deadline))
    }

    /// Sends a request and reads the answer to its end: the status and the body of at most `len_max` bytes.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: &str,
        len_max: usize,
        patience: Duration,
    ) -> io::Result<(u16, Vec<u8>)> {
        let deadline = Instant::now() + patience;
        let mut stream = self.send(method, path, body, deadline)?;
        let mut answer = Vec::new();
        let mut bytes = vec![0; 16 << 10];
        loop {
            if let Some((status, body)) = parse(&answer) {
                return Ok((status, body));
            }
            let count = stream.read(&mut bytes, deadline)?;
            if count == 0 {
                return parse_ended(&answer).ok_or_else(no_http);
            }
            if answer.len() + count > len_max {
                return Err(no_http());
            }
            answer.extend_from_slice(&bytes[..count]);
        }
    }

    fn send(&self, method: &str, path: &str, body: &str, deadline: Instant) -> io::Result<Stream> {
        let Url { host, port, .. } = &self.url;
        let token = self.token.as_ref().map(|Token(token)| format!("Authorization: Bearer {token}\r\n"));
        let host_header = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        // By HTTP/1.0, whose answers come in one piece.
        let mut request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {host_header}:{port}\r\nUser-Agent: ferryd\r\nConnection: close\r\n{}",
            token.unwrap_or_default()
        );
        if !body.is_empty() {
            request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += body;
        let tcp = connect(host, *port, deadline)?;
        let mut stream = match &self.tls {
            None => Stream::Plain(tcp),
            Some(config) => {
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                Stream::Tls(Box::new(StreamOwned::new(connection, tcp)))
            }
        };
        stream.write_all(request.as_bytes(), deadline)?;
        Ok(stream)
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Lets the next step take what is left; a server that drips is cut off at the deadline.
    fn limit(&self, deadline: Instant) -> io::Result<()> {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => &tls.sock,
        };
        let left = Some(left(deadline)?);
        tcp.set_read_timeout(left)?;
        tcp.set_write_timeout(left)
    }

    fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        self.limit(deadline)?;
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes),
        }
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<usize> {
        self.limit(deadline)?;
        match self {
            Self::Plain(tcp) => tcp.read(bytes),
            Self::Tls(tls) => tls.read(bytes),
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn no_http() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer")
}

/// Reads the status line.
fn status(mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<u16> {
    let mut answer = Vec::new();
    loop {
        let mut bytes = [0; 256];
        let count = read(&mut bytes)?;
        answer.extend_from_slice(&bytes[..count]);
        if let Some(line) = answer.split(|byte| *byte == b'\n').next().filter(|line| line.len() < answer.len()) {
            let line = std::str::from_utf8(line).map_err(|_| no_http())?;
            return status_of(line).ok_or_else(no_http);
        }
        if count == 0 || answer.len() > STATUS_LEN_MAX {
            return Err(no_http());
        }
    }
}

fn status_of(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// The status and the body of an answer that is whole, by the length that it tells.
pub fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (status, length, body) = split(answer)?;
    // A server that dies midway is no answer.
    (length == Some(body.len())).then(|| (status, body.to_vec()))
}

/// The same of one that tells no length, and that its connection has ended.
fn parse_ended(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (status, length, body) = split(answer)?;
    length.is_none().then(|| (status, body.to_vec()))
}

fn split(answer: &[u8]) -> Option<(u16, Option<usize>, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = status_of(head)?;
    let body = &answer[end + 4..];
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap_or(usize::MAX))
    });
    Some((status, length, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart() {
        let url = |text: &str| Url::parse(text).map(|url| (url.is_tls, url.host, url.port, url.path));
        assert_eq!(url("http://a"), Some((false, "a".into(), 80, "/".into())));
        assert_eq!(url("https://a.b/c?d=e"), Some((true, "a.b".into(), 443, "/c?d=e".into())));
        assert_eq!(url("http://[2001:db8::1]:8080/x"), Some((false, "2001:db8::1".into(), 8080, "/x".into())));
        assert_eq!(url("http://[2001:db8::1]/"), Some((false, "2001:db8::1".into(), 80, "/".into())));
        for wrong in [
            "",
            "a",
            "ftp://a",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:b",
            "http://u:p@a",
            "http://a/ b",
            "http://a/\r\nX: y",
        ] {
            assert_eq!(url(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_a_whole_status_line_is_an_answer() {
        let read = |text: &str| {
            let mut bytes = text.as_bytes();
            status(|buffer| bytes.read(buffer)).map_err(|error| error.kind())
        };
        assert_eq!(read("HTTP/1.1 204 No Content\r\n"), Ok(204));
        assert_eq!(read("HTTP/1.0 500 x\n"), Ok(500));
        for wrong in ["", "HTTP/1.1 204 No Content", "SSH-2.0\r\n", "HTTP/1.1 2\r\n", &"x".repeat(5000)] {
            assert_eq!(read(wrong), Err(io::ErrorKind::InvalidData), "{wrong:.20}");
        }
    }

    #[test]
    fn an_answer_that_was_cut_off_is_none() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue";
        assert_eq!(parse(answer), Some((200, b"true".to_vec())));
        for cut in 1..answer.len() {
            assert!(parse(&answer[..cut]).is_none() && (cut < 38 || parse_ended(&answer[..cut]).is_none()), "{cut}");
        }
        let untold = b"HTTP/1.0 200 OK\r\n\r\ntrue";
        assert_eq!((parse(untold), parse_ended(untold)), (None, Some((200, b"true".to_vec()))));
    }

    #[test]
    fn a_file_of_keys_is_not_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        for text in
            ["-----BEGIN PRIVATE KEY-----\nc2VzYW1l\n", "-----BEGIN hush", "-----BEGIN CERTIFICATE-----\nhush!\n"]
        {
            std::fs::write(&path, text).unwrap();
            let words = certificates(&path).unwrap_err().to_string();
            assert!(words.contains("holds") && !words.contains("hush") && !words.contains("c2VzYW1l"), "{words}");
        }
    }
}
